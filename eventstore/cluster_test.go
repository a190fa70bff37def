package eventstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/internal/testenv"
)

// onCluster opens a log that three servers keep.
func onCluster(t testing.TB, c *testenv.NATSCluster) *Store {
	t.Helper()
	return open(t, func(cfg *Config) { cfg.URL, cfg.Partitions = c.URL(), 2 })
}

// longRun is set for tests that may take minutes.
var longRun = os.Getenv("POSTBOOK_TEST_LONG") != ""

// A cluster keeps the store's contract while its servers go and come, one after
// the other: what was acknowledged is in the log, once; followers see it in order
// and by themselves; a claim is one request's; an owner that was fenced stays so.
func TestClusterLosesServers(t *testing.T) {
	t.Parallel()
	c := testenv.StartNATSCluster(t)
	s := onCluster(t, c)
	if s.Replicas() != 3 {
		t.Fatalf("%d servers keep each stream, want 3", s.Replicas())
	}
	followed := follow(t, s, MailLog(0))
	rounds := 2
	if longRun {
		rounds = 30
	}
	w := &clusterLoad{t: t, s: s, accepted: map[string]bool{}, commits: map[string]int{}}
	w.start()
	w.goesOn(0)
	for round := range rounds {
		before := w.count()
		node := c.Leader(MailLog(0))
		if node < 0 {
			node = rand.IntN(3)
		}
		switch round % 3 {
		case 0:
			c.Kill(node)
			w.goesOn(before)
			c.Start(node)
		case 1:
			c.Cut(node)
			w.goesOn(before)
			c.Heal(node)
		case 2:
			c.CutOff(node)
			w.goesOn(before)
			c.Heal(node)
		}
		w.goesOn(w.count())
	}
	w.stop()
	w.check(followed)
}

// clusterLoad accepts emails and decides about them, and remembers what was
// acknowledged.
type clusterLoad struct {
	t       testing.TB
	s       *Store
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	accepted map[string]bool
	commits  map[string]int // of an email, by its owner
	keys     int
	failed   int
}

func (w *clusterLoad) start() {
	ctx, cancel := context.WithCancel(w.t.Context())
	w.cancel = cancel
	for range 4 {
		w.running.Go(func() { w.acceptUntil(ctx) })
	}
	for p := range w.s.Partitions() {
		w.running.Go(func() { w.ownUntil(ctx, p) })
	}
	w.running.Go(func() { w.issueUntil(ctx) })
}

func (w *clusterLoad) stop() {
	w.cancel()
	w.running.Wait()
}

func (w *clusterLoad) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.accepted)
}

// goesOn waits until some more was acknowledged.
func (w *clusterLoad) goesOn(from int) {
	w.t.Helper()
	testenv.Eventually(w.t, 40*time.Second, func() error {
		if n := w.count(); n < from+20 {
			return fmt.Errorf("%d emails were accepted since", n-from)
		}
		return nil
	})
}

func (w *clusterLoad) acceptUntil(ctx context.Context) {
	for ctx.Err() == nil {
		of := newEmail()
		commit := accepted(of)
		for try := 0; try < 3; try++ { // as a client does with an idempotency key
			_, err := w.s.Accept(ctx, []Commit{commit})
			if err == nil {
				w.mu.Lock()
				w.accepted[of.ID] = true
				w.mu.Unlock()
				break
			}
			if !errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
				w.t.Errorf("accept: %v", err)
				return
			}
			w.mu.Lock()
			w.failed++
			w.mu.Unlock()
		}
	}
}

// ownUntil writes a chain of commits of one email, under a claim that nobody
// contests: it must never be told that it is fenced.
func (w *clusterLoad) ownUntil(ctx context.Context, partition int) {
	o, err := w.s.Own(ctx, partition, "owner")
	for errors.Is(err, ErrUnavailable) && ctx.Err() == nil { // as a dispatcher does
		o, err = w.s.Own(ctx, partition, "owner")
	}
	if err != nil {
		w.t.Errorf("own: %v", err)
		return
	}
	var both sync.WaitGroup
	defer both.Wait()
	for range 2 { // emails of one partition are worked on side by side
		of := emailIn(w.s, partition)
		first, err := w.s.Accept(ctx, []Commit{accepted(of)})
		if err != nil && ctx.Err() == nil {
			w.t.Errorf("accept: %v", err)
			return
		}
		both.Go(func() {
			last := first[0][0].Seq
			for n := 1; ctx.Err() == nil; n++ {
				commit := attempted(of, last, n)
				for ctx.Err() == nil {
					recorded, err := o.Append(ctx, commit)
					if err == nil {
						last = recorded[0][0].Seq
						w.mu.Lock()
						w.commits[of.ID] = n
						w.mu.Unlock()
						break
					}
					if !errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
						w.t.Errorf("append: %v", err)
						return
					}
				}
			}
		})
	}
}

func (w *clusterLoad) issueUntil(ctx context.Context) {
	for ctx.Err() == nil {
		of, command := newKey(), issue()
		for ctx.Err() == nil {
			if _, err := Execute(ctx, w.s, apikey.Decider, of, command); err == nil {
				w.mu.Lock()
				w.keys++
				w.mu.Unlock()
				break
			} else if !errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
				w.t.Errorf("issue: %v", err)
				return
			}
		}
	}
}

// check reads the logs from their beginning.
func (w *clusterLoad) check(followed func(head uint64) int) {
	w.t.Helper()
	ctx := w.t.Context()
	begun, commits, total := map[string]int{}, map[string]int{}, map[string]int{}
	ids := map[uuid.UUID]bool{}
	for _, log := range w.s.MailLogs() {
		var head uint64
		testenv.Eventually(w.t, 20*time.Second, func() (err error) {
			head, err = w.s.Head(ctx, log)
			return err
		})
		err := w.s.Follow(ctx, Following{Log: log, StopAt: head}, func(_ context.Context, entries []Entry) error {
			for _, e := range entries {
				for _, rec := range e.Events {
					if ids[rec.ID] {
						w.t.Errorf("the event %s is there twice, the second time at %s %d", rec.ID, e.Log, e.Seq)
					}
					ids[rec.ID] = true
					if rec.Prev == 0 {
						begun[rec.Stream.ID]++
					} else {
						commits[rec.Stream.ID]++
					}
				}
				total[e.Log]++
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
		if log == MailLog(0) {
			if n := followed(head); n != int(head) {
				w.t.Errorf("a follower has seen %d of %d entries", n, head)
			}
		}
	}
	for id := range w.accepted {
		if begun[id] != 1 {
			w.t.Errorf("%s was acknowledged, and is in the log %d times", id, begun[id])
		}
	}
	for id, n := range w.commits {
		if commits[id] < n || commits[id] > n+1 { // the last may have been on its way
			w.t.Errorf("%d commits of %s were acknowledged, and %d are in the log", n, id, commits[id])
		}
	}
	w.t.Logf("%d emails accepted, %d tries without an answer, %d keys issued, %d entries", len(w.accepted), w.failed, w.keys, total[MailLog(0)]+total[MailLog(1)])
}

// follow counts the entries that one follower is handed, which has to be all of
// them in order, and never ends by itself.
func follow(t testing.TB, s *Store, log string) (seen func(head uint64) int) {
	t.Helper()
	var mu sync.Mutex
	var last uint64
	n := 0
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Follow(ctx, Following{Log: log}, func(_ context.Context, entries []Entry) error {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range entries {
				if e.Seq != last+1 {
					return fmt.Errorf("%s %d comes after %d", log, e.Seq, last)
				}
				last = e.Seq
				n++
			}
			return nil
		})
	}()
	return func(head uint64) int {
		defer cancel()
		testenv.Eventually(t, 60*time.Second, func() error {
			select {
			case err := <-ended:
				t.Fatalf("the follower has ended: %v", err)
			default:
			}
			mu.Lock()
			defer mu.Unlock()
			if last < head {
				return fmt.Errorf("it has seen %d of %d", last, head)
			}
			return nil
		})
		mu.Lock()
		defer mu.Unlock()
		return min(n, int(head))
	}
}

// What else the store does, on three servers.
func TestClusterKeepsTheContract(t *testing.T) {
	t.Parallel()
	c := testenv.StartNATSCluster(t)
	s := onCluster(t, c)
	other := onCluster(t, c)
	ctx := t.Context()

	// Of many who decide at once, each is answered, and none is lost.
	of := newKey()
	must(Execute(ctx, s, apikey.Decider, of, issue()))(t)
	if _, err := s.Append(ctx, issued(of), 0); !errors.Is(err, ErrConflict) {
		t.Errorf("an append that expects nothing to be there: %v; want ErrConflict", err)
	}
	// A claim is one request's, whichever process it came to.
	request := Claim{Account: "acme", Key: "00ff", Digest: "aa", IDs: []uuid.UUID{uuid.New()}, At: at}
	wins := make(chan bool, 8)
	var all sync.WaitGroup
	for i := range cap(wins) {
		all.Go(func() {
			_, won, err := []*Store{s, other}[i%2].Claim(ctx, request)
			if err != nil {
				t.Errorf("claim: %v", err)
			}
			wins <- won
		})
	}
	all.Wait()
	close(wins)
	won := 0
	for w := range wins {
		if w {
			won++
		}
	}
	if won != 1 {
		t.Errorf("%d of 8 got the claim", won)
	}
	// Whoever claims later fences, also an owner that is busy.
	mail := emailIn(s, 1)
	seq := must(s.Accept(ctx, []Commit{accepted(mail)}))(t)[0][0].Seq
	first := must(s.Own(ctx, 1, "first"))(t)
	seq = must(first.Append(ctx, attempted(mail, seq, 1)))(t)[0][0].Seq
	second := must(other.Own(ctx, 1, "second"))(t)
	if _, err := first.Append(ctx, attempted(mail, seq, 2)); !errors.Is(err, ErrFenced) {
		t.Errorf("the first owner is told %v; want ErrFenced", err)
	}
	must(second.Append(ctx, attempted(mail, seq, 2)))(t)

	b, theirs := must(s.Bucket(ctx, "try"))(t), must(other.Bucket(ctx, "try"))(t)
	revision := must(b.Update(ctx, "a", []byte("one"), 0))(t)
	if v, r, err := theirs.Get(ctx, "a"); err != nil || string(v) != "one" || r != revision {
		t.Errorf("another process reads %q, %d, %v just after the write", v, r, err)
	}
	if _, err := theirs.Update(ctx, "a", nil, 0); !errors.Is(err, ErrConflict) {
		t.Errorf("a late update is told %v; want ErrConflict", err)
	}
	if err := theirs.Delete(ctx, "a", revision); err != nil {
		t.Error(err)
	}
	if _, _, err := b.Get(ctx, "a"); !errors.Is(err, ErrNoEntry) {
		t.Errorf("a deleted value: %v; want ErrNoEntry", err)
	}

	refs, wait, err := s.PutContent(ctx, "acme", [][]byte{[]byte("hello"), make([]byte, 2<<20)})
	if err == nil {
		err = wait(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := must(other.Content(ctx, refs[0]))(t); string(got) != "hello" {
		t.Errorf("the content reads %q", got)
	}
	due := must(other.Subscriber(SubscriberConfig{Group: "due"}).Subscribe(ctx, Timers+"/"+DueTimers("try")))(t)
	if err := s.Schedule(ctx, "try", "one", time.Now().Add(100*time.Millisecond), []byte("x")); err != nil {
		t.Fatal(err)
	}
	m := soon(t, "the timer", due)
	m.Ack()
}

// A stream that had one copy gets three, and what has three keeps them.
func TestClusterRaisesReplicas(t *testing.T) {
	t.Parallel()
	c := testenv.StartNATSCluster(t)
	s := open(t, func(cfg *Config) { cfg.URL, cfg.Partitions, cfg.Replicas = c.URL(), 1, 1 })
	must(s.Accept(t.Context(), []Commit{accepted(newEmail())}))(t)
	for _, asked := range []int{3, 1} {
		s := open(t, func(cfg *Config) { cfg.URL, cfg.Replicas = c.URL(), asked })
		for _, log := range s.Logs() {
			stream := must(s.js.Stream(t.Context(), log))(t)
			if n := stream.CachedInfo().Config.Replicas; n != 3 {
				t.Errorf("with %d asked for, %s has %d copies, want 3", asked, log, n)
			}
		}
	}
}

// A process that trims a stream and dies in the middle leaves it bounded: another
// one takes the bound away by itself, and so does whoever opens the log.
func TestClusterTakesALeftOverBoundAway(t *testing.T) {
	t.Parallel()
	c := testenv.StartNATSCluster(t)
	s := onCluster(t, c)
	s.bindAsIfTrimmed(t)
	eventually(t, "the bound is taken away", func() bool { return !s.bounded(t) })
	s.bindAsIfTrimmed(t)
	onCluster(t, c)
	if s.bounded(t) {
		t.Error("the log was opened, and its stream is still bounded")
	}
}

// A worker that subscribes while a cluster has no leader waits for one.
func TestSubscribeWhileNobodyLeads(t *testing.T) {
	t.Parallel()
	c := testenv.StartNATSCluster(t)
	s := onCluster(t, c)
	recorded := must(s.Append(t.Context(), issued(newKey()), 0))(t)
	c.Kill(0)
	c.Kill(1)
	messages := subscribe(t, s.Subscriber(SubscriberConfig{Group: "workers"}), Ledger+"/"+LedgerSubject("apikey"))
	c.Start(0)
	c.Start(1)
	m := soon(t, "the event", messages)
	if m.UUID != recorded[0].ID.String() {
		t.Errorf("message %s comes, want %s", m.UUID, recorded[0].ID)
	}
	m.Ack()
}

// So it is beside an embedded server, which does not end with whoever trims.
func TestAServerTakesALeftOverBoundAway(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.bindAsIfTrimmed(t)
	eventually(t, "the bound is taken away", func() bool { return !s.bounded(t) })
}

func (s *Store) bounded(t *testing.T) bool {
	held := must(s.js.Stream(t.Context(), MailLog(0)))(t).CachedInfo().Config
	return held.Discard != jetstream.DiscardNew || held.MaxMsgs > 0
}

func (s *Store) bindAsIfTrimmed(t *testing.T) {
	t.Helper()
	left := must(s.js.Stream(t.Context(), MailLog(0)))(t).CachedInfo().Config
	left.Discard, left.MaxMsgs = jetstream.DiscardOld, 1000
	must(s.js.UpdateStream(t.Context(), left))(t)
	if !s.bounded(t) {
		t.Fatal("the stream is not bounded")
	}
}

// An email is found where the number of partitions of its time puts it.
func TestRepartition(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, in(dir), func(c *Config) { c.Partitions = 2 })
	drawn := func() domain.Stream {
		return domain.Stream{Account: "acme", Kind: "email", ID: uuid.Must(uuid.NewV7()).String()}
	}
	before := map[string]domain.Position{}
	note := func(s *Store) {
		for range 30 {
			of := drawn()
			before[of.ID] = must(s.Accept(t.Context(), []Commit{accepted(of)}))(t)[0][0].Position
		}
	}
	note(s)
	for _, n := range []int{8, 3} {
		since := must(s.Repartition(t.Context(), n))(t)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the new number holds", func() bool { return time.Now().After(since) })
		s = open(t, in(dir))
		if s.Partitions() != 8 || len(s.MailLogs()) != 8 {
			t.Errorf("%d partitions are owned, want 8: what lies in each still has to be sent", s.Partitions())
		}
		note(s)
		used := map[string]bool{}
		for id, at := range before {
			if log := MailLog(s.Partition(uuid.MustParse(id))); log != at.Log {
				t.Errorf("with %d partitions, %s is looked for in %s and lies in %s", n, id, log, at.Log)
			}
			used[at.Log] = true
		}
		if len(used) < 6 {
			t.Errorf("90 emails lie in %v", used)
		}
	}
}

// A process that has not heard of a change does not put emails where nobody looks
// for them.
func TestRepartitionBesideOthers(t *testing.T) {
	t.Parallel()
	host := open(t)
	s := open(t, func(c *Config) { c.URL = host.URL() })
	other := open(t, func(c *Config) { c.URL = host.URL() })
	since := must(s.Repartition(t.Context(), 8))(t)
	if left := time.Until(since); left < 2*trustFor {
		t.Errorf("the new number holds in %s: others may not have heard of it", left)
	}
	soon(t, "the others hear of it", other.Repartitioned())
	late, ms := uuid.Must(uuid.NewV7()), since.UnixMilli()
	for i := range 6 {
		late[i] = byte(ms >> (40 - 8*i))
	}
	of := domain.Stream{Account: "acme", Kind: "email", ID: late.String()}
	if _, err := other.Accept(t.Context(), []Commit{accepted(of)}); !errors.Is(err, ErrRepartitioned) {
		t.Errorf("an email of the new time is taken in by the old number: %v", err)
	}
	again := open(t, func(c *Config) { c.URL = host.URL() })
	if got := must(again.Accept(t.Context(), []Commit{accepted(of)}))(t)[0][0].Log; got != MailLog(spread(late, 8)) {
		t.Errorf("it lies in %s", got)
	}
}

func TestEpochsAreRead(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"4", "4,16@1764000000000", "4,16@1764000000000,8@1764000000001"} {
		epochs, err := parseEpochs(text)
		if err != nil || formatEpochs(epochs) != text {
			t.Errorf("%q reads %v, %v", text, epochs, err)
		}
	}
	for _, text := range []string{"", "x", "0", "101", "4@1764000000000", "4,16", "4,16@x", "4,16@5,8@5"} {
		if epochs, err := parseEpochs(text); err == nil {
			t.Errorf("%q reads %v", text, epochs)
		}
	}
}

// A cluster may put a consumer on a server that is gone. Whoever follows a log asks for
// another, which lies elsewhere, and does not end.
func TestAConsumerOnALostServerIsNoEnd(t *testing.T) {
	t.Parallel()
	for code, forGood := range map[jetstream.ErrorCode]bool{codeConsumerOffline: false, codeOffline: false, codeNoLeader: false, jetstream.JSErrCodeStreamNotFound: true} {
		err := fmt.Errorf("%w: follow MAIL_00: %w", ErrUnavailable, &jetstream.APIError{ErrorCode: code})
		if got := refusedForGood(err); got != forGood {
			t.Errorf("an answer %d is for good: %v, want %v", code, got, forGood)
		}
	}
}
