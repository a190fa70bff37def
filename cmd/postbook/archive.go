package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/archive"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

const (
	archivePlace = "archive.place" // names the archive of a data directory, for commands
	archiveLock  = "archive.lock"
	archiveHeld  = "archive.held" // says how far each log was archived
)

// archiveName is where the archive is: what is configured, or what a server of
// this data directory was told before. Empty is nowhere.
func (c *Config) archiveName() (string, error) {
	if c.Archive != "" {
		return c.Archive, nil
	}
	text, err := os.ReadFile(c.path(archivePlace))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// openArchive opens the archive of a data directory, or returns nil if there is
// none.
func openArchive(cfg Config) (*archive.Archive, error) {
	name, err := cfg.archiveName()
	if err != nil || name == "" {
		return nil, err
	}
	place, err := archive.Open(name)
	if err != nil {
		return nil, fmt.Errorf("POSTBOOK_ARCHIVE: %w", err)
	}
	trusted, err := ownVerifiers(cfg)
	if err != nil {
		return nil, err
	}
	return archive.New(place, trusted.Log[0].Name()), nil
}

// ownVerifiers are the keys of the seal that lie in the data directory.
func ownVerifiers(cfg Config) (seal.Verifiers, error) {
	text, err := os.ReadFile(cfg.sealPath(publicKeys))
	if err != nil {
		return seal.Verifiers{}, fmt.Errorf("find the public keys of the seal, which name this platform (several hosts: copy %s from the one that runs workers): %w", publicKeys, err)
	}
	return seal.ParseVerifiers(strings.Fields(string(text)), nil)
}

// openArchive opens the archive of the server.
func (s *server) openArchive(context.Context) error {
	if s.cfg.runs(roleWorkers) && s.cfg.Archive != "" {
		if _, err := openSealKeys(s.cfg); err != nil { // which name the platform
			return err
		}
	}
	held, err := openArchive(s.cfg)
	s.archive = held
	return err
}

// rememberArchive keeps where the archive is, for commands and starts that are not
// told. It comes after the log was opened: a start beside a running server fails
// there, and leaves what that one has said.
func (s *server) rememberArchive(context.Context) error {
	if s.cfg.Archive == "" {
		return nil
	}
	if err := seal.WriteFile(s.cfg.path(archivePlace), []byte(s.cfg.Archive+"\n"), 0o600); err != nil {
		return fmt.Errorf("remember where the archive is: %w", err)
	}
	return nil
}

// missesArchive says so if older entries are in an archive that is not known.
func (s *server) missesArchive(ctx context.Context) error {
	if s.archive != nil {
		return nil
	}
	for _, log := range s.store.MailLogs() {
		stats, err := s.store.Stats(ctx, log)
		if err != nil {
			return err
		}
		if stats.Hot > 1 && stats.Entries > 0 {
			s.log.Error("the log does not begin with its first entry: set POSTBOOK_ARCHIVE to where the older ones are", "log", log, "first", stats.Hot)
		}
	}
	return nil
}

// claimsBucket says which segments the hosts of a cluster write.
const claimsBucket = "archive-claims"

func newArchiver(ctx context.Context, cfg Config, store *eventstore.Store, held *archive.Archive, log *slog.Logger) (*archive.Archiver, error) {
	trusted, err := ownVerifiers(cfg)
	if err != nil {
		return nil, err
	}
	var claims *eventstore.Bucket
	if cfg.NATSURL != "" { // and not a server in a process of this host, where the lock is enough
		if claims, err = store.Bucket(ctx, claimsBucket); err != nil {
			return nil, err
		}
	}
	return archive.NewArchiver(archive.Config{
		Store: store, Claims: claims, Archive: held, SealDir: cfg.path(sealFolder), Trusted: trusted, Lock: cfg.path(archiveLock), Record: cfg.path(archiveHeld),
		HotAge: cfg.HotAge, HotBytes: cfg.HotBytes, Spare: cfg.HotSpare, Now: time.Now, Log: log,
	}), nil
}

// startArchiver archives what is sealed, in the process that seals.
func (s *server) startArchiver(ctx context.Context, group *errgroup.Group) error {
	if s.archive == nil {
		return nil
	}
	archiver, err := newArchiver(ctx, s.cfg, s.store, s.archive, s.log)
	if err != nil {
		return err
	}
	archiver.Mine = s.notary.Signs // of several hosts, one works on a log
	s.archiver = archiver
	group.Go(func() error { return archiver.Run(ctx) })
	return nil
}

type archiveCommand struct {
	List   archiveList   `cmd:"" help:"Say how far each log is archived, and what is behind."`
	Run    archiveRun    `cmd:"" help:"Archive now what is sealed, also what does not fill a segment, and let the streams forget what may go."`
	Verify archiveVerify `cmd:"" help:"Check the segments by themselves: against the signed heads in them, and each against the one before."`
}

// opened is the log and the archive of a data directory.
func (c *archiveCommand) opened(ctx context.Context, cfg *Config) (*eventstore.Store, *archive.Archive, error) {
	store, err := openLog(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	held, err := openArchive(*cfg)
	if err == nil && held == nil {
		err = errNoArchive
	}
	if err != nil {
		return nil, nil, errors.Join(err, store.Close())
	}
	return store, held, nil
}

var errNoArchive = errors.New("there is no archive: set POSTBOOK_ARCHIVE to a directory or s3://bucket?endpoint=HOST")

type archiveList struct{}

// Run prints how far each log is archived.
func (archiveList) Run(ctx context.Context, cfg Config, out output) error {
	store, held, err := (&archiveCommand{}).opened(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	return out.archived(ctx, store, held)
}

func (o output) archived(ctx context.Context, store *eventstore.Store, held *archive.Archive) error {
	var all []archive.Status
	var rows [][]string
	for _, log := range archive.Logs(store) {
		st, err := held.Status(ctx, store, log)
		if err != nil {
			return err
		}
		all = append(all, st)
		behind := strconv.FormatUint(st.Behind, 10)
		if st.Behind > 0 {
			behind += ", since " + st.Since.UTC().Format(clock)
		}
		rows = append(rows, []string{
			st.Log, strconv.Itoa(st.Segments), fmt.Sprintf("%.1f MB", float64(st.Bytes)/1e6),
			fmt.Sprintf("%d-%d", st.First, st.Last), strconv.FormatUint(st.Hot, 10), strconv.FormatUint(st.Head, 10), behind,
		})
	}
	if done, err := o.object(all); done {
		return err
	}
	fmt.Printf("In %s:\n", held.Place())
	return o.table([]string{"LOG", "SEGMENTS", "SIZE", "ARCHIVED", "FIRST IN STREAM", "LAST", "NOT ARCHIVED"}, rows)
}

type archiveRun struct{}

// Run archives now.
func (archiveRun) Run(ctx context.Context, cfg Config, out output) error {
	store, held, err := (&archiveCommand{}).opened(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	archiver, err := newArchiver(ctx, cfg, store, held, cfg.logger())
	if err != nil {
		return err
	}
	if err := archiver.Pass(ctx, true); err != nil {
		return err
	}
	return out.archived(ctx, store, held)
}

type archiveVerify struct {
	Key []string `sep:"none" help:"Public key that signs the seal; give those that you keep. Without any, the data directory's own are used."`
}

// Run checks the segments. It needs no log, and no server.
func (c archiveVerify) Run(ctx context.Context, cfg Config, out output) error {
	if err := cfg.settle(false); err != nil {
		return err
	}
	name, err := cfg.archiveName()
	if err != nil {
		return err
	}
	if name == "" {
		return errNoArchive
	}
	place, err := archive.Open(name)
	if err != nil {
		return err
	}
	var trusted seal.Verifiers
	if len(c.Key) > 0 {
		trusted, err = seal.ParseVerifiers(c.Key, nil)
	} else {
		trusted, err = ownVerifiers(cfg)
	}
	if err != nil {
		return err
	}
	held := archive.New(place, trusted.Log[0].Name())
	logs, err := held.Logs(ctx)
	if err != nil {
		return err
	}
	if len(logs) == 0 {
		return fmt.Errorf("%s has no segments of %s", place, trusted.Log[0].Name())
	}
	sound := true
	for _, log := range logs {
		ok, err := out.checked(ctx, held, log, trusted)
		if err != nil {
			return err
		}
		sound = sound && ok
	}
	if len(c.Key) == 0 { // else it may be another platform's
		whole, err := out.whole(ctx, cfg, held)
		if err != nil {
			return err
		}
		sound = sound && whole
	}
	if !sound {
		return errUnsound
	}
	return nil
}

// whole checks that the archive holds all that this data directory's server put into
// it, and prints what is missing: what was cut off at the end leaves no gap.
func (o output) whole(ctx context.Context, cfg Config, held *archive.Archive) (bool, error) {
	reached, err := archive.ReadRecord(cfg.path(archiveHeld))
	if err != nil {
		return false, err
	}
	missing := held.Holds(ctx, reached)
	if missing == nil || !errors.Is(missing, archive.ErrMissing) {
		return missing == nil, missing
	}
	if printed, err := o.object(map[string]string{"missing": missing.Error()}); printed {
		return false, err
	}
	fmt.Println(missing)
	return false, nil
}

// checked checks the segments of one log, and prints what was found.
func (o output) checked(ctx context.Context, held *archive.Archive, log string, trusted seal.Verifiers) (bool, error) {
	r, err := held.Check(ctx, log, trusted)
	if err != nil {
		return false, err
	}
	if printed, err := o.object(r); printed {
		return r.OK(), err
	}
	verdict := "as they were written"
	if !r.OK() {
		verdict = "NOT as they were written"
	}
	fmt.Printf("%-8s  %d segments %s: %d to %d, %d of them under a signed head\n", r.Log, r.Segments, verdict, r.First, r.Last, r.Sealed)
	for _, f := range r.Findings {
		fmt.Println("  " + f.String())
	}
	return r.OK(), nil
}
