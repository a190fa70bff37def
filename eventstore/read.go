package eventstore

// Reading back. A history is complete or it is an error: each commit names the
// one before it, so that nothing can be missing unnoticed.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain"
)

// Entry is one message of a log.
type Entry struct {
	domain.Position
	Time    time.Time // when the server stored it
	Subject string
	Events  []domain.Recorded // none in a claim to a partition
	Err     error             // why the events cannot be read, or nil
	Raw     []byte            // the body
	Header  []byte            // in its canonical form, where Undecoded was asked for
}

// Of is the events of one aggregate among an entry's.
func (e Entry) Of(of domain.Stream) []domain.Recorded {
	for _, commit := range e.Commits() {
		if commit[0].Stream == of {
			return commit
		}
	}
	return nil
}

// Commits are an entry's events, those of each aggregate by themselves. An aggregate
// has one commit in an entry.
func (e Entry) Commits() [][]domain.Recorded {
	var commits [][]domain.Recorded
	for from := 0; from < len(e.Events); {
		to := from + 1
		for to < len(e.Events) && e.Events[to].Stream == e.Events[from].Stream {
			to++
		}
		commits = append(commits, e.Events[from:to:to])
		from = to
	}
	return commits
}

// Read returns the entry at a sequence of a log, or ErrNoEntry.
func (s *Store) Read(ctx context.Context, log string, seq uint64) (Entry, error) {
	e, err := s.fromStream(ctx, log, seq)
	if errors.Is(err, ErrNoEntry) {
		return s.fromArchive(ctx, log, seq, err)
	}
	return e, err
}

func (s *Store) fromStream(ctx context.Context, log string, seq uint64) (Entry, error) {
	if s.local == nil {
		return s.fromLeader(ctx, log, leaderGet{Seq: seq})
	}
	stream, err := s.stream(ctx, log)
	if err != nil {
		return Entry{}, err
	}
	msg, err := stream.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Entry{}, fmt.Errorf("eventstore: read %s %d: %w", log, seq, ErrNoEntry)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("eventstore: read %s %d: %w: %w", log, seq, ErrUnavailable, err)
	}
	return s.decodeEntry(log, msg.Sequence, msg.Time, msg.Subject, msg.Data), nil
}

// lastOn returns the last entry on a subject, in which wildcards are allowed, or
// ErrNoEntry.
func (s *Store) lastOn(ctx context.Context, log, subject string) (Entry, error) {
	return s.fromLeader(ctx, log, leaderGet{LastOn: subject})
}

// leaderGet asks for one message of a stream.
type leaderGet struct {
	Seq    uint64 `json:"seq,omitempty"`
	LastOn string `json:"last_by_subj,omitempty"`
	NextOn string `json:"next_by_subj,omitempty"`
}

// fromLeader asks the stream's leader. The faster direct read may be answered
// by a follower of a cluster, which may not have what was just acknowledged.
func (s *Store) fromLeader(ctx context.Context, log string, get leaderGet) (Entry, error) {
	m, err := s.leaderMessage(ctx, log, get)
	if err != nil {
		return Entry{}, err
	}
	return s.decodeEntry(log, m.Seq, m.Time, m.Subject, m.Data), nil
}

// leaderMessage is a message as a stream's leader has it.
type leaderMessage struct {
	Subject string    `json:"subject"`
	Seq     uint64    `json:"seq"`
	Header  []byte    `json:"hdrs"`
	Data    []byte    `json:"data"`
	Time    time.Time `json:"time"`
}

func (s *Store) leaderMessage(ctx context.Context, log string, get leaderGet) (leaderMessage, error) {
	if !isToken(log) {
		return leaderMessage{}, fmt.Errorf("eventstore: there is no log called %q: %w", log, ErrNoEntry)
	}
	request, err := json.Marshal(get)
	if err != nil {
		return leaderMessage{}, fmt.Errorf("eventstore: ask for an entry: %w", err)
	}
	var reply *nats.Msg
	err = s.answered(ctx, func(ctx context.Context) (err error) {
		reply, err = s.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+log, request)
		return err
	})
	if err != nil {
		return leaderMessage{}, fmt.Errorf("eventstore: read from %s: %w: %w", log, ErrUnavailable, err)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *leaderMessage      `json:"message"`
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return leaderMessage{}, fmt.Errorf("eventstore: read from %s: %w: %w", log, ErrUnavailable, err)
	}
	switch m := answer.Message; {
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return leaderMessage{}, fmt.Errorf("eventstore: read from %s: %w", log, ErrNoEntry)
	case answer.Error != nil:
		return leaderMessage{}, fmt.Errorf("eventstore: read from %s: %w: %w", log, ErrUnavailable, answer.Error)
	case m == nil:
		return leaderMessage{}, fmt.Errorf("eventstore: read from %s: %w: the answer holds no message", log, ErrUnavailable)
	default:
		return *m, nil
	}
}

// Last is the last sequence on a subject of a log, in which wildcards are
// allowed; 0 if there is none. Where the stream holds none, and older entries are
// in the archive, it is the last of these: the subject may have had one up to there.
func (s *Store) Last(ctx context.Context, log, subject string) (uint64, error) {
	e, err := s.lastOn(ctx, log, subject)
	if !errors.Is(err, ErrNoEntry) {
		return e.Seq, err
	}
	if s.cfg.Archive == nil || !Archived(log) {
		return 0, nil
	}
	state, err := s.state(ctx, log)
	return max(state.FirstSeq, 1) - 1, err
}

// Head is the last sequence of a log; 0 if it is empty.
func (s *Store) Head(ctx context.Context, log string) (uint64, error) {
	state, err := s.state(ctx, log)
	return state.LastSeq, err
}

func (s *Store) state(ctx context.Context, log string) (jetstream.StreamState, error) {
	stream, err := s.stream(ctx, log)
	if err != nil {
		return jetstream.StreamState{}, err
	}
	var info *jetstream.StreamInfo
	err = s.answered(ctx, func(ctx context.Context) (err error) {
		info, err = stream.Info(ctx)
		return err
	})
	if err != nil {
		return jetstream.StreamState{}, fmt.Errorf("eventstore: look at %s: %w: %w", log, ErrUnavailable, err)
	}
	return info.State, nil
}

// History is every event of an aggregate of the ledger, in order. It is never
// shorter than what was acknowledged before the call.
func (s *Store) History(ctx context.Context, of domain.Stream) ([]domain.Recorded, error) {
	if err := checkName(of); err != nil {
		return nil, err
	}
	tail, err := s.lastOn(ctx, Ledger, "ledger."+of.String())
	if errors.Is(err, ErrNoEntry) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return backFrom(ctx, s.Read, tail, of)
}

// Chain is every event of an email whose last commit has the sequence last, in
// order. It is ErrNoEntry if what lies there is none of the email's.
func (s *Store) Chain(ctx context.Context, log string, last uint64, id string) ([]domain.Recorded, error) {
	tail, err := s.chained.at(ctx, log, last)
	if err != nil {
		return nil, err
	}
	if tail.Err != nil {
		return nil, tail.Err
	}
	for _, commit := range tail.Commits() {
		if commit[0].Stream.ID == id {
			return backFrom(ctx, s.chained.at, tail, commit[0].Stream)
		}
	}
	return nil, fmt.Errorf("eventstore: %s %d is no commit of the email %s: %w", log, last, id, ErrNoEntry)
}

// latelyChained is how many entries of emails are kept in memory.
const latelyChained = 64

// backFrom follows an aggregate's commits from its last to its first.
func backFrom(ctx context.Context, read reader, tail Entry, of domain.Stream) ([]domain.Recorded, error) {
	var commits [][]domain.Recorded
	for e := tail; ; {
		if e.Err != nil {
			return nil, e.Err
		}
		commit := e.Of(of)
		if len(commit) == 0 {
			return nil, fmt.Errorf("eventstore: the history of %s is broken: %s %d belongs to something else", of, e.Log, e.Seq)
		}
		commits = append(commits, commit)
		prev := commit[0].Prev
		if prev == 0 {
			break
		}
		if prev >= e.Seq {
			return nil, fmt.Errorf("eventstore: the history of %s is broken: %s %d comes after %d", of, e.Log, e.Seq, prev)
		}
		var err error
		if e, err = read(ctx, e.Log, prev); err != nil {
			return nil, fmt.Errorf("eventstore: the history of %s is incomplete: %w", of, err)
		}
	}
	slices.Reverse(commits)
	return slices.Concat(commits...), nil
}
