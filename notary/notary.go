// Package notary seals the logs as they grow: it follows each, keeps its Merkle
// tree, and signs the tree's head every second in which something came, and every
// minute in which nothing did. It shows the heads to witnesses and leaves copies
// of them elsewhere, so that whoever holds every key of this machine can still
// not rewrite the past unseen.
package notary

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

// How often heads are signed.
const (
	signEvery  = time.Second // while entries come
	beatEvery  = time.Minute // while none do
	shareEvery = 10 * time.Second

	ackWithin = 5 * time.Second // for the last head before the end

	believed = 60 // how many times longer than it takes to sign a head a cluster has to say what it says
)

// Config of a notary.
type Config struct {
	Store     *eventstore.Store
	Dir       string // holds a folder for each log
	Keys      *seal.Keys
	MarkKey   []byte // what the platform marks its entries with
	Witnesses []seal.Witness
	Copies    []Place            // where heads are left
	SignEvery time.Duration      // while entries come; 0 is a second
	Heads     *eventstore.Bucket // the newest head of each log, where several processes seal; nil if this one is alone
	Now       func() time.Time
	Log       *slog.Logger

	// Found is told of what is wrong, once a run.
	Found func(ctx context.Context, f seal.Finding)
}

// Notary seals all logs that carry events.
type Notary struct {
	Config
	logs []*sealed
}

// New makes a notary.
func New(c Config) *Notary {
	if c.SignEvery == 0 {
		c.SignEvery = signEvery
	}
	n := &Notary{Config: c}
	for _, log := range c.Store.Logs() {
		n.logs = append(n.logs, &sealed{notary: n, name: log, log: c.Log.With("log", log), doubts: map[string]time.Time{}})
	}
	return n
}

// Begin signs a head of nothing for each log that has none yet.
func (n *Notary) Begin() error { return Begin(n.Dir, n.Store.Logs(), n.Keys) }

// Begin signs a head of nothing for each log that has no head yet; dir holds a folder for
// each. It comes before anything is written: then a log whose entries no head covers is
// one whose head was removed, and not one of a process that was killed before its first
// second.
func Begin(dir string, logs []string, keys *seal.Keys) error {
	for _, log := range logs {
		l, err := seal.OpenLog(filepath.Join(dir, log), log, keys)
		if errors.Is(err, seal.ErrBroken) {
			continue // Run says so, and a verification
		}
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return fmt.Errorf("notary: close the seal of %s: %w", log, err)
		}
	}
	return nil
}

// Run seals until ctx ends. A log whose seal is broken is left as it is, for
// somebody to look at; the others go on.
func (n *Notary) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range n.logs {
		group.Go(func() error { return s.run(ctx) })
	}
	return group.Wait()
}

// Signs reports whether this process is the one that signs a log. One that is not
// sealed goes with the ledger.
func (n *Notary) Signs(log string) bool {
	for _, name := range []string{log, eventstore.Ledger} {
		for _, s := range n.logs {
			if s.name == name {
				return s.signsNow()
			}
		}
	}
	return false
}

// Status is where a log's seal is.
type Status struct {
	Log       string    `json:"log"`
	Size      int64     `json:"size"`
	At        time.Time `json:"at"`
	Witnessed int64     `json:"witnessed"` // entries that enough witnesses have seen; 0 is none
	Broken    bool      `json:"broken"`
}

// Status says where the seals are.
func (n *Notary) Status() []Status {
	all := make([]Status, len(n.logs))
	for i, s := range n.logs {
		all[i] = s.status()
	}
	return all
}

// sealed is the seal of one log.
type sealed struct {
	notary *Notary
	name   string
	log    *slog.Logger

	mu        sync.Mutex // held while entries are added, and while a head is signed
	seal      *seal.Log
	witnessed int64
	broken    bool
	others    others // of the processes that seal the same log

	doubts map[string]time.Time // since when it looks as if the past were another
}

func (s *sealed) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Log: s.name, Witnessed: s.witnessed, Broken: s.broken}
	if s.seal != nil {
		newest := s.seal.Newest()
		st.Size, st.At = newest.Size, newest.At
	}
	return st
}

// run seals a log until ctx ends or its seal is broken.
func (s *sealed) run(ctx context.Context) error {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		err := s.once(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, seal.ErrBroken):
			s.mu.Lock()
			s.broken = true
			s.mu.Unlock()
			s.log.Error("a log is not as it was sealed, and is not sealed any more: run postbook verify --log", "error", err)
			s.notary.Found(ctx, seal.Finding{Log: s.name, Kind: seal.Unsealed, Detail: err.Error()})
			<-ctx.Done()
			return ctx.Err()
		}
		s.log.Warn("a log is not being sealed; it is tried again", "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *sealed) once(ctx context.Context) error {
	n := s.notary
	l, err := seal.OpenLog(filepath.Join(n.Dir, s.name), s.name, n.Keys)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.seal, s.others = l, others{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seal = nil
		_ = l.Close() // what was not signed is added again
	}()
	head, err := n.Store.Head(ctx, s.name)
	if err != nil {
		return err
	}
	short := head+1 < l.Next()
	if lasts := s.lasts("entries are missing", short); short {
		err := fmt.Errorf("%d entries were sealed, and %d are there", l.Next()-1, head)
		if lasts {
			err = fmt.Errorf("%w: %w", seal.ErrBroken, err)
		}
		return err
	}
	working, workCtx := errgroup.WithContext(ctx)
	working.Go(func() error { return s.follow(workCtx, l) })
	working.Go(func() error { return s.signOften(workCtx, l) })
	working.Go(func() error { return s.share(workCtx, l) })
	err = working.Wait()
	if ctx.Err() != nil && l.Pending() > 0 {
		// Nobody works on it any more: what came last is sealed before the end.
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackWithin)
		defer cancel()
		err = errors.Join(err, s.sign(ending, l))
	}
	return err
}

// lasts reports whether something that must not be is believed. A server that was cut off
// from its cluster answers for some seconds as if it still led, with what it knew before: what
// it says has to last for longer than that. A log in this process is believed at once.
func (s *sealed) lasts(what string, is bool) bool {
	if !is {
		delete(s.doubts, what)
		return false
	}
	if s.doubts[what].IsZero() {
		s.doubts[what] = s.notary.Now()
	}
	return s.notary.Store.Alone() || s.notary.Now().Sub(s.doubts[what]) > believed*s.notary.SignEvery
}

func (s *sealed) follow(ctx context.Context, l *seal.Log) error {
	f := eventstore.Following{Log: s.name, After: l.Next() - 1, Undecoded: true, FromDisk: true, MaxBatch: 2000, Linger: 100 * time.Millisecond}
	err := s.notary.Store.Follow(ctx, f, func(ctx context.Context, entries []eventstore.Entry) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range entries {
			if s.notary.MarkKey != nil && !e.Marked(s.notary.MarkKey) {
				s.notary.Found(ctx, seal.Finding{Log: s.name, Seq: e.Seq, Kind: seal.Forged, Detail: "it does not carry this platform's mark: somebody else wrote it"})
			}
			if err := l.Add(EntryOf(e)); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, eventstore.ErrDamaged) {
		return fmt.Errorf("%w: before it was sealed: %w", seal.ErrBroken, err)
	}
	return err
}

// Seals reports whether a log is one that is sealed: content and dead letters carry
// no events.
func Seals(log string) bool { return log != eventstore.Content && log != eventstore.Dead }

// EntryOf is an entry that was read undecoded, as the seal sees it.
func EntryOf(e eventstore.Entry) seal.Entry {
	return seal.Entry{Log: e.Log, Seq: e.Seq, Time: e.Time, Subject: e.Subject, Header: e.Header, Body: e.Raw}
}

// signOften signs heads until ctx ends.
func (s *sealed) signOften(ctx context.Context, l *seal.Log) error {
	tick := time.NewTicker(s.notary.SignEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := s.signIfDue(ctx, l); err != nil {
			return err
		}
	}
}

func (s *sealed) signIfDue(ctx context.Context, l *seal.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.notary.Heads != nil {
		if turn, err := s.keepUp(ctx, l); err != nil || !turn {
			return err
		}
	}
	if l.Pending() == 0 && s.notary.Now().Sub(l.Newest().At) < beatEvery {
		return nil
	}
	return s.sign(ctx, l)
}

// sign signs the head. The entries come to the disk first: a head must not cover
// what a power failure takes back.
func (s *sealed) sign(ctx context.Context, l *seal.Log) error {
	if err := s.notary.Store.Sync(ctx, s.name); err != nil {
		return err
	}
	if s.notary.Heads != nil {
		return s.signShared(ctx, l)
	}
	return l.Sign(s.notary.Now())
}

// share shows heads to the witnesses and leaves copies of them.
func (s *sealed) share(ctx context.Context, l *seal.Log) error {
	if len(s.notary.Witnesses) == 0 && len(s.notary.Copies) == 0 {
		return nil
	}
	seen := make([]int64, len(s.notary.Witnesses))
	shared := int64(-1)
	for {
		if newest := l.Newest(); newest.Size > shared && s.signsNow() {
			if s.shareOne(ctx, l, newest, seen) {
				shared = newest.Size
			}
		}
		select {
		case <-time.After(shareEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// shareOne reports whether everybody has a head.
func (s *sealed) shareOne(ctx context.Context, l *seal.Log, newest seal.Checkpoint, seen []int64) bool {
	all, refused := true, false
	signed := newest.Note
	for i, w := range s.notary.Witnesses {
		cosigned, held, err := w.Cosign(ctx, l.Dir(), newest, seen[i])
		seen[i] = held
		switch {
		case errors.Is(err, seal.ErrRefused):
			s.log.Error("a witness does not recognise a log's past", "error", err)
			s.notary.Found(ctx, seal.Finding{Log: s.name, Kind: seal.Rewritten, Detail: err.Error()})
			refused = true
		case err != nil:
			s.log.Warn("a witness has not cosigned", "error", err)
			all = false
		default:
			signed = append(signed[:len(signed):len(signed)], cosigned[len(newest.Note):]...)
		}
	}
	if refused {
		return false // what others keep is evidence now
	}
	if len(signed) > len(newest.Note) {
		if err := l.KeepWitnessed(signed); err != nil {
			s.log.Error("a cosigned head cannot be kept", "error", err)
			return false
		}
		s.mu.Lock()
		s.witnessed = newest.Size
		s.mu.Unlock()
	}
	for _, p := range s.notary.Copies {
		follows, err := s.follows(ctx, l, p)
		if follows {
			err = p.Put(ctx, s.name, signed)
		}
		if err != nil {
			s.log.Warn("a copy of a head was not left", "place", p.String(), "error", err)
		}
		all = all && follows && err == nil
	}
	return all
}

// follows reports whether what is sealed here goes on from the head that a place
// keeps. If it does not, that head is the proof of it, and must not be replaced.
func (s *sealed) follows(ctx context.Context, l *seal.Log, p Place) (bool, error) {
	note, err := p.Get(ctx, s.name)
	if err != nil || note == nil {
		return err == nil, err
	}
	kept, err := l.Open(note)
	if err != nil {
		return false, err
	}
	head, err := s.notary.Store.Head(ctx, s.name)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	fits, err := l.Fits(kept)
	everything := l.Next() > head
	s.mu.Unlock()
	if err != nil {
		return false, err
	}
	if !s.lasts(p.String(), !fits && everything) {
		return fits, nil // what was not read yet may lead there
	}
	s.notary.Found(ctx, seal.Finding{Log: s.name, Kind: seal.Rewritten, Detail: fmt.Sprintf("%s has seen %d entries that are not those here", p, kept.Size)})
	return false, nil
}
