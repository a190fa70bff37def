package eventstore

// Writing to the log. An acknowledgement that does not come is not a failed
// write, and a conflict may be with one's own earlier try: in both cases the
// tail of the subject says what happened.

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain"
)

// A Commit is what one command leads to: one to n events of one aggregate, kept
// in one message, so that all of them are recorded or none.
type Commit struct {
	Stream domain.Stream
	By     domain.Authority // its Command gives the events their identities
	Events []domain.Event
	Prev   uint64    // sequence of the aggregate's previous commit; Append sets it itself
	At     time.Time // when it is recorded; zero is now
}

// Append records a commit of an aggregate of the ledger, whose last commit has
// the sequence expected, 0 if it has none. It returns ErrConflict if the
// aggregate has moved on. A commit that turns out to be recorded already, by an
// earlier try, is a success.
func (s *Store) Append(ctx context.Context, c Commit, expected uint64) (held []domain.Recorded, err error) {
	begun := time.Now()
	defer func() { s.appended(Ledger, begun, err, held) }()
	c.Prev = expected
	subject := "ledger." + c.Stream.String()
	msg, recorded, err := s.encode(subject, c)
	if err != nil {
		return nil, err
	}
	s.recent.keep(msg.Data, recorded[0])
	msg.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(expected, 10)}
	p := s.publish(ctx, true, msg)[0]
	switch {
	case p.err == nil && !p.duplicate:
		return place(recorded[0], Ledger, p.seq), nil
	case p.err != nil && s.Err() != nil:
		return nil, fmt.Errorf("eventstore: append to %s: %w", c.Stream, p.err)
	}
	if p.err == nil {
		if err := s.settleTwin(ctx, []int{0}, recorded, p); err != nil {
			return nil, fmt.Errorf("eventstore: append to %s: %w", c.Stream, err)
		}
		return recorded[0], nil
	}
	held, err = s.heldAtTail(ctx, subject, recorded[0][0].ID)
	if err != nil {
		return nil, fmt.Errorf("eventstore: append to %s: %w", c.Stream, p.err)
	}
	return held, nil
}

// heldAtTail returns the last commit on a subject if it begins with the event
// id, once it is on disk. A caller who has given up waiting still gets its
// answer: a second is enough for that.
func (s *Store) heldAtTail(ctx context.Context, subject string, id uuid.UUID) ([]domain.Recorded, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	tail, err := s.lastOn(ctx, Ledger, subject)
	if err != nil {
		return nil, err
	}
	if tail.Err != nil || tail.Events[0].ID != id {
		return nil, ErrNoEntry
	}
	settled := []published{{seq: tail.Seq, stream: Ledger}}
	s.waitForDisk(ctx, settled)
	return tail.Events, settled[0].err
}

// Accept records the first commits of emails, each in its email's partition. Those
// that one request led to, and that lie in one partition, share messages: all of a
// message's are recorded or none. It returns when all are on disk. After an error
// any of them may or may not be recorded, and none may be promised to anybody.
func (s *Store) Accept(ctx context.Context, commits []Commit) ([][]domain.Recorded, error) {
	if len(commits) == 0 {
		return nil, nil
	}
	groups, err := s.together(ctx, commits)
	if err != nil {
		return nil, err
	}
	written, msgs, recorded, err := s.encodeAll(groups, commits)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	err = s.settle(ctx, written, recorded, s.publish(ctx, true, msgs...))
	s.appended(mail, begun, err, recorded...)
	if err != nil {
		return nil, fmt.Errorf("eventstore: accept %d emails: %w", len(commits), err)
	}
	return recorded, nil
}

// group is the commits that belong into messages on one subject, by their places.
type group struct {
	subject string
	places  []int
}

// together groups the commits of emails by subject and request, in their order.
func (s *Store) together(ctx context.Context, commits []Commit) ([]*group, error) {
	type part struct {
		subject string
		request uuid.UUID
	}
	var groups []*group
	known := map[part]*group{}
	commands := make(map[uuid.UUID]bool, len(commits))
	for i, c := range commits {
		id, err := uuid.Parse(c.Stream.ID)
		if err != nil {
			return nil, fmt.Errorf("eventstore: accept %s: an email's id is a UUID: %w", c.Stream, err)
		}
		if commands[c.By.Command] {
			return nil, fmt.Errorf("eventstore: accept %s: its command %s is that of another email; each needs its own", c.Stream, c.By.Command)
		}
		commands[c.By.Command] = true
		partition, err := s.place(ctx, id)
		if err != nil {
			return nil, err
		}
		of := part{mailSubject(partition, c.Stream.Account), c.By.Correlation}
		g := known[of]
		if g == nil || of.request == uuid.Nil {
			g = &group{subject: of.subject}
			known[of], groups = g, append(groups, g)
		}
		g.places = append(g.places, i)
	}
	return groups, nil
}

// packed is a message that is to be published, and the places of the commits in it.
type packed struct {
	msg    *nats.Msg
	places []int
}

// encodeAll encodes the commits of groups. The messages are those that are packed, in
// their order.
func (s *Store) encodeAll(groups []*group, commits []Commit) (written []packed, msgs []*nats.Msg, recorded [][]domain.Recorded, err error) {
	recorded = make([][]domain.Recorded, len(commits))
	for _, g := range groups {
		if written, err = s.messages(written, g.subject, commits, g.places, recorded); err != nil {
			return nil, nil, nil, err
		}
	}
	for _, w := range written {
		msgs = append(msgs, w.msg)
	}
	return written, msgs, recorded, nil
}

// maxTogether bounds a message of several commits, in bytes.
const maxTogether = 256 << 10

// messages encodes commits into as few messages as they fit in.
func (s *Store) messages(to []packed, subject string, commits []Commit, places []int, recorded [][]domain.Recorded) ([]packed, error) {
	chosen := make([]Commit, len(places))
	for n, i := range places {
		chosen[n] = commits[i]
	}
	msg, said, err := s.encode(subject, chosen...)
	if err != nil {
		return nil, err
	}
	if len(msg.Data) > maxTogether && len(places) > 1 {
		half := len(places) / 2
		if to, err = s.messages(to, subject, commits, places[:half], recorded); err != nil {
			return nil, err
		}
		return s.messages(to, subject, commits, places[half:], recorded)
	}
	s.recent.keep(msg.Data, said...)
	for n, i := range places {
		recorded[i] = said[n]
	}
	return append(to, packed{msg, places}), nil
}

// settle places what was recorded. The server answers a message whose id it
// knows with the earlier message's place; that must then hold the same commits.
func (s *Store) settle(ctx context.Context, written []packed, recorded [][]domain.Recorded, out []published) error {
	var failed error
	for n, p := range out {
		switch {
		case p.err != nil:
			// A fence outranks an outage: it tells the owner to stop.
			if failed == nil || errors.Is(p.err, ErrConflict) {
				failed = p.err
			}
		case p.duplicate:
			failed = errors.Join(failed, s.settleTwin(ctx, written[n].places, recorded, p))
		default:
			for _, i := range written[n].places {
				place(recorded[i], p.stream, p.seq)
			}
		}
	}
	return failed
}

// settleTwin finds the commits of a message that was recorded before. A server that is
// cut off from the others, and led them before, may not have it: for some seconds it
// answers as if it still did.
func (s *Store) settleTwin(ctx context.Context, places []int, recorded [][]domain.Recorded, p published) error {
	held, err := s.Read(ctx, p.stream, p.seq)
	if errors.Is(err, ErrNoEntry) {
		err = fmt.Errorf("%w: one server has recorded it at %s %d, and another has not: %w", ErrUnavailable, p.stream, p.seq, err)
	}
	if err == nil {
		err = held.Err
	}
	if err != nil {
		return err
	}
	for _, i := range places {
		of, command := recorded[i][0].Stream, recorded[i][0].By.Command
		events := held.Of(of)
		if len(events) == 0 {
			return fmt.Errorf("the command %s was recorded for %s at %s %d, and %s needs a command of its own", command, held.Events[0].Stream, p.stream, p.seq, of)
		}
		recorded[i] = events
	}
	return nil
}

// Record puts facts about reads or refusals on ACCESS or ASKED, all in one
// message. It returns when the server has them, and if wait is set when they
// are on disk.
func (s *Store) Record(ctx context.Context, log, account string, commits []Commit, wait bool) error {
	subject, ok := map[string]string{Access: "access.", Asked: "asked."}[log]
	if !ok || !isToken(account) {
		return fmt.Errorf("eventstore: record: there is no log %s of account %q", log, account)
	}
	msg, recorded, err := s.encode(subject+account, commits...)
	if err != nil {
		return err
	}
	s.recent.keep(msg.Data, recorded...)
	begun := time.Now()
	p := s.publish(ctx, wait, msg)[0]
	s.appended(log, begun, p.err, recorded...)
	if p.err != nil {
		return fmt.Errorf("eventstore: record on %s: %w", log, p.err)
	}
	return nil
}

// place fills in where a commit was recorded.
func place(events []domain.Recorded, log string, seq uint64) []domain.Recorded {
	for i := range events {
		events[i].Position = domain.Position{Log: log, Seq: seq}
	}
	return events
}
