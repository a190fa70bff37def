package eventstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postbook.dev/postbook/domain/apikey"
)

// disk stands in for fsync: it notes what had been written to each file when it
// was synced, and can hold a sync up or fail it.
type disk struct {
	mu     sync.Mutex
	synced map[string]int64 // path → bytes that are known to be on disk
	calls  atomic.Int64     // of block files
	gate   chan struct{}    // if not nil, each sync of a block takes one from it
	broken atomic.Bool
}

var errDisk = errors.New("the disk is on fire")

func (d *disk) fsync(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if strings.HasSuffix(f.Name(), ".blk") {
		d.calls.Add(1)
		if d.gate != nil {
			<-d.gate
		}
	}
	if d.broken.Load() {
		return errDisk
	}
	if err := fdatasync(f); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.synced == nil {
		d.synced = map[string]int64{}
	}
	d.synced[f.Name()] = max(d.synced[f.Name()], info.Size())
	return nil
}

func (d *disk) use(c *Config) { c.fsync = d.fsync }

// onDisk is what of a stream would be left after a power failure.
func (d *disk) onDisk(t testing.TB, s *Store, stream string) []byte {
	t.Helper()
	var all []byte
	for _, name := range blocks(t, s, stream) {
		d.mu.Lock()
		n := d.synced[name]
		d.mu.Unlock()
		all = append(all, must(os.ReadFile(name))(t)[:n]...)
	}
	return all
}

// Each kind of durable write is on disk, every byte of it, when it is answered.
func TestAnswerComesAfterFsync(t *testing.T) {
	t.Parallel()
	d := &disk{}
	s := open(t, d.use)
	ctx := t.Context()
	// A zero is where the server's own 20 ms sync cannot have helped: only our
	// fsync counts here, because only it is noted.
	key := issued(newKey())
	must(s.Append(ctx, key, 0))(t)
	if !bytes.Contains(d.onDisk(t, s, Ledger), []byte(key.By.Command.String())) {
		t.Error("an append was answered before it was on disk")
	}
	mail := accepted(emailIn(s, 1))
	seq := must(s.Accept(ctx, []Commit{mail}))(t)[0][0].Seq
	if !bytes.Contains(d.onDisk(t, s, MailLog(1)), []byte(mail.By.Command.String())) {
		t.Error("an email was accepted before it was on disk")
	}
	o := must(s.Own(ctx, 1, "sender"))(t)
	if !bytes.Contains(d.onDisk(t, s, MailLog(1)), []byte(`"who":"sender"`)) {
		t.Error("a claim was answered before it was on disk")
	}
	try := attempted(mail.Stream, seq, 1)
	must(o.Append(ctx, try))(t)
	if !bytes.Contains(d.onDisk(t, s, MailLog(1)), []byte(try.By.Command.String())) {
		t.Error("an owner's append was answered before it was on disk")
	}
	if _, _, err := s.Claim(ctx, Claim{Account: "acme", Key: "c0ffee", Digest: "d1"}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(d.onDisk(t, s, Once), []byte("c0ffee")) {
		t.Error("a request was claimed before that was on disk")
	}
	if err := s.Schedule(ctx, "send", "e1", time.Now().Add(time.Hour), []byte("timer body")); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(d.onDisk(t, s, Timers), []byte("timer body")) {
		t.Error("a timer was set before it was on disk")
	}
	b := must(s.Bucket(ctx, "keysets"))(t)
	rev := must(b.Update(ctx, "acme", []byte("keyset one"), 0))(t)
	if !bytes.Contains(d.onDisk(t, s, "KV_keysets"), []byte("keyset one")) {
		t.Error("a value was kept before it was on disk")
	}
	must(b.Update(ctx, "acme", []byte("keyset two"), rev))(t)
	if !bytes.Contains(d.onDisk(t, s, "KV_keysets"), []byte("keyset two")) {
		t.Error("a value was replaced before that was on disk")
	}
	_, wait, err := s.PutContent(ctx, "acme", [][]byte{[]byte("sealed body")})
	if err != nil {
		t.Fatal(err)
	}
	if err := wait(ctx); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(d.onDisk(t, s, Content), []byte("sealed body")) {
		t.Error("content was promised before it was on disk")
	}
	c := issued(newKey())
	if err := s.Record(ctx, Access, "acme", []Commit{c}, true); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(d.onDisk(t, s, Access), []byte(c.By.Command.String())) {
		t.Error("a read was put on record before that was on disk")
	}
}

// An append waits as long as its fsync does; a record that nobody waits for does
// not.
func TestAppendWaitsForASlowDisk(t *testing.T) {
	t.Parallel()
	d := &disk{gate: make(chan struct{})}
	s := open(t, d.use)
	var open sync.Once
	release := func() { open.Do(func() { close(d.gate) }) }
	t.Cleanup(release) // Close waits for the last sync
	if err := s.Record(t.Context(), Access, "acme", []Commit{issued(newKey())}, false); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	c := issued(newKey())
	go func() {
		_, err := s.Append(t.Context(), c, 0)
		answered <- err
	}()
	eventually(t, "the fsync has begun", func() bool { return d.calls.Load() > 0 })
	select {
	case err := <-answered:
		t.Fatalf("answered with %v while the fsync was under way", err)
	case <-time.After(50 * time.Millisecond): // what should not happen has no state to wait for
	}
	release()
	if err := soon(t, "the answer", answered); err != nil {
		t.Error(err)
	}
}

// The caller gives up while the disk is slow: it must be told that nothing is
// certain, and a later try must find what was written.
func TestCallerGivesUpWaiting(t *testing.T) {
	t.Parallel()
	d := &disk{gate: make(chan struct{})}
	s := open(t, d.use)
	var open sync.Once
	release := func() { open.Do(func() { close(d.gate) }) }
	t.Cleanup(release)
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	c := issued(newKey())
	go func() {
		_, err := s.Append(ctx, c, 0)
		answered <- err
	}()
	eventually(t, "the fsync has begun", func() bool { return d.calls.Load() > 0 })
	cancel()
	if err := soon(t, "the answer", answered); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	release()
	if got, err := s.Append(t.Context(), c, 0); err != nil || got[0].Seq != 1 {
		t.Errorf("tried again: %+v, %v; want the commit at 1", got, err)
	}
}

// After a failed fsync the kernel may have dropped the bytes, and a later
// success proves nothing. So the first failure ends it.
func TestFailedFsyncIsFailStop(t *testing.T) {
	t.Parallel()
	d := &disk{}
	s := open(t, d.use)
	ctx := t.Context()
	appendKeys(t, s, 1)
	select {
	case <-s.Done():
		t.Fatal("it has stopped before anything failed")
	default:
	}
	d.broken.Store(true)
	var failing sync.WaitGroup
	for range 8 {
		failing.Go(func() {
			if got, err := s.Append(ctx, issued(newKey()), 0); !errors.Is(err, ErrUnavailable) || got != nil {
				t.Errorf("with a broken disk an append said %+v, %v; want ErrUnavailable", got, err)
			}
		})
	}
	failing.Wait()
	soon(t, "the store stops", s.Done())
	if err := s.Err(); !errors.Is(err, errDisk) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("it stopped because of %v, want the disk's error", err)
	}
	d.broken.Store(false) // the disk seems well again; nothing may come of it
	head := must(s.Head(ctx, Ledger))(t)
	if _, err := s.Append(ctx, issued(newKey()), 0); !errors.Is(err, ErrUnavailable) {
		t.Errorf("append: %v, want ErrUnavailable", err)
	}
	if _, err := s.Accept(ctx, []Commit{accepted(newEmail())}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("accept: %v, want ErrUnavailable", err)
	}
	if _, err := s.Own(ctx, 0, "me"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("own: %v, want ErrUnavailable", err)
	}
	if _, _, err := s.PutContent(ctx, "acme", [][]byte{{1}}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("put content: %v, want ErrUnavailable", err)
	}
	if err := s.Healthy(ctx); !errors.Is(err, ErrUnavailable) {
		t.Errorf("health: %v, want ErrUnavailable", err)
	}
	if now := must(s.Head(ctx, Ledger))(t); now != head {
		t.Errorf("the ledger grew from %d to %d after it had stopped", head, now)
	}
}

// Everybody who has the server's answer before a sync begins shares it.
func TestConcurrentAppendsShareFsyncs(t *testing.T) {
	t.Parallel()
	d := &disk{gate: make(chan struct{}, 1)}
	s := open(t, d.use)
	const n = 100
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			if _, err := s.Append(t.Context(), issued(newKey()), 0); err != nil {
				t.Error(err)
			}
		})
	}
	// The first sync is held up until everything is with the server.
	eventually(t, "all are with the server", func() bool { return must(s.Head(t.Context(), Ledger))(t) == n })
	close(d.gate)
	all.Wait()
	if calls := d.calls.Load(); calls > n/4 {
		t.Errorf("%d appends at the same time took %d fsyncs", n, calls)
	}
	// And alone, each takes one of its own.
	before := d.calls.Load()
	appendKeys(t, s, 5)
	if took := d.calls.Load() - before; took != 5 {
		t.Errorf("5 lone appends took %d fsyncs", took)
	}
}

// A batch may begin in one block file and end in the next. Both are on disk when
// it is answered, also if it is the first that is written after the start.
func TestBlockRollover(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	blob := func() []byte {
		b := make([]byte, 6<<20)
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		return b
	}
	for round := range 2 {
		d := &disk{}
		s := open(t, in(dir), d.use)
		for range 2 - round { // only the first write after the start, the second time
			blobs := [][]byte{blob(), blob()}
			refs, wait, err := s.PutContent(t.Context(), "acme", blobs)
			if err != nil {
				t.Fatal(err)
			}
			if err := wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			held := d.onDisk(t, s, Content)
			for i, ref := range refs {
				off := 0
				for _, part := range ref.Parts {
					if !bytes.Contains(held, blobs[i][off:off+part.Len]) {
						t.Errorf("round %d: part %d of blob %d was promised, and was not on disk", round, part.Seq, i)
					}
					off += part.Len
				}
			}
			if n := len(blocks(t, s, Content)); n < 2 {
				t.Fatalf("everything lies in %d block", n)
			}
			// The new block's name has to last, too.
			d.mu.Lock()
			if _, ok := d.synced[s.local.blocks(Content)]; !ok {
				t.Error("the directory of the blocks was not synced")
			}
			d.mu.Unlock()
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Without its description a stream's messages could not be found, so that is on
// disk before the stream is used: of the logs, and of a bucket that is made
// later.
func TestStreamsAreDescribedOnDisk(t *testing.T) {
	t.Parallel()
	d := &disk{}
	s := open(t, d.use)
	must(s.Bucket(t.Context(), "keysets"))(t)
	for _, stream := range append(s.Logs(), Content, Timers, Once, Dead, "KV_keysets") {
		meta := filepath.Join(filepath.Dir(s.local.blocks(stream)), "meta.inf")
		size := must(os.Stat(meta))(t).Size()
		d.mu.Lock()
		for _, name := range []string{meta, filepath.Dir(meta), filepath.Dir(filepath.Dir(meta))} {
			if _, ok := d.synced[name]; !ok {
				t.Errorf("%s was not synced", name)
			}
		}
		if d.synced[meta] != size {
			t.Errorf("of %s %d bytes were synced, want %d", meta, d.synced[meta], size)
		}
		d.mu.Unlock()
	}
}

// With the interval, an answer does not wait for the disk.
func TestIntervalDoesNotSync(t *testing.T) {
	t.Parallel()
	d := &disk{}
	s := open(t, d.use, func(c *Config) { c.Durability = Interval })
	appendKeys(t, s, 3)
	if n := d.calls.Load(); n != 0 || s.Durability() != Interval {
		t.Errorf("%d fsyncs under %q", n, s.Durability())
	}
}

// childDir is set in the environment of the child that TestKill starts.
const childDir = "POSTBOOK_TEST_KILL_DIR"

// TestMain becomes the child that is killed, when it is asked to.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		writeUntilKilled(dir)
		os.Exit(1) // unreachable, unless something failed
	}
	os.Exit(m.Run())
}

// writeUntilKilled appends from many goroutines and prints what was
// acknowledged: the log, the sequence and the command.
func writeUntilKilled(dir string) {
	ctx := context.Background()
	s, err := Open(ctx, Config{Dir: dir, Registry: registry})
	if err != nil {
		fmt.Println("failed:", err)
		return
	}
	said := make(chan string, 1024)
	failed := make(chan error, 16)
	for range 8 {
		go func() {
			for {
				of := newKey()
				c := issued(of)
				got, err := s.Append(ctx, c, 0)
				if err != nil {
					failed <- err
					return
				}
				said <- fmt.Sprintln(of.String(), got[0].Log, got[0].Seq, c.By.Command)
			}
		}()
		go func() {
			for {
				commits := make([]Commit, 10)
				for i := range commits {
					commits[i] = accepted(newEmail())
				}
				got, err := s.Accept(ctx, commits)
				if err != nil {
					failed <- err
					return
				}
				for i, c := range commits {
					said <- fmt.Sprintln(c.Stream.String(), got[i][0].Log, got[i][0].Seq, c.By.Command)
				}
			}
		}()
	}
	for {
		select {
		case line := <-said:
			_, _ = os.Stdout.WriteString(line) // one write: a line is whole, or cut at its end
		case err := <-failed:
			fmt.Println("failed:", err)
			return
		}
	}
}

// The process is killed at random, five times, on the same files. What it said
// was recorded is there, at the sequence that it named, and the log has no
// holes.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acked := map[string]string{}
	for round := range 5 {
		before := len(acked)
		kill(t, dir, acked)
		if len(acked) == before {
			t.Fatalf("round %d: the child acknowledged nothing", round)
		}
		s := open(t, in(dir))
		for _, log := range append(s.MailLogs(), Ledger) {
			head := must(s.Head(t.Context(), log))(t)
			next := uint64(1)
			if head == 0 {
				continue
			}
			err := s.Follow(t.Context(), Following{Log: log, StopAt: head}, func(_ context.Context, entries []Entry) error {
				for _, e := range entries {
					if e.Err != nil {
						return e.Err
					}
					if e.Seq != next {
						return fmt.Errorf("%s has a hole: %d comes before %d", log, next-1, e.Seq)
					}
					next++
					key := fmt.Sprint(log, " ", e.Seq)
					if want, ok := acked[key]; ok && want != e.Events[0].Stream.String()+" "+e.Events[0].ID.String() {
						return fmt.Errorf("%s was acknowledged as %s and holds %s %s", key, want, e.Events[0].Stream, e.Events[0].ID)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			for key := range acked {
				name, seq, _ := strings.Cut(key, " ")
				if n := must(strconv.ParseUint(seq, 10, 64))(t); name == log && n >= next {
					t.Errorf("round %d: %s was acknowledged and is lost; the log ends at %d", round, key, next-1)
				}
			}
		}
		// It goes on as before.
		of := newKey()
		must(Execute(t.Context(), s, apikey.Decider, of, issue()))(t)
		if h := must(s.History(t.Context(), of))(t); len(h) != 1 {
			t.Errorf("round %d: a new key has %d events, want 1", round, len(h))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d commits were acknowledged over 5 kills", len(acked))
}

// kill runs the child until it was killed, and notes what it acknowledged.
func kill(t *testing.T, dir string, acked map[string]string) {
	t.Helper()
	child := exec.Command(os.Args[0], "-test.run=^$")
	child.Env = append(os.Environ(), childDir+"="+dir)
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it does not outlive a test that is interrupted
	out := must(child.StdoutPipe())(t)
	child.Stderr = io.Discard
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	var after *time.Timer
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			break // the last line may be cut: it was not said
		}
		if after == nil {
			// The clock starts when the child writes, so that a slow start does
			// not make a round prove nothing.
			after = time.AfterFunc(time.Duration(50+rand.IntN(350))*time.Millisecond, func() { _ = child.Process.Kill() })
		}
		if strings.HasPrefix(line, "failed:") {
			t.Error("the child " + line)
			continue
		}
		f := strings.Fields(line)
		if len(f) != 4 {
			t.Fatalf("the child said %q", line)
		}
		acked[f[1]+" "+f[2]] = f[0] + " " + f[3]
	}
	if after == nil {
		_ = child.Process.Kill()
	}
	err := child.Wait()
	var ended *exec.ExitError
	if !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child was not killed: %v", err)
	}
}
