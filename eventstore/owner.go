package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain"
)

// Owner decides about the emails of one partition. Its claim is an entry of the
// partition's own log, and every commit expects that claim to be the latest: so
// whoever claims later fences this one off, whatever it still believes.
// Accepting emails goes on freely beside it.
type Owner struct {
	store     *Store
	partition int
	who       string

	mu    sync.RWMutex // held while the claim is renewed, and by appends that rest on it
	claim uint64
	one   sync.Mutex // of a cluster, which checks one append of an owner at a time
}

// claim is the body of a claim to a partition.
type claim struct {
	Who string    `json:"who"`
	At  time.Time `json:"at"`
}

// Own claims a partition for who, and fences off whoever had it.
func (s *Store) Own(ctx context.Context, partition int, who string) (*Owner, error) {
	if partition < 0 || partition >= s.Partitions() || !isToken(who) {
		return nil, fmt.Errorf("eventstore: %q cannot own partition %d of %d", who, partition, s.Partitions())
	}
	o := &Owner{store: s, partition: partition, who: who}
	if err := o.publish(ctx, nats.Header{}); err != nil {
		return nil, fmt.Errorf("eventstore: claim partition %d: %w", partition, err)
	}
	return o, nil
}

// publish appends a claim, if what the header expects holds.
func (o *Owner) publish(ctx context.Context, header nats.Header) error {
	body, err := json.Marshal(claim{Who: o.who, At: o.store.cfg.Now().UTC()})
	if err != nil {
		return fmt.Errorf("encode a claim: %w", err)
	}
	header[HeaderClaim] = []string{o.who}
	p := o.store.publish(ctx, true, &nats.Msg{Subject: ownerSubject(o.partition), Header: header, Data: body})[0]
	if p.err != nil {
		return p.err
	}
	o.claim = p.seq
	return nil
}

// Renew claims the partition again, if nobody else has since. A claim that lies
// far back would keep what is before it from leaving the stream.
func (o *Owner) Renew(ctx context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	err := o.publish(ctx, nats.Header{jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(o.claim, 10)}})
	if errors.Is(err, ErrConflict) {
		err = ErrFenced
	}
	if err != nil {
		return fmt.Errorf("eventstore: renew the claim to partition %d: %w", o.partition, err)
	}
	return nil
}

// Seq is the sequence of the claim. Everything the partition's earlier owners
// recorded lies before it.
func (o *Owner) Seq() uint64 {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.claim
}

// Append records commits of emails of the partition, each of another email, and
// returns when all are on disk. Those of an account share messages: all of a
// message's are recorded or none. Repeating a call with the same commits in the same
// order records none twice. It returns ErrFenced if somebody has claimed the
// partition since; then, and after any other error, the owner has to read the log to
// learn what was recorded.
func (o *Owner) Append(ctx context.Context, commits ...Commit) ([][]domain.Recorded, error) {
	if len(commits) == 0 {
		return nil, nil
	}
	s := o.store
	o.mu.RLock()
	defer o.mu.RUnlock()
	groups, err := o.together(commits)
	if err != nil {
		return nil, err
	}
	written, msgs, recorded, err := s.encodeAll(groups, commits)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		m.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(o.claim, 10)}
		m.Header[jetstream.ExpectedLastSubjSeqSubjHeader] = []string{ownerSubject(o.partition)}
	}
	begun := time.Now()
	var out []published
	if s.local != nil {
		out = s.publish(ctx, true, msgs...)
	} else {
		out = o.oneByOne(ctx, msgs)
	}
	err = s.settle(ctx, written, recorded, out)
	s.appended(mail, begun, err, recorded...)
	if errors.Is(err, ErrConflict) {
		return nil, fmt.Errorf("eventstore: append to partition %d under claim %d: %w", o.partition, o.claim, ErrFenced)
	}
	if err != nil {
		return nil, fmt.Errorf("eventstore: append to partition %d: %w", o.partition, err)
	}
	return recorded, nil
}

// together groups commits by their accounts, in their order.
func (o *Owner) together(commits []Commit) ([]*group, error) {
	var groups []*group
	known := map[string]*group{}
	emails := make(map[string]bool, len(commits))
	for i, c := range commits {
		if emails[c.Stream.ID] {
			return nil, fmt.Errorf("eventstore: append two commits of %s at once: the second has to know where the first lies", c.Stream)
		}
		emails[c.Stream.ID] = true
		g := known[c.Stream.Account]
		if g == nil {
			g = &group{subject: mailSubject(o.partition, c.Stream.Account)}
			known[c.Stream.Account], groups = g, append(groups, g)
		}
		g.places = append(g.places, i)
	}
	return groups, nil
}

// oneByOne hands messages to a cluster, which checks one expectation of a subject
// at a time and answers a second one that comes meanwhile with a conflict. Whether
// a conflict is a fence, the claims themselves say.
func (o *Owner) oneByOne(ctx context.Context, msgs []*nats.Msg) []published {
	o.one.Lock()
	defer o.one.Unlock()
	var out []published
	for _, m := range msgs {
		p := o.store.publish(ctx, true, m)[0]
		if errors.Is(p.err, ErrConflict) {
			last, err := o.store.Last(ctx, MailLog(o.partition), ownerSubject(o.partition))
			if err != nil || last == o.claim {
				p.err = fmt.Errorf("%w: the claim still holds, and an append under it was refused", ErrUnavailable)
			}
		}
		out = append(out, p)
	}
	return out
}
