package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/backup"
	"postbook.dev/postbook/domain"
	copied "postbook.dev/postbook/domain/backup"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/keyring"
	"postbook.dev/postbook/seal"
)

type restoreCommand struct {
	Backup   string   `arg:"" type:"path" help:"Folder of one backup."`
	Check    bool     `help:"Only check that the backup is as it was written."`
	Key      []string `sep:"none" help:"Public key that signs the seal; give those that you keep. Without any, the backup's own are used, which whoever could change it could change too."`
	Replicas int      `help:"Servers of a NATS cluster that keep each stream. 0 is as many as did."`
	Content  int      `default:"1000" help:"How many references to content are followed and held against their hash, spread over all. Whether the others point at something is looked at too."`
}

// Run puts a backup into a data directory, or into a NATS server, that holds
// nothing; and checks the backup before and the logs after.
func (c restoreCommand) Run(ctx context.Context, cfg Config, out output) error {
	if err := cfg.settle(false); err != nil {
		return err
	}
	if len(c.Key) > 0 {
		if _, err := seal.ParseVerifiers(c.Key, nil); err != nil {
			return fmt.Errorf("--key: %w", err)
		}
	}
	checked, err := backup.Check(c.Backup, c.Key, out.progress("check"))
	if err != nil {
		return c.orOneOf(err)
	}
	if len(checked.Findings) > 0 {
		return errors.Join(out.restore(restored{Backup: c.Backup, Findings: checked.Findings}), errUnsound)
	}
	if c.Check {
		return out.restore(restored{Backup: c.Backup, Made: checked.Manifest.At, Entries: checked.Manifest.Entries(), Checked: true})
	}
	r := restoring{restoreCommand: c, cfg: cfg, out: out, Manifest: checked.Manifest, raw: checked.Raw, begun: time.Now()}
	return r.run(ctx)
}

// orOneOf adds which backups there are to an error that says that this is none.
func (c restoreCommand) orOneOf(err error) error {
	if names, listing := backup.List(c.Backup); listing == nil && len(names) > 0 {
		return fmt.Errorf("%w; these are in it: %s", err, strings.Join(names, ", "))
	}
	return err
}

// restoring is a restore under way.
type restoring struct {
	restoreCommand
	backup.Manifest

	cfg   Config
	out   output
	raw   []byte // of the manifest
	begun time.Time
}

// restored is what became of it.
type restored struct {
	Backup   string    `json:"backup"`
	Made     time.Time `json:"made"`
	Entries  uint64    `json:"entries"`
	Checked  bool      `json:"checked_only,omitempty"`
	Open     int       `json:"open_emails"`
	Content  int       `json:"content_references"`
	Hashed   int       `json:"content_hashed"`
	Keysets  int       `json:"keysets"`
	Erased   int       `json:"accounts_without_keys"`
	Seconds  float64   `json:"seconds"`
	Findings []string  `json:"findings"`
}

func (o output) restore(r restored) error {
	if printed, err := o.object(r); printed {
		return err
	}
	switch {
	case len(r.Findings) > 0:
		fmt.Printf("%s does NOT hold:\n", r.Backup)
		for _, f := range r.Findings[:min(len(r.Findings), 20)] {
			fmt.Println("  " + f)
		}
	case r.Checked:
		fmt.Printf("%s is as it was written at %s: %d entries\n", r.Backup, r.Made.Format(time.RFC3339), r.Entries)
	default:
		fmt.Printf("Restored %d entries, as of %s, in %.1f s. %d references to content point at something, %d were read; the keys of %d accounts open, %d accounts have none.\n",
			r.Entries, r.Made.Format(time.RFC3339), r.Seconds, r.Content, r.Hashed, r.Keysets, r.Erased)
		fmt.Printf("%d emails are open and go out once a server starts, also those that went out after the backup was made.\n", r.Open)
	}
	return nil
}

func (r *restoring) run(ctx context.Context) error {
	tune(ctx, toolShare)
	if err := r.prepare(ctx); err != nil {
		return err
	}
	if err := r.streams(ctx); err != nil {
		return err
	}
	if err := r.seals(); err != nil {
		return err
	}
	findings, err := r.archived(ctx)
	if err != nil {
		return err
	}
	if len(findings) > 0 {
		return errors.Join(r.out.restore(restored{Backup: r.Backup, Findings: findings}), errUnsound)
	}
	// What somebody else has seen since is missing, of course. verify says so later.
	alone := r.cfg
	alone.SealCopies, alone.Witnesses = nil, nil
	sound, err := verifyCommand{Key: r.Key}.verifyLog(ctx, alone, output{json: r.out.json})
	if err != nil {
		return err
	}
	if !sound {
		return errUnsound // and the data directory stays one that no server starts on
	}
	result, err := r.inspect(ctx)
	if err != nil {
		return err
	}
	if len(result.Findings) > 0 {
		return errors.Join(r.out.restore(result), errUnsound)
	}
	if err := r.end(); err != nil {
		return err
	}
	result.Seconds = time.Since(r.begun).Seconds()
	return r.out.restore(result)
}

// prepare makes sure that nothing is there, or only what an earlier try has left,
// and that the keys will be.
func (r *restoring) prepare(ctx context.Context) error {
	if _, ok := found(r.cfg); ok {
		return errors.New("a server runs on this data directory: a restore is into an empty one")
	}
	mark, err := json.Marshal(restoreMark{r.Name, hexSum(r.raw), hexSum([]byte(r.cfg.NATSURL)), r.begun})
	if err != nil {
		return err
	}
	again, err := r.triedBefore()
	if err != nil {
		return err
	}
	if !again {
		if err := errors.Join(r.vacant(), r.vacantServer(ctx)); err != nil {
			return err
		}
	}
	if err := r.keys(); err != nil {
		return err
	}
	if len(r.External) > 0 && r.cfg.Archive == "" {
		return fmt.Errorf("older entries are not in the backup, but in %d segments of the archive: set POSTBOOK_ARCHIVE to where these are", len(r.External))
	}
	if err := seal.WriteFile(r.cfg.path(restoringFile), mark, 0o600); err != nil {
		return fmt.Errorf("mark the data directory: %w", err)
	}
	return r.forgetTry(ctx)
}

// restoreMark is what restoringFile says: what is restored, and where to.
type restoreMark struct {
	Backup   string    `json:"backup"`
	Manifest string    `json:"manifest"` // SHA-256
	Server   string    `json:"server"`   // SHA-256 of its URL, which may hold a password
	Begun    time.Time `json:"begun"`
}

// triedBefore reports whether what is there is what an earlier try of the same
// restore has left, which may be removed. What another one has left may not.
func (r *restoring) triedBefore() (bool, error) {
	text, err := os.ReadFile(r.cfg.path(restoringFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	var left restoreMark
	if err == nil {
		err = json.Unmarshal(text, &left)
	}
	if err != nil {
		return false, fmt.Errorf("look for a restore that has not ended: %w", err)
	}
	if left.Manifest != hexSum(r.raw) || left.Server != hexSum([]byte(r.cfg.NATSURL)) {
		return false, fmt.Errorf("%s holds what a restore of %s has left, which was another backup or into another NATS server: run that one again, or take an empty directory", r.cfg.DataDir, left.Backup)
	}
	return true, nil
}

// vacant refuses a data directory that holds anything but keys.
func (r *restoring) vacant() error {
	keys := []string{rootKeyFile, sealFolder, sealFolder + "/" + signingKeys, sealFolder + "/" + markKeyFile, sealFolder + "/" + publicKeys}
	var held []string
	err := filepath.WalkDir(r.cfg.DataDir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(r.cfg.DataDir, path)
		if err != nil || name == "." || slices.Contains(keys, filepath.ToSlash(name)) {
			return err
		}
		held = append(held, name)
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look into the data directory: %w", err)
	}
	if len(held) > 0 {
		return fmt.Errorf("a restore is into an empty data directory, and %s holds %s", r.cfg.DataDir, strings.Join(held, ", "))
	}
	return nil
}

// vacantServer refuses a NATS server that holds streams.
func (r *restoring) vacantServer(ctx context.Context) error {
	if r.cfg.NATSURL == "" {
		return nil // it has its data in the data directory
	}
	return r.withVacant(func(v *eventstore.Vacant) error {
		held, err := v.Streams(ctx)
		if err == nil && len(held) > 0 {
			err = fmt.Errorf("a restore is into an empty NATS server, and this one holds %s", strings.Join(held, ", "))
		}
		return err
	})
}

// keys makes sure that each key is in its place or in the backup, before anything
// is written: without them nothing could be opened, and the seal not go on.
func (r *restoring) keys() error {
	var missing []string
	for name, path := range r.cfg.keyFiles() {
		_, here := os.Stat(path)
		_, there := os.Stat(filepath.Join(r.Backup, backup.KeyFolder, name))
		if here != nil && there != nil {
			missing = append(missing, path)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("the backup holds no keys: put those that you keep where they belong, and run this again: %s", strings.Join(missing, ", "))
	}
	for name, path := range r.cfg.keyFiles() {
		if _, err := os.Stat(path); err == nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(r.Backup, backup.KeyFolder, name))
		if err == nil {
			err = seal.WriteFile(path, data, 0o600)
		}
		if err != nil {
			return fmt.Errorf("put a key in its place: %w", err)
		}
	}
	signing, err := seal.OpenKeys(r.cfg.sealPath(signingKeys), time.Now())
	if err != nil {
		return err
	}
	if signing.Instance != r.Instance {
		return fmt.Errorf("%s holds the keys of %s, and the backup is one of %s", r.cfg.sealPath(signingKeys), signing.Instance, r.Instance)
	}
	return nil
}

// forgetTry removes what an earlier try has left.
func (r *restoring) forgetTry(ctx context.Context) error {
	if r.cfg.NATSURL == "" {
		if err := os.RemoveAll(r.cfg.path("log")); err != nil {
			return fmt.Errorf("remove what an earlier try has left: %w", err)
		}
	} else if err := r.withVacant(func(v *eventstore.Vacant) error {
		for _, s := range r.Streams {
			if err := v.Drop(ctx, s.Stream); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, h := range r.Heads {
		if err := os.RemoveAll(r.cfg.sealPath(h.Log)); err != nil {
			return fmt.Errorf("remove what an earlier try has left: %w", err)
		}
	}
	return nil
}

func (r *restoring) withVacant(do func(*eventstore.Vacant) error) error {
	if r.cfg.NATSURL == "" {
		if err := os.MkdirAll(r.cfg.DataDir, 0o700); err != nil {
			return fmt.Errorf("make the data directory: %w", err)
		}
	}
	v, err := eventstore.OpenVacant(eventstore.Config{
		Dir: r.cfg.path("log"), URL: r.cfg.NATSURL, Durability: eventstore.Interval, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	return errors.Join(do(v), v.Close())
}

// streams puts the streams back, the ledger last: without it, nobody takes the
// rest for a log.
func (r *restoring) streams(ctx context.Context) error {
	replicas := r.Replicas
	if r.cfg.NATSURL == "" {
		replicas = 1
	}
	ordered := slices.Clone(r.Streams)
	slices.SortStableFunc(ordered, func(a, b backup.Stream) int {
		switch eventstore.Ledger {
		case a.Stream:
			return 1
		case b.Stream:
			return -1
		}
		return 0
	})
	progress := r.out.progress("restore")
	var done uint64
	err := r.withVacant(func(v *eventstore.Vacant) error {
		for _, s := range ordered {
			f, err := os.Open(filepath.Join(r.Backup, filepath.FromSlash(s.File)))
			if err != nil {
				return err
			}
			if err := errors.Join(v.Restore(ctx, s.StreamCopy, f, replicas), f.Close()); err != nil {
				return err
			}
			done += s.Entries
			progress(done, r.Entries())
		}
		return nil
	})
	if err == nil && r.cfg.NATSURL == "" {
		err = eventstore.Settle(r.cfg.path("log"))
	}
	return err
}

func (r *restoring) seals() error {
	public, err := os.ReadFile(filepath.Join(r.Backup, filepath.FromSlash(backup.PublicKeys)))
	if err != nil {
		return err
	}
	if err := seal.WriteFile(r.cfg.sealPath(publicKeys), public, 0o644); err != nil {
		return err
	}
	trusted, err := seal.ParseVerifiers(strings.Fields(string(public)), nil)
	if err != nil {
		return err
	}
	for _, h := range r.Heads {
		if _, err := seal.CopyLog(filepath.Join(r.Backup, backup.SealFolder, h.Log), r.cfg.sealPath(h.Log), trusted, seal.Origin(r.Instance, h.Log)); err != nil {
			return err
		}
	}
	return nil
}

// archived looks whether the archive has the segments that the backup needs, and
// none that go further: what comes into the log next would have their places.
func (r *restoring) archived(ctx context.Context) (findings []string, err error) {
	if r.cfg.Archive == "" {
		return nil, nil
	}
	held, err := openArchive(r.cfg)
	if err != nil {
		return nil, err
	}
	parts, err := held.Parts(ctx)
	if err != nil {
		return nil, fmt.Errorf("list what is in the archive: %w", err)
	}
	last := map[string]uint64{}
	for _, s := range r.Streams {
		last[s.Stream] = s.Last
	}
	there := map[string]string{}
	for _, p := range parts {
		there[p.Name] = p.SHA256
		if p.Last > last[p.Log] {
			findings = append(findings, fmt.Sprintf("the archive holds %s up to %d, and the backup ends at %d: move %s and all later segments of this log aside, with their manifests", p.Log, p.Last, last[p.Log], p.Name))
		}
	}
	for _, f := range r.External {
		switch sum, ok := there[f.Name]; {
		case !ok:
			findings = append(findings, fmt.Sprintf("the archive lacks %s", f.Name))
		case sum != f.SHA256:
			findings = append(findings, fmt.Sprintf("%s is not the segment that the backup needs", f.Name))
		}
	}
	return findings, nil
}

// inspect looks whether what refers to something finds it, and puts on record that
// the log was restored.
func (r *restoring) inspect(ctx context.Context) (result restored, err error) {
	result = restored{Backup: r.Backup, Made: r.At, Entries: r.Entries()}
	cfg := r.cfg
	cfg.Partitions = 0 // as many as there are
	s := newServer(cfg, slog.New(slog.DiscardHandler))
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.openArchive(ctx); err != nil {
		return result, err
	}
	if err := s.openLog(ctx); err != nil {
		return result, err
	}
	if err := s.openKeys(ctx); err != nil {
		return result, err
	}
	if err := r.emails(ctx, s.store, &result); err != nil {
		return result, err
	}
	if err := r.keysets(ctx, s, &result); err != nil {
		return result, err
	}
	if len(result.Findings) > 0 {
		return result, nil
	}
	if err := forgetTables(ctx, cfg); err != nil {
		return result, err
	}
	fact := copied.Restored{Name: r.Name, Manifest: hexSum(r.raw), Made: r.At}
	_, err = eventstore.Execute(ctx, s.store, copied.Decider, copied.Stream(), copied.Command(copied.Restore{Authority: operator(time.Now()), Restored: fact}))
	return result, err
}

// emails follows the references of emails to their content.
func (r *restoring) emails(ctx context.Context, store *eventstore.Store, result *restored) error {
	content, err := store.Stats(ctx, eventstore.Content)
	if err != nil {
		return err
	}
	var mails uint64
	for _, s := range r.Streams {
		if strings.HasPrefix(s.Stream, "MAIL_") {
			mails += s.Entries
		}
	}
	every := int(mails)/max(r.Content, 1) + 1
	open := map[string]email.State{}
	refer := func(rec domain.Recorded, ref domain.ContentRef) {
		result.Content++
		for _, part := range ref.Parts {
			if part.Seq < content.First || part.Seq > content.Last {
				result.Findings = append(result.Findings, fmt.Sprintf("%s %d refers to content %d, which is not there", rec.Log, rec.Seq, part.Seq))
				return
			}
		}
		if r.Content > 0 && result.Content%every == 0 {
			result.Hashed++
			if _, err := store.Content(ctx, ref); err != nil {
				result.Findings = append(result.Findings, fmt.Sprintf("%s %d: %s", rec.Log, rec.Seq, err))
			}
		}
	}
	for _, log := range store.MailLogs() {
		head, err := store.Head(ctx, log)
		if err != nil {
			return err
		}
		if head == 0 {
			continue
		}
		err = store.Follow(ctx, eventstore.Following{Log: log, StopAt: head, MaxBatch: 4000}, func(_ context.Context, entries []eventstore.Entry) error {
			for _, e := range entries {
				if e.Err != nil {
					result.Findings = append(result.Findings, e.Err.Error())
				}
				for _, rec := range e.Events {
					switch event := rec.Event.(type) {
					case email.Accepted:
						refer(rec, event.Content)
					case email.Prepared:
						refer(rec, event.Message)
					}
					if event, ok := rec.Event.(email.Event); ok {
						state := email.Decider.Evolve(open[rec.Stream.ID], event)
						open[rec.Stream.ID] = state
						if state.Final() {
							delete(open, rec.Stream.ID)
						}
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	result.Open = len(open)
	return nil
}

// keysets opens the keys of every account with the root key.
func (r *restoring) keysets(ctx context.Context, s *server, result *restored) error {
	if err := learnAll(ctx, s.store, s.directory); err != nil {
		return err
	}
	accounts := []string{domain.Platform}
	for _, a := range s.directory.Accounts() {
		accounts = append(accounts, a.ID)
	}
	for _, id := range accounts {
		_, err := s.vault.ring.Account(ctx, id)
		switch {
		case errors.Is(err, keyring.ErrErased):
			result.Erased++
		case err != nil:
			result.Findings = append(result.Findings, err.Error())
		default:
			result.Keysets++
		}
	}
	return nil
}

// forgetTables has read models in a database of one's own built again: they may
// have read what is not in the log any more.
func forgetTables(ctx context.Context, cfg Config) error {
	if cfg.DatabaseURL == "" {
		return nil
	}
	db, err := pgx.Connect(ctx, cfg.DatabaseURL)
	if err != nil {
		return fmt.Errorf("connect to the database, whose read models have to be built again: %w", err)
	}
	defer db.Close(ctx)
	var there bool
	if err := db.QueryRow(ctx, "select to_regclass('checkpoints') is not null").Scan(&there); err != nil || !there {
		return err
	}
	// Also what was being built, is compared with, or can be gone back to.
	_, err = db.Exec(ctx, `
		update checkpoints set version = 0;
		do $$
		declare aside text;
		begin
		  for aside in select nspname from pg_namespace where nspname like 'building\_%' or nspname like 'verifying\_%' or nspname = 'retired' loop
		    execute format('drop schema %I cascade', aside);
		  end loop;
		end $$`)
	if err != nil {
		return fmt.Errorf("have the read models built again: %w", err)
	}
	return nil
}

// end makes the data directory one that a server starts on.
func (r *restoring) end() error {
	if r.cfg.NATSURL == "" {
		if err := eventstore.Settle(r.cfg.path("log")); err != nil {
			return err
		}
	}
	if err := os.Remove(r.cfg.path(restoringFile)); err != nil {
		return fmt.Errorf("end the restore: %w", err)
	}
	return seal.SyncDir(r.cfg.DataDir)
}
