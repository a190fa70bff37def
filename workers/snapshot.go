package workers

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/eventstore"
)

// A snapshot says which emails of a partition are open, so that a start does not
// read the whole log. It is a shortcut: without it, or with one that makes no
// sense, the log is read from its beginning.
type snapshot struct {
	seq  uint64 // every email that was accepted up to here is final, or in open
	open []opened
}

type opened struct {
	id   uuid.UUID
	last uint64 // sequence of its last commit
}

// maxOpened keeps a snapshot below the size of a value.
const maxOpened = 16_000

const snapshotVersion = 1

func (s snapshot) marshal() []byte {
	b := []byte{snapshotVersion}
	b = binary.BigEndian.AppendUint64(b, s.seq)
	for _, o := range s.open {
		b = append(b, o.id[:]...)
		b = binary.BigEndian.AppendUint64(b, o.last)
	}
	return b
}

var errSnapshot = errors.New("the snapshot cannot be read")

func parseSnapshot(b []byte) (snapshot, error) {
	const head, each = 9, 24
	if len(b) < head || b[0] != snapshotVersion || (len(b)-head)%each != 0 {
		return snapshot{}, errSnapshot
	}
	s := snapshot{seq: binary.BigEndian.Uint64(b[1:])}
	for b = b[head:]; len(b) > 0; b = b[each:] {
		s.open = append(s.open, opened{uuid.UUID(b[:16]), binary.BigEndian.Uint64(b[16:])})
	}
	return s, nil
}

// loadSnapshot fills the open emails from the snapshot, and returns the sequence
// from which the log has to be read. The caller holds the partition's lock.
func (p *partition) loadSnapshot(ctx context.Context) uint64 {
	seq, err := p.readSnapshot(ctx)
	if err != nil {
		if !errors.Is(err, eventstore.ErrNoEntry) {
			p.log.Warn("the whole log of the partition is read", "error", err)
		}
		clear(p.open)
		return 0
	}
	return seq
}

func (p *partition) readSnapshot(ctx context.Context) (uint64, error) {
	value, _, err := p.d.Snapshots.Get(ctx, p.name)
	if err != nil {
		return 0, err
	}
	s, err := parseSnapshot(value)
	if err != nil {
		return 0, err
	}
	head, err := p.d.Store.Head(ctx, p.name)
	if err != nil {
		return 0, err
	}
	if s.seq > head {
		return 0, fmt.Errorf("%w: it is of another log", errSnapshot)
	}
	for _, o := range s.open {
		history, err := p.d.Store.Chain(ctx, p.name, o.last, o.id.String())
		if err != nil {
			return 0, err
		}
		m := &mail{id: o.id, account: history[0].Stream.Account, place: -1}
		for _, rec := range history {
			m.fold(rec)
		}
		if !m.state.Final() {
			p.open[o.id] = m
		}
	}
	return s.seq, nil
}

// keepSnapshots writes one now and then, until ctx ends.
func (p *partition) keepSnapshots(ctx context.Context) error {
	every := time.NewTicker(30 * time.Second)
	defer every.Stop()
	var saved uint64
	for {
		select {
		case <-every.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		p.mu.Lock()
		seq := p.seq
		p.mu.Unlock()
		if seq == saved {
			continue
		}
		if err := p.renew(ctx, seq); err != nil {
			return err
		}
		if err := p.saveSnapshot(ctx); ctx.Err() != nil {
			return ctx.Err()
		} else if err != nil {
			p.log.Warn("what is open was not noted; the next start reads more of the log", "error", err)
			continue
		}
		saved = seq
	}
}

// renewAfter is how many entries may lie behind the claim. It cannot leave the
// stream, and nothing before it: what is archived may go up to there.
const renewAfter = 1000

// renew claims the partition again when the claim lies far back.
func (p *partition) renew(ctx context.Context, seq uint64) error {
	if seq < p.owner.Seq()+renewAfter {
		return nil
	}
	err := p.owner.Renew(ctx)
	if err != nil && !errors.Is(err, eventstore.ErrFenced) && ctx.Err() == nil {
		p.log.Warn("the claim was not renewed; it holds as it is", "error", err)
		return nil
	}
	return err
}

func (p *partition) saveSnapshot(ctx context.Context) error {
	p.mu.Lock()
	s := snapshot{seq: p.seq}
	p.mu.Unlock()
	all := p.openEmails()
	if len(all) > maxOpened {
		// What does not fit is read from the log, from the first that does not.
		s.seq = min(s.seq, all[maxOpened].first-1)
		all = all[:maxOpened]
	}
	for _, m := range all {
		m.mu.Lock()
		if m.first <= s.seq {
			s.open = append(s.open, opened{m.id, m.last})
		}
		m.mu.Unlock()
	}
	if p.unsure.Load() {
		return nil // the next start reads what the log has
	}
	_, err := p.d.Snapshots.Put(ctx, p.name, s.marshal())
	return err
}
