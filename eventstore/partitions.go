package eventstore

// How many partitions the emails lie on, now and before. An email lies where the
// number that held at the time in its id puts it, for ever: so the number can
// change, and nothing is moved.

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
)

// An Epoch is a stretch of time in which emails are spread over so many
// partitions.
type Epoch struct {
	Since      time.Time `json:"since"` // of the first it is zero
	Partitions int       `json:"partitions"`
}

const (
	// partitionsKey is where the ledger's description keeps the epochs: "4", or
	// "4,16@1764000000000" with the milliseconds of when each later one begins.
	partitionsKey     = "postbook-partitions"
	defaultPartitions = 4
	maxPartitions     = 100
)

// Every process learns of a new epoch well before it begins: it looks each
// learnEvery, and takes no email in whose id is newer than its last look by more
// than trustFor. An epoch begins epochLead after it is made, which leaves what
// is between the two for clocks that differ.
const (
	learnEvery = 5 * time.Second
	trustFor   = 20 * time.Second
	epochLead  = time.Minute
)

// ErrRepartitioned says that the number of partitions has changed: this process
// has to open the log again before the new number holds.
var ErrRepartitioned = errors.New("eventstore: the number of partitions has changed")

func formatEpochs(epochs []Epoch) string {
	parts := make([]string, len(epochs))
	for i, e := range epochs {
		parts[i] = strconv.Itoa(e.Partitions)
		if i > 0 {
			parts[i] += "@" + strconv.FormatInt(e.Since.UnixMilli(), 10)
		}
	}
	return strings.Join(parts, ",")
}

func parseEpochs(text string) ([]Epoch, error) {
	var epochs []Epoch
	for i, part := range strings.Split(text, ",") {
		number, since, later := strings.Cut(part, "@")
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 || n > maxPartitions || later != (i > 0) {
			return nil, fmt.Errorf("%q does not say how many partitions there are", text)
		}
		e := Epoch{Partitions: n}
		if later {
			ms, err := strconv.ParseInt(since, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%q does not say since when there are %d partitions", text, n)
			}
			e.Since = time.UnixMilli(ms).UTC()
			if !e.Since.After(epochs[i-1].Since) {
				return nil, fmt.Errorf("%q is not in the order of time", text)
			}
		}
		epochs = append(epochs, e)
	}
	return epochs, nil
}

// idTime is the time in an id that the platform has drawn. Other ids have none,
// and belong to the first epoch.
func idTime(id uuid.UUID) time.Time {
	if id.Version() != 7 {
		return time.Time{}
	}
	var ms int64
	for _, b := range id[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}

// Partition is where an email's facts lie.
func (s *Store) Partition(email uuid.UUID) int {
	at, n := idTime(email), s.epochs[0].Partitions
	for _, e := range s.epochs[1:] {
		if !at.Before(e.Since) {
			n = e.Partitions
		}
	}
	return spread(email, n)
}

// spread is the FNV-1a hash of an id in text form: over the email, so that a
// large account is spread out.
func spread(email uuid.UUID, partitions int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(email.String()))
	return int(h.Sum32() % uint32(partitions))
}

// Partitions is how many partitions have to be owned: the largest number that
// there ever was.
func (s *Store) Partitions() int {
	most := 0
	for _, e := range s.epochs {
		most = max(most, e.Partitions)
	}
	return most
}

// Epochs are the numbers of partitions, oldest first.
func (s *Store) Epochs() []Epoch { return slices.Clone(s.epochs) }

// settlePartitions takes over the epochs that the log has. With others, an
// email's facts would be looked for in the wrong place.
func (s *Store) settlePartitions(ctx context.Context) error {
	wanted := s.cfg.Partitions
	if wanted < 0 || wanted > maxPartitions {
		return fmt.Errorf("eventstore: %d partitions are asked for; there can be 1 to %d", wanted, maxPartitions)
	}
	asked := time.Now()
	epochs, err := s.readEpochs(ctx)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		// The ledger is the first stream that is made, and the last that is put back.
		if _, err := s.js.Stream(ctx, MailLog(0)); err == nil {
			return errors.New("eventstore: there are logs of emails, but no ledger: a restore has not ended, or somebody has deleted it")
		}
		if wanted == 0 {
			wanted = defaultPartitions
		}
		epochs = []Epoch{{Partitions: wanted}}
	case err != nil:
		return err
	}
	if newest := epochs[len(epochs)-1].Partitions; wanted != 0 && wanted != newest {
		return fmt.Errorf("eventstore: the log was created with %d partitions of the emails and cannot be opened with %d; configure %d or leave the number out, and change it with the command partitions", newest, wanted, newest)
	}
	s.epochs = epochs
	s.learned.Store(asked.UnixNano())
	return nil
}

func (s *Store) readEpochs(ctx context.Context) ([]Epoch, error) {
	ledger, err := s.js.Stream(ctx, Ledger)
	if err != nil {
		return nil, fmt.Errorf("eventstore: look for the ledger: %w: %w", ErrUnavailable, err)
	}
	epochs, err := parseEpochs(ledger.CachedInfo().Config.Metadata[partitionsKey])
	if err != nil {
		return nil, fmt.Errorf("eventstore: the stream LEDGER was not created by postbook: %w", err)
	}
	return epochs, nil
}

// learn looks whether the epochs are still those that this process works with.
func (s *Store) learn(ctx context.Context) error {
	asked := time.Now()
	epochs, err := s.readEpochs(ctx)
	if err != nil {
		return err
	}
	if !slices.Equal(epochs, s.epochs) {
		s.repartition.Do(func() { close(s.repartitioned) })
		return ErrRepartitioned
	}
	s.learned.Store(asked.UnixNano())
	return nil
}

// place is the partition of an email that is about to be accepted.
func (s *Store) place(ctx context.Context, email uuid.UUID) (int, error) {
	if s.local == nil && idTime(email).After(time.Unix(0, s.learned.Load()).Add(trustFor)) {
		if err := s.learn(ctx); err != nil {
			return 0, fmt.Errorf("eventstore: find the partition of a new email: %w", err)
		}
	}
	return s.Partition(email), nil
}

// keepLearning looks now and then, until ctx ends, at what other processes may have
// changed: the bounds of streams, and the epochs, which stay while a server runs
// that holds the log itself.
func (s *Store) keepLearning(ctx context.Context) {
	tick := time.NewTicker(learnEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		asked, cancel := context.WithTimeout(ctx, learnEvery)
		if s.local == nil {
			if err := s.learn(asked); err != nil && ctx.Err() == nil && !errors.Is(err, ErrUnavailable) {
				s.cfg.Log.Warn("the number of partitions was looked at", "error", err)
			}
		}
		s.unboundOthers(asked)
		cancel()
	}
}

// Repartitioned is closed when another process has changed the number of
// partitions. The log has to be opened again then, and there is time for that
// before the new number holds.
func (s *Store) Repartitioned() <-chan struct{} { return s.repartitioned }

// Repartition spreads the emails that are accepted from the returned time on over
// n partitions. Those from before stay where they are. The log has to be opened
// again afterwards.
func (s *Store) Repartition(ctx context.Context, n int) (since time.Time, err error) {
	if n < 1 || n > maxPartitions {
		return since, fmt.Errorf("eventstore: %d partitions are asked for; there can be 1 to %d", n, maxPartitions)
	}
	epochs, err := s.readEpochs(ctx)
	if err != nil {
		return since, err
	}
	newest := epochs[len(epochs)-1]
	lead := epochLead
	if s.local != nil {
		lead = 0 // nobody else has the log open
	}
	since = time.Now().Add(lead).UTC().Truncate(time.Millisecond).Add(time.Millisecond)
	switch {
	case newest.Partitions == n:
		return newest.Since, nil
	case !newest.Since.Before(since):
		return since, fmt.Errorf("eventstore: the number of partitions was changed just now; it can be changed again after %s", newest.Since.Format(time.RFC3339))
	}
	grown := &Store{cfg: s.cfg, epochs: append(epochs, Epoch{since, n}), js: s.js, local: s.local}
	for _, c := range grown.streamConfigs() {
		// The ledger is last: the number holds once it says so, and the streams are there.
		if c.Name == Ledger {
			continue
		}
		if err := grown.createStream(ctx, c); err != nil {
			return since, err
		}
	}
	for _, c := range grown.streamConfigs() {
		if c.Name == Ledger {
			return since, grown.createStream(ctx, c)
		}
	}
	return since, errors.New("eventstore: there is no ledger")
}
