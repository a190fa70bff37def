package workers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

// mail is an email that is not final.
type mail struct {
	id      uuid.UUID
	account string
	first   uint64 // sequence of its first commit

	mu       sync.Mutex // held from a decision until it is recorded
	state    email.State
	last     uint64 // sequence of its last commit
	accepted *email.Accepted
	prepared *email.Prepared
	origin   origin
	failures int // to prepare it, in this life

	// Of the agenda, under the partition's lock.
	due     time.Time
	expires time.Time
	place   int // in the heap, -1 if not there
}

// origin is the acceptance, which all that is done about an email follows from. It
// is all that memory keeps of it when many emails wait.
type origin struct {
	event, correlation uuid.UUID
	at                 time.Time
}

func originOf(rec domain.Recorded) origin {
	return origin{rec.ID, rec.By.Correlation, rec.Time}
}

// now is the state as it is at this moment. It does not change under the caller.
func (m *mail) now() email.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *mail) fold(rec domain.Recorded) {
	e, ok := rec.Event.(email.Event)
	if !ok {
		return
	}
	switch e := e.(type) {
	case email.Accepted:
		m.accepted, m.first, m.origin = &e, rec.Seq, originOf(rec)
	case email.Prepared:
		m.prepared = &e
	}
	m.state = email.Decider.Evolve(m.state, e)
	m.last = rec.Seq
}

// partition is the owner of one partition of the emails.
type partition struct {
	d    *Dispatcher
	n    int
	name string
	log  *slog.Logger
	woke chan struct{}

	mu      sync.Mutex
	owner   *eventstore.Owner
	commits *gather[eventstore.Commit, []domain.Recorded] // of this ownership
	open    map[uuid.UUID]*mail
	agenda  *agenda
	working bool           // whether this process owns it at the moment, and knows what is open
	seq     uint64         // of the last entry that was folded
	wire    map[string]int // transactions that were begun, by account
	changed chan struct{}  // closed whenever an attempt ends or an entry is folded
	broken  chan error     // why memory and log may differ
	unsure  atomic.Bool    // whether they may: then memory is not noted in a snapshot
	under   sync.WaitGroup // attempts
}

func newPartition(d *Dispatcher, n int) *partition {
	name := eventstore.MailLog(n)
	return &partition{d: d, n: n, name: name, log: d.Log.With("partition", name), woke: make(chan struct{}, 1)}
}

// wake has the scheduler look at the agenda again.
func (p *partition) wake() {
	select {
	case p.woke <- struct{}{}:
	default:
	}
}

// run owns the partition, and claims it again when a session has ended: what
// could not be recorded, or was fenced off, is read from the log then.
func (p *partition) run(ctx context.Context) error {
	for {
		leased, end, err := p.lease(ctx)
		if err != nil {
			return err
		}
		err = p.session(leased)
		given := leased.Err() != nil
		end()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case given:
			p.log.Info("the partition is another process's from now on")
			continue
		}
		p.log.Warn("the partition is claimed again", "error", err)
		wait := time.Second
		if errors.Is(err, eventstore.ErrFenced) && p.d.Leases == nil {
			wait = 10 * time.Second // another process works on it
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lease waits until the partition is this process's to work on. Without leases it
// always is.
func (p *partition) lease(ctx context.Context) (leased context.Context, end func(), err error) {
	if p.d.Leases == nil {
		return ctx, func() {}, nil
	}
	return p.d.Leases.hold(ctx, p.n)
}

// session is one ownership, from its claim to its end.
func (p *partition) session(ctx context.Context) error {
	if err := p.takeOver(ctx); err != nil {
		return err
	}
	defer p.setWorking(false)
	p.setWorking(true)
	group, live := errgroup.WithContext(ctx)
	group.Go(func() error { return p.follow(live) })
	group.Go(func() error { return p.schedule(ctx, live) })
	group.Go(func() error { return p.keepSnapshots(live) })
	group.Go(func() error {
		select {
		case err := <-p.broken:
			return err
		case <-live.Done():
			return live.Err()
		}
	})
	stop, err := p.serveDesk(live)
	if err == nil {
		group.Go(func() error {
			<-live.Done()
			stop()
			return live.Err()
		})
	} else {
		group.Go(func() error { return err })
	}
	err = group.Wait()
	if ctx.Err() != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := p.saveSnapshot(last); err != nil {
			p.log.Warn("what is open was not noted; the next start reads more of the log", "error", err)
		}
	}
	return err
}

func (p *partition) setWorking(is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.working = is
}

// takeOver claims the partition, and learns from its log which emails are open.
func (p *partition) takeOver(ctx context.Context) error {
	owner, err := p.d.Store.Own(ctx, p.n, "dispatcher")
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.owner, p.open, p.agenda, p.changed = owner, map[uuid.UUID]*mail{}, newAgenda(), make(chan struct{})
	p.commits = &gather[eventstore.Commit, []domain.Recorded]{do: func(ctx context.Context, commits []eventstore.Commit) ([][]domain.Recorded, error) {
		return p.append(ctx, owner, commits)
	}}
	p.wire, p.broken = map[string]int{}, make(chan error, 1)
	p.unsure.Store(false)
	p.seq = p.loadSnapshot(ctx)
	p.mu.Unlock()
	following := eventstore.Following{Log: p.name, After: p.seq, StopAt: owner.Seq(), MaxBatch: 5000}
	err = p.d.Store.Follow(ctx, following, func(_ context.Context, entries []eventstore.Entry) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.foldAll(entries)
	})
	if err != nil {
		return fmt.Errorf("read the emails that are open: %w", err)
	}
	if err := p.settleOrphans(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.open {
		p.plan(m)
	}
	if len(p.open) > 0 {
		p.log.Info("emails are open from before", "count", len(p.open))
	}
	return nil
}

// foldAll folds what the log holds from before this ownership.
func (p *partition) foldAll(entries []eventstore.Entry) error {
	for _, e := range entries {
		if e.Err != nil {
			return fmt.Errorf("an entry cannot be read, and with it an email might be lost: %w", e.Err)
		}
		for _, commit := range e.Commits() {
			if err := p.foldOne(commit); err != nil {
				return err
			}
		}
		p.seq = e.Seq
	}
	return nil
}

// foldOne folds a commit of one email.
func (p *partition) foldOne(commit []domain.Recorded) error {
	first := commit[0]
	id, err := emailOf(first)
	if err != nil {
		return err
	}
	m := p.open[id]
	switch {
	case m == nil:
		if _, begins := first.Event.(email.Accepted); !begins {
			return nil // of an email that is final
		}
		m = &mail{id: id, account: first.Stream.Account, place: -1}
		p.open[id] = m
	case m.last >= first.Seq:
		return nil // the snapshot knew
	}
	for _, rec := range commit {
		m.fold(rec)
	}
	if m.state.Final() {
		delete(p.open, id)
	}
	return nil
}

// emailOf is the id of the email that an event is about.
func emailOf(rec domain.Recorded) (uuid.UUID, error) {
	id, err := uuid.Parse(rec.Stream.ID)
	if err != nil {
		err = fmt.Errorf("%s %d: %q is no email's id: %w", rec.Log, rec.Seq, rec.Stream.ID, err)
	}
	return id, err
}

// settleOrphans ends the attempts that an earlier owner began and did not end:
// the message may have left.
func (p *partition) settleOrphans(ctx context.Context) error {
	for _, m := range p.open {
		places := m.state.Attempting()
		if len(places) == 0 {
			continue
		}
		now := p.d.Now()
		report := email.Report{Authority: p.authority(m, now), Attempt: m.state.Attempts}
		for _, i := range places {
			report.Outcomes = append(report.Outcomes, email.Outcome{
				Recipient: i, Kind: email.WasUnknown, Next: now.Add(p.backoff(m, i)), Reply: email.Reply{Phase: "restart"},
			})
		}
		if err := p.record(ctx, m, report); err != nil {
			return fmt.Errorf("end an attempt that was interrupted: %w", err)
		}
		p.log.Warn("the outcome of an attempt is unknown: the process ended during it", "email", m.id, "recipients", len(places))
	}
	return nil
}

// plan puts an email on the agenda, or drops it if it is final. The caller holds
// the partition's lock, and nobody the email's.
func (p *partition) plan(m *mail) {
	if m.state.Final() {
		delete(p.open, m.id)
		return
	}
	m.expires = m.state.Expires
	if at, ok := m.state.Next(); ok {
		p.agenda.add(m, at)
	}
}

// follow learns of the emails that are accepted from now on. Whatever else is in
// the log was written by this owner, and is known.
func (p *partition) follow(ctx context.Context) error {
	return p.d.Store.Follow(ctx, eventstore.Following{Log: p.name, After: p.seq}, func(_ context.Context, entries []eventstore.Entry) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, e := range entries {
			if e.Err != nil {
				return fmt.Errorf("an entry cannot be read, and with it an email might be lost: %w", e.Err)
			}
			if len(e.Events) == 0 && e.Seq > p.owner.Seq() {
				return fmt.Errorf("%s %d is another claim: %w", e.Log, e.Seq, eventstore.ErrFenced)
			}
			p.seq = e.Seq
			for _, commit := range e.Commits() {
				if err := p.learn(commit); err != nil {
					return err
				}
			}
		}
		p.announce()
		p.wake()
		return nil
	})
}

// learn takes in an email that was accepted.
func (p *partition) learn(commit []domain.Recorded) error {
	if commit[0].Prev != 0 {
		return nil
	}
	id, err := emailOf(commit[0])
	if err != nil || p.open[id] != nil {
		return err
	}
	m := &mail{id: id, account: commit[0].Stream.Account, place: -1}
	for _, rec := range commit {
		m.fold(rec)
	}
	p.open[id] = m
	if len(p.open) > keepAccepted {
		m.accepted = nil // the log has it
	}
	p.plan(m)
	return nil
}

// announce tells those who wait for a change that there was one. The caller holds
// the partition's lock.
func (p *partition) announce() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// keepAccepted is how many emails keep their acceptance in memory. What waits
// behind them reads it again.
const keepAccepted = 5000

// schedule starts attempts until live ends, and then waits for those under way.
func (p *partition) schedule(ctx, live context.Context) error {
	working, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer p.waitForAttempts(cancel)
	swept := p.d.Now()
	for {
		select {
		case p.d.slots <- struct{}{}:
		case <-live.Done():
			return live.Err()
		}
		m, err := p.take(live, &swept)
		if err != nil {
			<-p.d.slots
			return err
		}
		p.under.Go(func() {
			defer func() { <-p.d.slots }()
			p.attempt(working, live, m)
		})
	}
}

func (p *partition) waitForAttempts(cancel func()) {
	ended := make(chan struct{})
	go func() {
		p.under.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(drain):
		cancel()
		<-ended
	}
}

// take returns the next email to work on.
func (p *partition) take(live context.Context, swept *time.Time) (*mail, error) {
	for {
		now := p.d.Now()
		p.mu.Lock()
		m, _ := p.agenda.next(now, p.passes)
		var expired []*mail
		if now.Sub(*swept) >= time.Minute {
			*swept, expired = now, p.agenda.takeExpired(now)
		}
		p.mu.Unlock()
		for _, e := range expired {
			p.under.Go(func() { p.giveUp(live, e) })
		}
		if m != nil {
			return m, nil
		}
		// The clock is asked often, because it may be a test's.
		wait := time.NewTimer(tick)
		select {
		case <-p.woke:
		case <-wait.C:
		case <-live.Done():
			wait.Stop()
			return nil, live.Err()
		}
		wait.Stop()
	}
}

// passes reports whether an account's emails may go out now. However many accounts have
// servers that are slow to take their mail, some attempts are left for the next account:
// each has up to three times as many as are free.
func (p *partition) passes(account string) bool {
	free := cap(p.d.slots) - len(p.d.slots)
	return p.d.blocked(account) == "" && p.agenda.active[account] < max(1, 3*free/p.d.Store.Partitions())
}

// blocked is the policy that stopped an account, or empty. The mail of one that was
// erased is not held: it comes up, and is given up.
func (d *Dispatcher) blocked(account string) string {
	a, ok := d.Directory.Account(account)
	switch {
	case !ok:
		return "unknown account"
	case a.Erased:
		return ""
	}
	return a.Blocked
}

func (d *Dispatcher) erased(account string) bool {
	a, _ := d.Directory.Account(account)
	return a.Erased
}

// release ends the work on an email, and plans what is left to do.
func (p *partition) release(m *mail, again time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	p.agenda.done(m.account)
	p.plan(m)
	if again.After(m.due) && m.place >= 0 {
		p.agenda.later.postpone(m, again)
	}
	if len(p.open) > keepAccepted {
		m.accepted, m.prepared = nil, nil
	}
	p.announce()
	p.wake()
}

// decide puts a command to an email and records what follows, with what else is to be
// recorded within a time. The caller holds the email's lock.
func (p *partition) decide(ctx context.Context, m *mail, c email.Command, within time.Duration) ([]domain.Recorded, error) {
	of := email.Stream(m.account, m.id)
	events, err := email.Decider.Decide(of, m.state, c)
	if err != nil || len(events) == 0 {
		return nil, err
	}
	commit := eventstore.Commit{Stream: of, By: c.By(), Prev: m.last, Events: make([]domain.Event, len(events))}
	for i, e := range events {
		commit.Events[i] = e
	}
	commit.At = p.d.Now()
	recorded, err := p.commits.ask(ctx, within, commit)
	if err != nil {
		p.unsure.Store(true)
		select {
		case p.broken <- err:
		default:
		}
		return nil, err
	}
	for _, rec := range recorded {
		m.fold(rec)
	}
	return recorded, nil
}

// append records commits. An answer that does not come is waited for: the commands'
// identities make trying again safe, as long as the log recognises messages that come
// again.
func (p *partition) append(ctx context.Context, owner *eventstore.Owner, commits []eventstore.Commit) ([][]domain.Recorded, error) {
	begun := time.Now()
	for {
		recorded, err := owner.Append(ctx, commits...)
		if !errors.Is(err, eventstore.ErrUnavailable) || time.Since(begun) > p.d.Store.Recognised()/2 || ctx.Err() != nil {
			return recorded, err
		}
		p.log.Warn("what happened to emails cannot be recorded yet", "emails", len(commits), "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

// record is decide with the email's lock.
func (p *partition) record(ctx context.Context, m *mail, c email.Command) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := p.decide(ctx, m, c, p.d.patience())
	return err
}

// giveUp ends an email that has expired, unless it was moved to a later time
// meanwhile.
func (p *partition) giveUp(ctx context.Context, m *mail) {
	if !p.d.Now().After(m.now().Expires) {
		p.release(m, time.Time{})
		return
	}
	err := p.record(ctx, m, email.Abandon{Authority: p.authority(m, p.d.Now()), Reason: tooLate})
	if err != nil {
		p.log.Error("an email cannot be given up", "email", m.id, "error", err)
	} else {
		p.log.Warn("an email was given up", "email", m.id, "reason", tooLate)
	}
	p.release(m, time.Time{})
}

// authority is that of the dispatcher, for a new command about an email.
func (p *partition) authority(m *mail, now time.Time) domain.Authority {
	by := domain.Because(m.origin.event, m.origin.correlation, "dispatcher", now)
	by.Command = uuid.Must(uuid.NewV7())
	return by
}

// openEmails are the emails of the snapshot, oldest first.
func (p *partition) openEmails() []*mail {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*mail, 0, len(p.open))
	for _, m := range p.open {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *mail) int {
		switch {
		case a.first < b.first:
			return -1
		case a.first > b.first:
			return 1
		}
		return 0
	})
	return all
}
