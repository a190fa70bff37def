// Package eventstore keeps the log: every fact, in the order it was recorded,
// on NATS JetStream. It appends, it reads back, and it never edits.
//
// One command is one message: the one to n events of one aggregate. Facts of
// few, long-lived aggregates lie on one subject each, and the subject's last
// sequence is their lock. Emails lie on a few partitions; the process that owns
// a partition is their lock.
package eventstore

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain"
)

// The names of the logs. Emails lie on the logs that MailLog names.
const (
	Ledger  = "LEDGER"  // facts of every aggregate that is not an email
	Asked   = "ASKED"   // refused commands, with their answers
	Access  = "ACCESS"  // every read
	Content = "CONTENT" // sealed bodies and attachments
	Timers  = "TIMERS"  // what is due later
	Dead    = "DEAD"    // what workers gave up on
	Once    = "ONCE"    // which requests have been answered already
)

// MailLog is the log of one partition of the emails, such as "MAIL_00".
func MailLog(partition int) string { return fmt.Sprintf("MAIL_%02d", partition) }

// Durability is what an answer of the embedded log promises about the disk.
type Durability string

// The durabilities. An external cluster has its own, and this setting does not
// reach it.
const (
	Fsync    Durability = "fsync"    // on disk before it is acknowledged
	Interval Durability = "interval" // handed to the kernel; on disk within syncInterval
)

var (
	// ErrConflict says that the aggregate has moved on since it was read.
	ErrConflict = errors.New("eventstore: the aggregate has moved on")
	// ErrFenced says that somebody else has claimed the partition.
	ErrFenced = errors.New("eventstore: the partition has another owner")
	// ErrNoEntry says that the log holds nothing there.
	ErrNoEntry = errors.New("eventstore: no such entry")
	// ErrUnavailable says that the server cannot be reached, or does not write.
	// Whether the facts were recorded is then unknown until the log is read.
	ErrUnavailable = errors.New("eventstore: the log is not available")
)

// Config says where the log is and how it is kept.
type Config struct {
	Dir        string           // holds the embedded server's data; used when URL is empty
	URL        string           // of the servers of a NATS cluster, by commas; empty runs a server in this process
	Durability Durability       // of the embedded server; empty is Fsync
	Partitions int              // of the emails, when the log is created; 0 is what it has, or 4
	Port       int              // the embedded server listens here on 127.0.0.1; 0 is any free port
	Replicas   int              // of each stream; 0 is 3 in a cluster, and else 1
	MaxBytes   int64            // a log that would grow beyond this refuses new entries; 0 is no limit but the disk
	Recognise  time.Duration    // the embedded server recognises an email's commit that comes again for so long; 0 is 30 s
	Archive    Archive          // holds what has left the streams; nil if nothing does
	MarkKey    []byte           // entries are marked as this platform's own with it; nil marks none
	Registry   *domain.Registry // what events are written and read with
	Log        *slog.Logger     // nil is slog.Default
	Now        func() time.Time // nil is time.Now

	// Refused is told of each command that Execute refuses; nil if nobody asks.
	Refused func(ctx context.Context, of domain.Stream, c domain.Command, r *domain.Refusal)

	// Appended is told of each append when it has its answer: to which kind of log
	// (LEDGER, MAIL, ACCESS or ASKED), how long it took, and what was recorded, or
	// why nothing was; nil if nobody counts.
	Appended func(log string, took time.Duration, recorded []domain.Recorded, err error)

	fsync func(*os.File) error // tests count, delay and fail it
}

// ackTimeout bounds the wait for the server's answer to one append.
const ackTimeout = 10 * time.Second

// Store is an open log. Its methods may be called from many goroutines.
type Store struct {
	cfg     Config
	links   [links]link
	nc      *nats.Conn          // of askLink
	js      jetstream.JetStream // of askLink
	local   *embedded           // nil when the log is elsewhere
	url     string
	streams sync.Map // name → jetstream.Stream
	recent  *recent
	content *lately // written or read
	chained *lately // read

	trimming sync.RWMutex // held while a stream is trimmed, and by what this process appends

	epochs        []Epoch
	learned       atomic.Int64 // when they were looked at last, in nanoseconds
	repartition   sync.Once
	repartitioned chan struct{}

	stopWatching context.CancelFunc
	watching     sync.WaitGroup

	syncing sync.Mutex
	syncers map[string]*syncer

	failing sync.Once
	done    chan struct{}
	err     error // set before done is closed
}

// Open connects to the log, or starts the server that holds it, and creates
// the streams that are not there yet.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Registry == nil {
		return nil, errors.New("eventstore: open: a registry of events is needed")
	}
	if c.Durability == "" {
		c.Durability = Fsync
	}
	if c.Durability != Fsync && c.Durability != Interval {
		return nil, fmt.Errorf("eventstore: durability is %q; it can be %q or %q", c.Durability, Fsync, Interval)
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.fsync == nil {
		c.fsync = fdatasync
	}
	s := &Store{cfg: c, url: c.URL, recent: newRecent(), syncers: map[string]*syncer{}, done: make(chan struct{}), repartitioned: make(chan struct{})}
	s.content, s.chained = newLately(latelyContent, s.Read), newLately(latelyChained, s.Read)
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if err := s.reach(); err != nil {
		return err
	}
	if err := s.untilElected(ctx, electionTime, s.createStreams); err != nil {
		return err
	}
	watching, cancel := context.WithCancel(context.Background())
	s.stopWatching = cancel
	if s.local == nil {
		s.watchServers(watching)
	}
	s.watching.Go(func() { s.keepLearning(watching) })
	names := make([]string, 0, 16)
	for _, c := range s.streamConfigs() {
		names = append(names, c.Name)
	}
	return s.startSyncing(names...)
}

// reach starts the embedded server, if it is that, and connects.
func (s *Store) reach() (err error) {
	options := []nats.Option{nats.Name("postbook"), nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond)}
	// Whoever waits learns of it from their own call. Without this the client prints it.
	options = append(options, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		s.cfg.Log.Debug("connection to the log", "error", err)
	}))
	if s.cfg.URL == "" {
		s.local, err = startServer(s.cfg)
		if err != nil {
			return err
		}
		s.url = s.local.url()
		options = append(options, nats.UserInfo(serverUser, s.local.password), nats.InProcessServer(s.local.server))
	} else {
		options = append(options, external()...)
	}
	for i := range s.links {
		if s.links[i], err = connect(s.url, options); err != nil {
			return err
		}
	}
	s.nc, s.js = s.links[0].nc, s.links[0].js
	s.settleReplicas()
	return nil
}

// startSyncing makes what describes new streams durable, which the server leaves
// to chance, and starts their syncers: before anything is written, so that they
// know in which block that will begin.
func (s *Store) startSyncing(streams ...string) error {
	if s.local == nil || s.cfg.Durability != Fsync {
		return nil
	}
	if err := s.local.syncTree(s.cfg.fsync); err != nil {
		return fmt.Errorf("eventstore: sync the data directory: %w: %w", ErrUnavailable, err)
	}
	for _, name := range streams {
		s.syncer(name)
	}
	return nil
}

// A link is one connection. What is read in bulk, what is asked, and what is
// written have their own, so that an answer which somebody waits for does not
// stand in line behind a thousand entries for a read model.
type link struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	unbroken *unbroken
}

// The links: one to ask and answer, one to follow logs, the others to write.
const (
	askLink = iota
	followLink
	firstWriteLink
	links = firstWriteLink + 4
)

func connect(url string, options []nats.Option) (link, error) {
	nc, err := nats.Connect(url, options...)
	if err != nil {
		return link{}, fmt.Errorf("eventstore: connect: %w: %w", ErrUnavailable, err)
	}
	js, err := jetstream.New(nc,
		jetstream.WithPublishAsyncMaxPending(1<<16),
		jetstream.WithPublishAsyncTimeout(ackTimeout),
		jetstream.WithDefaultTimeout(ackTimeout))
	if err != nil {
		return link{nc: nc}, fmt.Errorf("eventstore: connect: %w", err)
	}
	unbroken := newUnbroken()
	nc.SetReconnectHandler(func(*nats.Conn) { unbroken.again() })
	return link{nc, js, unbroken}, nil
}

// writer is the link that what belongs to a subject is written through. Subjects
// of one stream share one, which keeps their order.
func (s *Store) writer(subject string) jetstream.JetStream {
	first, rest, _ := strings.Cut(subject, ".")
	h := fnv.New32a()
	_, _ = h.Write([]byte(first))
	if first == "mail" {
		partition, _, _ := strings.Cut(rest, ".")
		_, _ = h.Write([]byte(partition))
	}
	return s.links[firstWriteLink+h.Sum32()%(links-firstWriteLink)].js
}

// Close ends all work and shuts the embedded server down. What has been
// acknowledged stays.
func (s *Store) Close() error {
	if s.stopWatching != nil {
		s.stopWatching()
		s.watching.Wait()
	}
	s.syncing.Lock()
	for _, y := range s.syncers {
		y.close()
	}
	s.syncing.Unlock()
	for _, l := range s.links {
		if l.nc != nil {
			l.nc.Close()
		}
	}
	if s.local != nil {
		return s.local.close()
	}
	return nil
}

// URL is where clients find the log. It holds the embedded server's password,
// so it belongs in no log line and in no process argument.
func (s *Store) URL() string { return s.url }

// MailLogs names the logs of all partitions, in order.
func (s *Store) MailLogs() []string {
	logs := make([]string, s.Partitions())
	for i := range logs {
		logs[i] = MailLog(i)
	}
	return logs
}

// Durability is what an answer promises.
func (s *Store) Durability() Durability {
	if s.local == nil {
		return Durability(fmt.Sprintf("cluster: %d copies of each entry, on disk as each server's sync_interval says", s.cfg.Replicas))
	}
	return s.cfg.Durability
}

// Done is closed when the log can no longer be trusted to keep what it is
// given: a failed fsync. The process should then end, and Err says why.
func (s *Store) Done() <-chan struct{} { return s.done }

// Err is why Done is closed, or nil.
func (s *Store) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

func (s *Store) fail(err error) {
	s.failing.Do(func() {
		s.err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		close(s.done)
		s.cfg.Log.Error("the log has stopped: what it is given may not reach the disk", "error", err)
	})
}

// Healthy makes a round trip to the server, through JetStream.
func (s *Store) Healthy(ctx context.Context) error {
	if err := s.Err(); err != nil {
		return err
	}
	if _, err := s.js.AccountInfo(ctx); err != nil {
		return fmt.Errorf("eventstore: health: %w: %w", ErrUnavailable, err)
	}
	return nil
}

// appended tells of an append that began at a time.
func (s *Store) appended(log string, begun time.Time, err error, recorded ...[]domain.Recorded) {
	if s.cfg.Appended == nil {
		return
	}
	if err != nil {
		recorded = nil
	}
	s.cfg.Appended(log, time.Since(begun), slices.Concat(recorded...), err)
}

// mail stands for the logs of all partitions of the emails, where one is as good
// as another.
const mail = "MAIL"

// syncer is the one that syncs a stream's files, started when first needed.
func (s *Store) syncer(stream string) *syncer {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	y := s.syncers[stream]
	if y == nil {
		y = newSyncer(s.local.blocks(stream), s.cfg.fsync, s.fail)
		s.syncers[stream] = y
	}
	return y
}
