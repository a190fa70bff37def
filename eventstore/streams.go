package eventstore

// The streams that the logs lie on, and how each is bounded. Nothing removes an
// entry of LEDGER or of the emails' logs: deleting and purging are denied, and a
// full log refuses what is new. A stream that was created with these denials
// keeps them for ever.

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// partitionsKey is where the ledger's description keeps the number of
// partitions that the log was created with.
const partitionsKey = "postbook-partitions"

const defaultPartitions = 4

// createStreams brings the streams to what this program expects.
func (s *Store) createStreams(ctx context.Context) error {
	if err := s.settlePartitions(ctx); err != nil {
		return err
	}
	for _, c := range s.streamConfigs() {
		stream, err := s.js.CreateOrUpdateStream(ctx, c)
		if err != nil {
			return fmt.Errorf("eventstore: create stream %s: %w: %w", c.Name, ErrUnavailable, err)
		}
		s.streams.Store(c.Name, stream)
	}
	return nil
}

// settlePartitions takes over the number of partitions that the log was created
// with. With another number, an email's facts would be looked for in the wrong
// place.
func (s *Store) settlePartitions(ctx context.Context) error {
	wanted := s.cfg.Partitions
	if wanted < 0 || wanted > 100 {
		return fmt.Errorf("eventstore: %d partitions are asked for; there can be 1 to 100", wanted)
	}
	ledger, err := s.js.Stream(ctx, Ledger)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		// The ledger is the first stream that is made, and the last that is put back.
		if _, err := s.js.Stream(ctx, MailLog(0)); err == nil {
			return errors.New("eventstore: there are logs of emails, but no ledger: a restore has not ended, or somebody has deleted it")
		}
		if wanted == 0 {
			s.cfg.Partitions = defaultPartitions
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("eventstore: look for the ledger: %w: %w", ErrUnavailable, err)
	}
	held, err := strconv.Atoi(ledger.CachedInfo().Config.Metadata[partitionsKey])
	if err != nil || held < 1 {
		return errors.New("eventstore: the stream LEDGER was not created by postbook: it does not say how many partitions there are")
	}
	if wanted != 0 && wanted != held {
		return fmt.Errorf("eventstore: the log was created with %d partitions of the emails and cannot be opened with %d; configure %d, or leave the number out", held, wanted, held)
	}
	s.cfg.Partitions = held
	return nil
}

const day = 24 * time.Hour

func (s *Store) streamConfigs() []jetstream.StreamConfig {
	log := func(name, subjects string) jetstream.StreamConfig {
		return jetstream.StreamConfig{
			Name:        name,
			Subjects:    []string{subjects},
			Storage:     jetstream.FileStorage,
			Replicas:    s.cfg.Replicas,
			Discard:     jetstream.DiscardNew,
			MaxBytes:    s.cfg.MaxBytes,
			MaxMsgSize:  maxMessage,
			Duplicates:  2 * time.Minute,
			AllowDirect: true,
			DenyDelete:  true,
			DenyPurge:   true,
		}
	}
	aged := func(c jetstream.StreamConfig, age time.Duration) jetstream.StreamConfig {
		c.MaxAge = age
		return c
	}
	ledger := log(Ledger, "ledger.>")
	ledger.Metadata = map[string]string{partitionsKey: strconv.Itoa(s.cfg.Partitions)}

	once := aged(log(Once, "once.>"), day)
	once.Discard, once.MaxMsgsPerSubject, once.DenyPurge = jetstream.DiscardOld, 1, false

	timers := log(Timers, "timers.>")
	timers.DenyDelete, timers.DenyPurge, timers.AllowMsgSchedules = false, false, true
	timers.AllowRollup = true             // which schedules bring with them
	timers.Discard = jetstream.DiscardOld // the server schedules nothing on a stream that refuses

	dead := log(Dead, "dead.>")

	configs := []jetstream.StreamConfig{
		ledger,
		aged(log(Asked, "asked.>"), 400*day),
		aged(log(Access, "access.>"), 400*day),
		log(Content, "content.>"),
		timers, dead, once,
	}
	for p := range s.cfg.Partitions {
		mail := log(MailLog(p), mailSubject(p, ">"))
		// Each id in the window costs memory, and this is where the mass is.
		mail.Duplicates = 30 * time.Second
		configs = append(configs, mail)
	}
	return configs
}

// mailSubject is where the emails of an account lie in a partition.
func mailSubject(partition int, account string) string {
	return fmt.Sprintf("mail.%02d.%s", partition, account)
}

// ownerSubject is where claims to a partition lie.
func ownerSubject(partition int) string { return mailSubject(partition, "owner") }

// LedgerSubject is the filter for the facts of one kind of aggregate, of all
// accounts: it fits Following.Subjects. An empty kind is all of them.
func LedgerSubject(kind string) string {
	if kind == "" {
		return "ledger.>"
	}
	return "ledger.*." + kind + ".*"
}

// stream is the handle of a log, without a round trip for those known.
func (s *Store) stream(ctx context.Context, log string) (jetstream.Stream, error) {
	if held, ok := s.streams.Load(log); ok {
		return held.(jetstream.Stream), nil //nolint:errcheck // the map holds nothing else
	}
	if !isToken(log) {
		return nil, fmt.Errorf("eventstore: there is no log called %q: %w", log, ErrNoEntry)
	}
	stream, err := s.js.Stream(ctx, log)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("eventstore: there is no log called %q: %w", log, ErrNoEntry)
	}
	if err != nil {
		return nil, fmt.Errorf("eventstore: look for log %s: %w: %w", log, ErrUnavailable, err)
	}
	s.streams.Store(log, stream)
	return stream, nil
}
