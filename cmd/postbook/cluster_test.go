package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
)

// Two processes on a cluster of three NATS servers, under load: a server is killed,
// another is cut off from everybody, one process is killed and started again. Every
// mail that was accepted is in the log once and is delivered; what is delivered
// twice is said to be possible by the log; sending goes on; and the seal is one
// history, whichever host's folder it is looked at with.
func TestTwoProcessesOnACluster(t *testing.T) {
	t.Parallel()
	nats := testenv.StartNATSCluster(t)
	database := testenv.Postgres(t)
	sink := testenv.StartSink(t)
	env := []string{
		"POSTBOOK_NATS_URL=" + nats.URL(), "POSTBOOK_DATABASE_URL=" + database.Owner,
		"POSTBOOK_DELIVERY=relay", "POSTBOOK_RELAY_URL=smtp://" + sink.Addr,
	}
	a := launch(t, env...)
	b := launchBeside(t, a, env...)
	a.says(t, "the partition is another process's from now on")

	load := &clusterLoad{t: t, instances: []*instance{a, b}, accepted: map[string]bool{}, silent: map[*instance]time.Time{}}
	load.start()
	load.goesOn(sink)
	rounds, long := 1, os.Getenv("POSTBOOK_TEST_LONG") != ""
	if long {
		rounds = 10
	}
	for round := range rounds {
		node := max(nats.Leader("MAIL_00"), 0)
		nats.Kill(node)
		load.goesOn(sink)
		nats.Start(node)
		node = max(nats.Leader("MAIL_01"), 0)
		nats.Cut(node)
		if round%2 == 0 {
			b.kill()
			load.goesOn(sink)
			nats.Heal(node)
			b.start("--quiet")
		} else {
			// It stands still, is taken for dead, and comes back believing that it owns
			// what another has taken over.
			b.signal(t, syscall.SIGSTOP)
			load.goesOn(sink)
			b.signal(t, syscall.SIGCONT)
			nats.Heal(node)
		}
		load.goesOn(sink)
	}
	load.stop()
	// The number of partitions changes beside both, which open the log again by
	// themselves.
	if out, err := a.postbook("partitions", "6"); err != nil || !strings.Contains(out, "6") {
		t.Errorf("change the number of partitions: %v\n%s", err, out)
	}
	if out, err := a.postbook("events", "show", "platform.partitioning.emails"); err != nil || strings.Count(out, "partitioning.changed") != 1 {
		t.Errorf("the change is not on record: %v\n%s", err, out)
	}
	a.says(t, "the number of partitions has changed")
	b.says(t, "the number of partitions has changed")
	a.moved()
	b.moved()
	load.start()
	load.goesOn(sink)
	load.stop()

	if long {
		// A recipient whose attempt was interrupted is tried again after about a minute,
		// and after five if it was deferred then.
		testenv.Eventually(t, 15*time.Minute, func() error {
			out, err := a.postbook("events", "check", "--json")
			if err != nil {
				return fmt.Errorf("check: %w\n%s", err, out)
			}
			if !strings.Contains(strings.ReplaceAll(out, " ", ""), `"open":0,`) {
				return fmt.Errorf("emails are open: %s", out)
			}
			return nil
		})
	} else if out, err := a.postbook("events", "check"); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	load.check(nats.URL(), sink, long)
	for name, i := range map[string]*instance{"a": a, "b": b} {
		if out, err := i.postbook("verify", "--log"); err != nil || strings.Count(out, "as it was sealed") != 9 || strings.Contains(out, "NOT") {
			t.Errorf("verify with the seal of %s: %v\n%s", name, err, out)
		}
		if strings.Contains(i.output.String(), "is not as it was sealed") {
			t.Errorf("%s takes the seal for broken:\n%s", name, i.output)
		}
	}
	// The one that signs ends, and the other goes on with the same history.
	a.stop()
	before := load.sealed(t, b)
	for n := range 5 {
		b.lastEvent(b.ask("POST", "/emails", hello(fmt.Sprintf("late%d@rcpt.test", n))).id(t), "delivered")
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		if after := load.sealed(t, b); after <= before {
			return fmt.Errorf("%d entries are sealed, as before", after)
		}
		return nil
	})
	if out, err := a.postbook("verify", "--log"); err != nil || strings.Contains(out, "NOT") {
		t.Errorf("verify with the seal of the host that has stopped: %v\n%s", err, out)
	}
}

// logElsewhere is where a log is that none of the instances keeps itself, until the
// test ends.
func logElsewhere(t *testing.T) (url string) {
	t.Helper()
	store, err := eventstore.Open(t.Context(), eventstore.Config{Dir: t.TempDir(), Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store.URL()
}

// A process with other keys than the rest is told so, and does nothing.
func TestKeysOfAnotherPlatformAreRefused(t *testing.T) {
	t.Parallel()
	database := testenv.Postgres(t)
	env := []string{"POSTBOOK_NATS_URL=" + logElsewhere(t), "POSTBOOK_DATABASE_URL=" + database.Owner, "POSTBOOK_HTTP_ADDR=127.0.0.1:0", "POSTBOOK_SMTP_ADDR=127.0.0.1:0"}
	first := launch(t, env...)
	stranger := &instance{t: t, dir: t.TempDir(), env: env}
	if out, err := stranger.postbook("serve"); err == nil || !strings.Contains(out, "copy mark.key from one of them") {
		t.Errorf("a process with a mark key of its own: %v\n%s", err, out)
	}
	// The data directory is one process's.
	twin := &instance{t: t, dir: first.dir, env: env}
	if out, err := twin.postbook("serve"); err == nil || !strings.Contains(out, "is kept by another process") {
		t.Errorf("a second process in the same directory: %v\n%s", err, out)
	}
	if health := first.ask("GET", "/health", nil); !strings.Contains(health.String(), "sync_interval") {
		t.Errorf("health does not say what an answer promises: %s", health)
	}
}

// A root key in a file is replaced only where every host reads that file: another
// one would go on with the key that is about to be destroyed.
func TestTheRootKeyOfSeveralHosts(t *testing.T) {
	t.Parallel()
	env := []string{"POSTBOOK_NATS_URL=" + logElsewhere(t), "POSTBOOK_DATABASE_URL=" + testenv.Postgres(t).Owner, "POSTBOOK_HOSTNAME=a.host.test"}
	a := launch(t, env...)
	env[2] = "POSTBOOK_HOSTNAME=b.host.test"
	b := launchBeside(t, a, env...)
	before := rootKeyOf(t, a)
	if out, err := a.postbook("rotate", "kek"); err == nil || !strings.Contains(out, "b.host.test reads another file") {
		t.Errorf("replaced beside a host that has a copy: %v\n%s", err, out)
	}
	if rootKeyOf(t, a) != before {
		t.Error("the key was replaced")
	}
	if out, err := a.postbook("events", "show", "platform.kek.root"); err == nil && strings.Contains(out, "kek.rotation_started") {
		t.Errorf("a rotation was begun:\n%s", out)
	}
	b.lastEvent(b.ask("POST", "/emails", hello("copy@rcpt.test")).id(t), "delivered")

	b.stop()
	b.env = append(b.env, "POSTBOOK_ROOT_KEY="+filepath.Join(a.dir, "root.key"))
	b.start("--quiet")
	if out, err := a.postbook("rotate", "kek"); err != nil {
		t.Errorf("replace the key that both hosts read: %v\n%s", err, out)
	}
	if rootKeyOf(t, a) == before {
		t.Error("the key was not replaced")
	}
	for _, i := range []*instance{a, b} {
		i.lastEvent(i.ask("POST", "/emails", hello("shared@rcpt.test")).id(t), "delivered")
	}
}

func rootKeyOf(t *testing.T, i *instance) string {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(i.dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	return string(key)
}

func (i *instance) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := i.cmd.Process.Signal(s); err != nil {
		t.Fatalf("%v\n%s", err, i.output)
	}
}

// moved waits until an instance has started again by itself, and learns where.
func (i *instance) moved() {
	i.t.Helper()
	before := i.facts.BaseURL
	testenv.Eventually(i.t, 40*time.Second, func() error {
		err := i.learn()
		if err == nil && i.facts.BaseURL == before {
			err = errors.New("it has not ended yet")
		}
		return err
	})
}

func (i *instance) says(t *testing.T, what string) {
	t.Helper()
	testenv.Eventually(t, 40*time.Second, func() error {
		if !strings.Contains(i.output.String(), what) {
			return fmt.Errorf("it does not say %q:\n%s", what, i.output)
		}
		return nil
	})
}

// clusterLoad sends from clients that ask whichever instance answers: one that has
// not is left alone for a while, as by what shares out requests among hosts.
type clusterLoad struct {
	t         testing.TB
	instances []*instance
	cancel    context.CancelFunc
	clients   sync.WaitGroup

	mu         sync.Mutex
	accepted   map[string]bool
	unanswered int
	silent     map[*instance]time.Time // since when
}

func (l *clusterLoad) start() {
	ctx, cancel := context.WithCancel(l.t.Context())
	l.cancel = cancel
	for c := range 4 {
		l.clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.send(ctx, l.next(c+n), fmt.Sprintf("c%d-n%d@rcpt.test", c, n))
			}
		})
	}
}

// next is the instance that is asked next.
func (l *clusterLoad) next(n int) *instance {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.instances {
		i := l.instances[(n+k)%len(l.instances)]
		if time.Since(l.silent[i]) > 5*time.Second {
			return i
		}
	}
	return l.instances[n%len(l.instances)]
}

func (l *clusterLoad) send(ctx context.Context, i *instance, to string) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	r, err := i.try(ctx, "POST", "/emails", hello(to))
	if err != nil || r.status/100 != 2 {
		l.mu.Lock()
		l.unanswered++
		if errors.Is(err, context.DeadlineExceeded) {
			l.silent[i] = time.Now()
		}
		l.mu.Unlock()
		select {
		case <-time.After(50 * time.Millisecond): // as a polite client
		case <-ctx.Done():
		}
		return
	}
	l.mu.Lock()
	l.accepted[r.id(l.t)] = true
	l.mu.Unlock()
}

func (l *clusterLoad) stop() {
	l.cancel()
	l.clients.Wait()
}

// goesOn waits until more was accepted, and more was delivered.
func (l *clusterLoad) goesOn(sink *testenv.Sink) {
	l.t.Helper()
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.accepted)
	}
	accepted, delivered := count(), sink.Total()
	l.t.Logf("%d mails accepted, %d delivered", accepted, delivered)
	testenv.Eventually(l.t, 60*time.Second, func() error {
		if a, d := count()-accepted, sink.Total()-delivered; a < 30 || d < 30 {
			return fmt.Errorf("%d mails were accepted since, and %d delivered\n%s\n%s", a, d, l.instances[0].output, l.instances[1].output)
		}
		return nil
	})
}

// check holds what was acknowledged and what arrived against the log: if all have
// ended, each mail has arrived.
func (l *clusterLoad) check(url string, sink *testenv.Sink, ended bool) {
	l.t.Helper()
	store, err := eventstore.Open(l.t.Context(), eventstore.Config{URL: url, Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		l.t.Fatal(err)
	}
	defer store.Close()
	begun := map[string]int{}
	for _, log := range store.MailLogs() {
		head, err := store.Head(l.t.Context(), log)
		if err != nil {
			l.t.Fatal(err)
		}
		if head == 0 {
			continue
		}
		err = store.Follow(l.t.Context(), eventstore.Following{Log: log, StopAt: head}, func(_ context.Context, entries []eventstore.Entry) error {
			for _, e := range entries {
				for _, rec := range e.Events {
					if _, ok := rec.Event.(email.Accepted); ok {
						begun[rec.Stream.ID]++
					}
				}
			}
			return nil
		})
		if err != nil {
			l.t.Fatal(err)
		}
	}
	history := outcomesOf(l.t, store)
	taken := map[string]int{}
	for key, times := range sink.Taken() {
		id, _, _ := strings.Cut(key, "@") // of the Message-ID
		taken[id] += times
	}
	duplicates := 0
	for id := range l.accepted {
		n, h := taken[id], history[id]
		switch {
		case begun[id] != 1:
			l.t.Errorf("%s was acknowledged, and is in the log %d times", id, begun[id])
		case ended && n == 0 && !h.failed:
			l.t.Errorf("%s was accepted and never delivered", id)
		case n > 1+h.unknown:
			l.t.Errorf("%s was delivered %d times, and the log knows of %d unknown outcomes", id, n, h.unknown)
		}
		duplicates += max(0, n-1)
	}
	l.t.Logf("%d mails accepted, %d requests without a 2xx, %d deliveries, %d duplicates that the log knows of", len(l.accepted), l.unanswered, sink.Total(), duplicates)
}

// sealed is how many entries an instance's seal covers, of all logs.
func (l *clusterLoad) sealed(t *testing.T, i *instance) (total int) {
	t.Helper()
	out, err := i.postbook("verify", "--log")
	if err != nil {
		t.Fatalf("verify: %v\n%s", err, out)
	}
	for line := range strings.Lines(out) {
		var entries, n int
		if _, after, ok := strings.Cut(line, "as it was sealed: "); ok {
			if _, err := fmt.Sscanf(after, "%d entries, %d sealed", &entries, &n); err == nil {
				total += n
			}
		}
	}
	return total
}

// What one host has backed up moves to a cluster of NATS servers and a PostgreSQL
// elsewhere: each mail answers as before, and the seal goes on.
func TestABackupIsRestoredIntoACluster(t *testing.T) {
	t.Parallel()
	i := launch(t)
	mails := map[string]string{}
	for n := range 12 {
		to := fmt.Sprintf("moved%d@rcpt.test", n)
		id := i.ask("POST", "/emails", hello(to)).id(t)
		mails[id] = to
		i.lastEvent(id, "delivered")
	}
	path := i.backup(t, t.TempDir(), "--with-keys")
	i.stop()

	nats := testenv.StartNATSCluster(t)
	there := i.elsewhere(t)
	there.env = []string{"POSTBOOK_NATS_URL=" + nats.URL(), "POSTBOOK_DATABASE_URL=" + testenv.Postgres(t).Owner}
	if out, err := there.postbook("restore", path, "--replicas", "3"); err != nil || strings.Contains(out, "NOT") {
		t.Fatalf("restore: %v\n%s", err, out)
	}
	stranger := i.elsewhere(t)
	stranger.env = there.env
	if out, err := stranger.postbook("restore", path); err == nil || !strings.Contains(out, "is into an empty NATS server") {
		t.Errorf("restored over a cluster that is in use: %v\n%s", err, out)
	}
	i.give(t, there, keptFile)
	there.start("--quiet")
	for id, to := range mails {
		there.lastEvent(id, "delivered")
		var mail struct {
			To   []string
			Text string
		}
		there.ask("GET", "/emails/"+id, nil).decode(t, &mail)
		if len(mail.To) != 1 || mail.To[0] != to || mail.Text != "Hello." {
			t.Errorf("%s answers %+v", id, mail)
		}
	}
	there.lastEvent(there.ask("POST", "/emails", hello("new@rcpt.test")).id(t), "delivered")
	if health := there.ask("GET", "/health", nil); !strings.Contains(health.String(), "3 copies") {
		t.Errorf("the streams are not kept three times: %s", health)
	}
	for _, args := range [][]string{{"events", "check"}, {"verify", "--log"}} {
		if out, err := there.postbook(args...); err != nil || strings.Contains(out, "NOT") {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	nats.Kill(max(nats.Leader("MAIL_00"), 0))
	var after reply
	testenv.Eventually(t, 30*time.Second, func() error { // 503 while the others elect a leader
		if after = there.ask("POST", "/emails", hello("after@rcpt.test"), "Idempotency-Key", "after"); after.status != 200 {
			return fmt.Errorf("a mail after a server was lost: %s", after)
		}
		return nil
	})
	there.lastEvent(after.id(t), "delivered")
}
