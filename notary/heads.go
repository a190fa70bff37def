package notary

import (
	"context"
	"errors"
	"fmt"
	"time"

	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

// Where several processes seal one log, the newest head of it lies in a bucket of
// the log's own cluster, and a head counts once it lies there. It is put there only
// in the place of one that this process has read, and found to be of the same
// history as its own tree: so there is one history, whoever signs.
//
// One process signs, and the others keep up: each has its own tree, and keeps the
// heads that the other signs. When none has come for a while although it is due,
// another one signs.

// others is what is known of the heads that are shared.
type others struct {
	revision uint64    // of the head that was read last
	fits     bool      // whether it was found to be of this process's history
	since    time.Time // when it was first read here
	ours     bool      // whether this process put it there
}

// quiet is how many times longer than it takes to sign a head the others wait
// before one of them does.
const quiet = 4

// keepUp adopts the head that is shared, and reports whether it is this process's
// turn to sign the next. The caller holds the lock.
func (s *sealed) keepUp(ctx context.Context, l *seal.Log) (turn bool, err error) {
	signed, revision, err := s.notary.Heads.Get(ctx, s.name)
	if errors.Is(err, eventstore.ErrNoEntry) {
		if s.others.revision > 0 {
			return false, fmt.Errorf("%w: the heads that were shared are gone", seal.ErrBroken)
		}
		s.others = others{fits: true, ours: true}
		return true, nil
	}
	if err != nil {
		return false, err
	}
	switch {
	case revision < s.others.revision:
		return false, nil // it comes from a server that was cut off and does not know it yet
	case revision > s.others.revision:
		s.others = others{revision: revision, since: s.notary.Now()}
	}
	if !s.others.fits {
		head, err := l.Open(signed)
		if err != nil {
			// No key of ours has signed it: this process must not seal.
			return false, fmt.Errorf("%w: %w", seal.ErrBroken, err)
		}
		if s.others.fits, err = l.Adopt(head); err != nil || !s.others.fits {
			return false, err // what it covers is still to come
		}
	}
	return s.others.ours || s.notary.Now().Sub(s.others.since) >= quiet*s.notary.SignEvery, nil
}

// signShared signs a head, and keeps it if nobody has shared another meanwhile.
// The caller holds the lock, and has kept up.
func (s *sealed) signShared(ctx context.Context, l *seal.Log) error {
	if !s.others.fits {
		return nil // nothing is put in the place of a head that is not known yet
	}
	draft, err := l.Draft(s.notary.Now())
	if err != nil {
		return err
	}
	revision, err := s.notary.Heads.Update(ctx, s.name, draft.Note, s.others.revision)
	if errors.Is(err, eventstore.ErrConflict) {
		s.others.ours = false
		return nil // another process has signed: what it did is read the next time
	}
	if err != nil {
		s.others.ours = false // it may lie there or not
		return err
	}
	s.others = others{revision: revision, fits: true, since: s.notary.Now(), ours: true}
	_, err = l.Adopt(draft)
	return err
}

// signsNow reports whether this process is the one that signs, and so the one that
// tells others.
func (s *sealed) signsNow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.notary.Heads == nil || s.others.ours
}
