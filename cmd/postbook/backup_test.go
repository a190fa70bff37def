package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/backup"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/migrations"
)

// load sends mails until it is stopped, and notes who each one that was
// acknowledged is to.
type load struct {
	stop  func()
	mu    sync.Mutex
	mails map[string]string
}

func (i *instance) load(t *testing.T) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{mails: map[string]string{}}
	var clients sync.WaitGroup
	for c := range 2 {
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				to := fmt.Sprintf("c%d-n%d@rcpt.test", c, n)
				r, err := i.try(context.WithoutCancel(ctx), "POST", "/emails", hello(to))
				if err != nil {
					t.Error(err)
					return
				}
				id := r.id(t)
				l.mu.Lock()
				l.mails[id] = to
				l.mu.Unlock()
			}
		})
	}
	l.stop = func() { cancel(); clients.Wait() }
	t.Cleanup(l.stop)
	return l
}

func (l *load) acknowledged() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.mails)
}

func (l *load) reaches(t *testing.T, n int) {
	t.Helper()
	testenv.Eventually(t, 30*time.Second, func() error {
		if got := len(l.acknowledged()); got < n {
			return fmt.Errorf("%d mails were acknowledged", got)
		}
		return nil
	})
}

// backup makes one, and returns its path.
func (i *instance) backup(t *testing.T, folder string, args ...string) string {
	t.Helper()
	out, err := i.postbook(append([]string{"backup", folder, "--json"}, args...)...)
	var made struct{ Path string }
	if err := errors.Join(err, json.Unmarshal([]byte(out), &made)); err != nil {
		t.Fatalf("backup: %v\n%s", err, out)
	}
	return made.Path
}

// elsewhere is an instance that does not run yet, on a data directory that is
// empty.
func (i *instance) elsewhere(t *testing.T) *instance {
	t.Helper()
	dir, err := os.MkdirTemp("", "postbook-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	other := &instance{t: t, dir: dir, env: i.env, client: &http.Client{Timeout: time.Minute}, output: &buffer{}}
	t.Cleanup(func() {
		if other.cmd != nil {
			other.stop()
		}
		os.RemoveAll(dir)
	})
	return other
}

// give copies a file of the data directory to another.
func (i *instance) give(t *testing.T, to *instance, names ...string) {
	t.Helper()
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(i.dir, name))
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(to.dir, name)), 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to.dir, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// What is backed up under load is restored whole: each mail that was acknowledged
// before answers as it did, is delivered, and the seal goes on.
func TestBackupsUnderLoadAreWhole(t *testing.T) {
	t.Parallel()
	i := launch(t)
	copies, folder := t.TempDir(), t.TempDir()
	l := i.load(t)
	var paths []string
	var before []map[string]string
	for n := range 2 {
		l.reaches(t, (n+1)*40)
		before = append(before, l.acknowledged())
		paths = append(paths, i.backup(t, folder, "--with-keys"))
	}
	l.reaches(t, len(before[1])+10)
	l.stop()
	if out, err := i.postbook("events", "show", "platform.backup.all"); err != nil || strings.Count(out, "backup.made") != 2 {
		t.Errorf("backups are not on record: %v\n%s", err, out)
	}
	i.stop()
	// Somebody keeps the heads as they were in the end.
	for _, log := range []string{"LEDGER", "MAIL_00", "MAIL_01", "MAIL_02", "MAIL_03"} {
		head, err := os.ReadFile(filepath.Join(i.dir, "seal", log, "checkpoint"))
		if err == nil {
			err = os.WriteFile(filepath.Join(copies, log+".checkpoint"), head, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, err := i.postbook("verify", "--log", "--copy", copies); err != nil || strings.Count(out, "fits 1 kept elsewhere") != 5 {
		t.Errorf("verify, before anything was put back: %v\n%s", err, out)
	}

	for n, path := range paths {
		other := i.elsewhere(t)
		out, err := other.postbook("restore", path)
		if err != nil || !strings.Contains(out, ", 0 accounts have none") || strings.Contains(out, "NOT") {
			t.Fatalf("restore: %v\n%s", err, out)
		}
		if out, err := other.postbook("restore", path); err == nil || !strings.Contains(out, "is into an empty data directory") {
			t.Errorf("restored over a log: %v\n%s", err, out)
		}
		if n == 0 {
			continue // one start is enough
		}
		i.give(t, other, keptFile)
		other.start("--quiet")
		for id, to := range before[n] {
			other.lastEvent(id, "delivered")
			var mail struct {
				To   []string
				Text string
			}
			other.ask("GET", "/emails/"+id, nil).decode(t, &mail)
			if len(mail.To) != 1 || mail.To[0] != to || mail.Text != "Hello." {
				t.Errorf("%s answers %+v", id, mail)
			}
		}
		other.lastEvent(other.ask("POST", "/emails", hello("new@rcpt.test")).id(t), "delivered")
		other.stop()
		if out, err := other.postbook("events", "check"); err != nil {
			t.Errorf("check: %v\n%s", err, out)
		}
		if out, err := other.postbook("verify", "--log"); err != nil || strings.Contains(out, "NOT") {
			t.Errorf("verify: %v\n%s", err, out)
		}
		// Whoever has seen more says that an old backup was put back.
		if out, err := other.postbook("verify", "--log", "--copy", copies); err == nil || !strings.Contains(out, "rewritten") {
			t.Errorf("an old backup was put back, and nobody sees it: %v\n%s", err, out)
		}
		if out, err := other.postbook("events", "show", "platform.backup.all"); err != nil || strings.Count(out, "backup.restored") != 1 {
			t.Errorf("the restore is not on record: %v\n%s", err, out)
		}
	}
}

// A file of a backup that was changed, removed, swapped or added is found before
// anything is restored; and without keys nothing is begun.
func TestChangedBackupsAreFound(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.lastEvent(i.ask("POST", "/emails", hello("a@rcpt.test")).id(t), "delivered")
	i.sealSays(t, "not witnessed")
	folder := t.TempDir()
	i.stop()
	path := i.backup(t, folder)
	check := func(what string) {
		t.Helper()
		if c, err := backup.Check(path, nil, func(_, _ uint64) {}); err == nil && len(c.Findings) == 0 {
			t.Errorf("%s: nobody sees it", what)
		}
	}
	change := func(name, what string, do func(path string) error) {
		t.Helper()
		file := filepath.Join(path, name)
		kept, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := do(file); err != nil {
			t.Fatal(err)
		}
		check(name + " " + what)
		if err := os.WriteFile(file, kept, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := backup.Check(path, nil, func(_, _ uint64) {})
	if err != nil || len(c.Findings) > 0 {
		t.Fatalf("%v %v", c.Findings, err)
	}
	names := []string{backup.ManifestFile, "manifest.signed"}
	for _, f := range c.Manifest.Files {
		names = append(names, f.Name)
	}
	if len(names) < 30 {
		t.Fatalf("there are %d files only", len(names))
	}
	for _, name := range names {
		change(name, "is removed", os.Remove)
		change(name, "has another bit", func(path string) error {
			data, err := os.ReadFile(path)
			if err != nil || len(data) == 0 {
				return errors.Join(err, os.WriteFile(path, []byte{0}, 0o600))
			}
			data[rand.IntN(len(data))] ^= 1
			return os.WriteFile(path, data, 0o600)
		})
	}
	change("streams/MAIL_00.s2", "is that of another stream", func(file string) error {
		data, err := os.ReadFile(filepath.Join(path, "streams/MAIL_01.s2"))
		return errors.Join(err, os.WriteFile(file, data, 0o600))
	})
	extra := filepath.Join(path, "streams", "MORE.s2")
	if err := os.WriteFile(extra, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("one more file")
	if err := os.Remove(extra); err != nil {
		t.Fatal(err)
	}

	// Whoever can sign can also write what is no name, and it leads to no path.
	for _, name := range []string{"../../elsewhere", "..", "a/b", ""} {
		change(backup.ManifestFile, "has a log called "+name, func(file string) error {
			m := c.Manifest
			m.Heads = append([]backup.Head{{Log: name}}, m.Heads...)
			data, err := json.Marshal(m)
			if err := errors.Join(err, os.WriteFile(file, data, 0o600)); err != nil {
				return err
			}
			if _, err := backup.Check(path, nil, func(_, _ uint64) {}); err == nil || !strings.Contains(err.Error(), "no name of a log") {
				t.Errorf("a log called %q: %v", name, err)
			}
			return nil
		})
	}

	other := i.elsewhere(t)
	if out, err := other.postbook("restore", path); err == nil || !strings.Contains(out, "the backup holds no keys") {
		t.Errorf("restored without keys: %v\n%s", err, out)
	}
	public, err := os.ReadFile(filepath.Join(i.dir, "seal", publicKeys))
	if err != nil {
		t.Fatal(err)
	}
	i.give(t, other, rootKeyFile, "seal/"+signingKeys, "seal/"+markKeyFile)
	if out, err := other.postbook("restore", path, "--key", strings.TrimSpace(string(public))); err != nil {
		t.Errorf("restore, with the keys in place: %v\n%s", err, out)
	}
	if out, err := other.postbook("verify", "--log"); err != nil {
		t.Errorf("verify: %v\n%s", err, out)
	}
	if out, err := other.postbook("verify", "--read-models"); err == nil || !strings.Contains(out, "it has read nothing of LEDGER") {
		t.Errorf("read models that nothing is in: %v\n%s", err, out)
	}
}

// What a restore that was cut off has left is removed by the same one alone: another
// backup does not go over it, nor does the same one into a server of others.
func TestWhatARestoreHasLeftIsItsOwn(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.stop()
	folder := t.TempDir()
	first, second := i.backup(t, folder, "--with-keys"), i.backup(t, folder, "--with-keys")
	other := i.elsewhere(t)
	if out, err := other.postbook("restore", first); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	checked, err := backup.Check(first, nil, func(_, _ uint64) {})
	if err != nil {
		t.Fatal(err)
	}
	leave := func(server string) {
		t.Helper()
		mark, err := json.Marshal(restoreMark{Backup: filepath.Base(first), Manifest: hexSum(checked.Raw), Server: hexSum([]byte(server))})
		if err == nil {
			err = os.WriteFile(filepath.Join(other.dir, restoringFile), mark, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for what, from := range map[string]struct{ backup, server string }{
		"another backup": {second, ""}, "another server": {first, "nats://127.0.0.1:4222"},
	} {
		leave(from.server)
		if out, err := other.postbook("restore", from.backup); err == nil || !strings.Contains(out, "take an empty directory") {
			t.Errorf("%s is restored over what was there: %v\n%s", what, err, out)
		}
		if _, err := os.Stat(filepath.Join(other.dir, "log")); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	leave("")
	if out, err := other.postbook("restore", first); err != nil {
		t.Errorf("the same again: %v\n%s", err, out)
	}
}

// While the root key is replaced no one key opens all keysets, so that a backup has
// to wait.
func TestNoBackupWhileTheRootKeyIsReplaced(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.stop()
	k, err := openKeeper(t.Context(), Config{DataDir: i.dir, HTTPAddr: "127.0.0.1:0", MXPort: 25, Durability: "fsync"})
	if err != nil {
		t.Fatal(err)
	}
	r := rotation{k.store, k.ring, k.root, "", func() domain.Authority { return operator(time.Now()) }}
	if err := errors.Join(r.begin(t.Context()), k.store.Close()); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	if out, err := i.postbook("backup", folder); err == nil || !strings.Contains(out, "is being replaced") {
		t.Errorf("a backup was made: %v\n%s", err, out)
	}
	if out, err := i.postbook("rotate", "kek"); err != nil {
		t.Fatalf("rotate: %v\n%s", err, out)
	}
	path := i.backup(t, folder, "--with-keys")
	if out, err := i.elsewhere(t).postbook("restore", path); err != nil {
		t.Errorf("restore: %v\n%s", err, out)
	}
}

// A backup that is killed is never taken for a whole one, and a restore that is
// killed leaves nothing that a server starts on; both are done again.
func TestKilledBackupsAndRestores(t *testing.T) {
	rounds := 3
	if os.Getenv("POSTBOOK_TEST_LONG") != "" {
		rounds = 50
	} else {
		t.Parallel()
	}
	i := launch(t)
	l := i.load(t)
	l.reaches(t, 50)
	l.stop()
	folder := t.TempDir()
	i.sealSays(t, "not witnessed")
	took := time.Now()
	path := i.backup(t, folder, "--with-keys")
	backing := time.Since(took)
	first := i.elsewhere(t)
	took = time.Now()
	if out, err := first.postbook("restore", path); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	restoring := time.Since(took)

	// killed ends a command at any moment after its work has begun.
	killed := func(at *instance, begun string, within time.Duration, args ...string) {
		cmd := exec.Command(binary, args...)
		cmd.Env = append(os.Environ(), "POSTBOOK_DATA_DIR="+at.dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 30*time.Second, func() error {
			if there, _ := filepath.Glob(begun); len(there) == 0 {
				return fmt.Errorf("there is no %s", begun)
			}
			return nil
		})
		time.Sleep(rand.N(within)) // no state is waited for
		_ = cmd.Process.Kill()     // it may have ended
		_ = cmd.Wait()
	}
	cut, half := 0, 0
	for range rounds {
		killed(i, filepath.Join(folder, "*.partial"), backing/4, "backup", folder, "--with-keys")
		left, err := filepath.Glob(filepath.Join(folder, "*.partial"))
		if err != nil {
			t.Fatal(err)
		}
		cut += len(left)
		names, err := backup.List(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if c, err := backup.Check(filepath.Join(folder, name), nil, func(_, _ uint64) {}); err != nil || len(c.Findings) > 0 {
				t.Errorf("%s is not whole: %v %v", name, c.Findings, err)
			}
		}

		other := i.elsewhere(t)
		killed(other, filepath.Join(other.dir, restoringFile), restoring*2/3, "restore", path)
		if _, err := os.Stat(filepath.Join(other.dir, restoringFile)); err == nil {
			half++
			if out, err := other.postbook("events", "stats"); err == nil || !strings.Contains(out, "has not ended") {
				t.Errorf("half a restore is used: %v\n%s", err, out)
			}
		}
		if _, err := os.Stat(filepath.Join(other.dir, "log")); err != nil || half > 0 {
			if out, err := other.postbook("restore", path); err != nil && !strings.Contains(out, "is into an empty data directory") {
				t.Errorf("restored again: %v\n%s", err, out)
			}
		}
		if out, err := other.postbook("verify", "--log"); err != nil || strings.Contains(out, "NOT") {
			t.Errorf("after a restore that was killed: %v\n%s", err, out)
		}
	}
	i.backup(t, folder, "--keep", "2")
	names, err := backup.List(folder)
	left, _ := filepath.Glob(filepath.Join(folder, "*.partial"))
	if err != nil || len(names) != 2 || len(left) != 0 {
		t.Errorf("there are %v and %v; %v", names, left, err)
	}
	t.Logf("%d rounds: %d backups and %d restores were cut off", rounds, cut, half)
}

// What has left the streams is in the archive, and a backup that needs it says so:
// it is restored beside it, and not beside one that lacks something or goes further.
func TestABackupNeedsItsArchive(t *testing.T) {
	t.Parallel()
	place := t.TempDir()
	i := launch(t, "POSTBOOK_ARCHIVE="+place, "POSTBOOK_HOT_AGE=200ms", "POSTBOOK_HOT_SPARE=5")
	var ids []string
	// In waves: what is sent at once may be one segment, and the newest stays.
	for wave := range 4 {
		for range 20 {
			ids = append(ids, i.ask("POST", "/emails", hello("a@rcpt.test")).id(t))
		}
		for _, id := range ids[wave*20:] {
			i.lastEvent(id, "delivered")
		}
		delivered := i.archived(t)
		testenv.Eventually(t, time.Minute, func() error { // only what is sealed is archived
			if out, err := i.postbook("archive", "run"); err != nil {
				t.Fatalf("archive run: %v\n%s", err, out)
			}
			for log, st := range i.archived(t) {
				if strings.HasPrefix(log, "MAIL_") && st.Last < delivered[log].Head {
					return fmt.Errorf("%s is archived to %d of %d", log, st.Last, delivered[log].Head)
				}
			}
			return nil
		})
	}
	i.stop()
	i.start("--quiet") // its claims allow what came before them to go
	testenv.Eventually(t, time.Minute, func() error {
		for log, st := range i.archived(t) {
			if strings.HasPrefix(log, "MAIL_") && st.Hot > 1 {
				return nil
			}
		}
		return fmt.Errorf("nothing has left a stream: %v\n%s", i.archived(t), i.output)
	})
	i.stop()

	// What was cut off at the end, or all of it, leaves no gap that shows.
	last, err := filepath.Glob(filepath.Join(place, "*", "*", "CONTENT", "*"))
	if err != nil || len(last) == 0 {
		t.Fatalf("content was not archived: %v", err)
	}
	cutOff := filepath.Join(t.TempDir(), "CONTENT")
	content := filepath.Dir(last[0])
	if err := os.Rename(content, cutOff); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"verify", "--log"}, {"archive", "verify"}, {"backup", t.TempDir()}} {
		if out, err := i.postbook(args...); err == nil || !strings.Contains(out, "CONTENT was archived up to ") {
			t.Errorf("%v without archived content: %v\n%s", args, err, out)
		}
	}
	if err := os.Rename(cutOff, content); err != nil {
		t.Fatal(err)
	}
	// A start that fails beside a server changes nothing of where commands look.
	i.start("--quiet")
	i.env = append(i.env, "POSTBOOK_ARCHIVE="+t.TempDir())
	if out, err := i.postbook("serve"); err == nil || !strings.Contains(out, "in use by another process") {
		t.Errorf("a second server: %v\n%s", err, out)
	}
	i.env = i.env[:len(i.env)-1]
	i.stop()
	if kept, err := os.ReadFile(filepath.Join(i.dir, archivePlace)); err != nil || strings.TrimSpace(string(kept)) != place {
		t.Errorf("the archive is remembered at %s, %v", kept, err)
	}

	path := i.backup(t, t.TempDir(), "--with-keys")
	without := i.elsewhere(t)
	without.env = nil
	if out, err := without.postbook("restore", path); err == nil || !strings.Contains(out, "set POSTBOOK_ARCHIVE") {
		t.Errorf("restored without the archive: %v\n%s", err, out)
	}
	beside := i.elsewhere(t)
	if out, err := beside.postbook("restore", path); err != nil {
		t.Fatalf("restore: %v\n%s", err, out)
	}
	beside.verified(t)
	i.give(t, beside, keptFile)
	beside.start("--quiet")
	for _, id := range ids {
		beside.lastEvent(id, "delivered")
	}
	beside.stop()

	// The first has gone on, and so has the archive: what comes into the second next
	// would have the places of what is there.
	i.start("--quiet")
	testenv.Eventually(t, time.Minute, func() error {
		i.ask("POST", "/emails", hello("b@rcpt.test")).id(t)
		out, err := i.elsewhere(t).postbook("restore", path)
		if err == nil || !strings.Contains(out, "and the backup ends at") {
			return fmt.Errorf("restored beside an archive that goes further: %w\n%s", err, out)
		}
		return nil
	})
	i.stop()
	segments, err := filepath.Glob(filepath.Join(place, "*", "*", "MAIL_*", "*-*.json"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("there are no segments: %v", err)
	}
	if err := os.Remove(segments[0]); err != nil {
		t.Fatal(err)
	}
	if out, err := i.elsewhere(t).postbook("restore", path); err == nil || !strings.Contains(out, "the archive lacks ") {
		t.Errorf("restored beside an archive with a segment missing: %v\n%s", err, out)
	}
}

// A database of one's own outlives its log: nothing in it is believed that was read from
// the log before.
func TestARestoredLogHasItsReadModelsBuiltAgain(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t).Owner
	if err := migrations.Apply(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	db, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	_, err = db.Exec(t.Context(), `
		insert into checkpoints (model, log, version) values ('emails', 'MAIL_00', 1);
		create schema building_emails; create schema verifying_emails; create schema retired; create table retired.emails ()`)
	if err != nil {
		t.Fatal(err)
	}
	if err := forgetTables(t.Context(), Config{DatabaseURL: url}); err != nil {
		t.Fatal(err)
	}
	var version, schemas int
	err = db.QueryRow(t.Context(), "select (select version from checkpoints), (select count(*) from pg_namespace where nspname ~ '^(building|verifying)_|^retired$')").Scan(&version, &schemas)
	if err != nil || version != 0 || schemas != 0 {
		t.Errorf("version %d, %d schemas are left, %v", version, schemas, err)
	}
}
