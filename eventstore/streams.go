package eventstore

// The streams that the logs lie on, and how each is bounded. Nothing removes an
// entry of LEDGER or of the emails' logs: deleting and purging are denied, and a
// full log refuses what is new. A stream that was created with these denials
// keeps them for ever. What the archive holds can be trimmed: archive.go.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// createStreams brings the streams to what this program expects.
func (s *Store) createStreams(ctx context.Context) error {
	if err := s.settlePartitions(ctx); err != nil {
		return err
	}
	for _, c := range s.streamConfigs() {
		if err := s.keepAge(ctx, &c); err != nil {
			return err
		}
		if err := s.createStream(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// keepAge leaves a log that an archive bounds without an age, also when it is
// opened by somebody who does not know the archive: what expires has to be in it.
func (s *Store) keepAge(ctx context.Context, c *jetstream.StreamConfig) error {
	if !Aged(c.Name) || s.cfg.Archive != nil {
		return nil
	}
	held, err := s.js.Stream(ctx, c.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("eventstore: look for %s: %w: %w", c.Name, ErrUnavailable, err)
	}
	if held.CachedInfo().Config.MaxAge == 0 {
		c.MaxAge = 0
	}
	return nil
}

// createStream creates a stream, or brings one that is there to what is expected
// of it. Copies of it are added, and never taken away. One of a cluster that is as
// it should be is left alone: others may be changing the number of partitions.
func (s *Store) createStream(ctx context.Context, c jetstream.StreamConfig) error {
	if s.local == nil {
		held, err := s.js.Stream(ctx, c.Name)
		switch {
		case err == nil:
			there := held.CachedInfo().Config
			c.Replicas = max(c.Replicas, there.Replicas)
			if asExpected(there, c) {
				s.streams.Store(c.Name, held)
				return nil
			}
		case !errors.Is(err, jetstream.ErrStreamNotFound):
			return fmt.Errorf("eventstore: look for stream %s: %w: %w", c.Name, ErrUnavailable, err)
		}
	}
	stream, err := s.js.CreateOrUpdateStream(ctx, c)
	if err != nil {
		return fmt.Errorf("eventstore: create stream %s: %w: %w", c.Name, ErrUnavailable, err)
	}
	s.streams.Store(c.Name, stream)
	return nil
}

// asExpected compares what can differ between a stream and what is expected of it.
func asExpected(there, c jetstream.StreamConfig) bool {
	unlimited := func(n int64) int64 { return max(n, 0) } // the server says -1
	return there.Replicas == c.Replicas && there.MaxAge == c.MaxAge && there.Duplicates == c.Duplicates &&
		there.Discard == c.Discard && unlimited(there.MaxMsgs) == unlimited(c.MaxMsgs) &&
		unlimited(there.MaxBytes) == unlimited(c.MaxBytes) && there.Metadata[partitionsKey] == c.Metadata[partitionsKey]
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
	bounded := func(c jetstream.StreamConfig, age time.Duration) jetstream.StreamConfig {
		c.MaxAge = age
		return c
	}
	kept := 400 * day
	if s.cfg.Archive != nil {
		kept = 0 // nothing leaves the stream before the archive has it
	}
	ledger := log(Ledger, "ledger.>")
	ledger.Metadata = map[string]string{partitionsKey: formatEpochs(s.epochs)}

	once := bounded(log(Once, "once.>"), day)
	once.Discard, once.MaxMsgsPerSubject, once.DenyPurge = jetstream.DiscardOld, 1, false

	timers := log(Timers, "timers.>")
	timers.DenyDelete, timers.DenyPurge, timers.AllowMsgSchedules = false, false, true
	timers.AllowRollup = true             // which schedules bring with them
	timers.Discard = jetstream.DiscardOld // the server schedules nothing on a stream that refuses

	dead := log(Dead, "dead.>")

	configs := []jetstream.StreamConfig{
		ledger,
		bounded(log(Asked, "asked.>"), kept),
		bounded(log(Access, "access.>"), kept),
		log(Content, "content.>"),
		timers, dead, once,
	}
	for p := range s.Partitions() {
		mail := log(MailLog(p), mailSubject(p, ">"))
		// Each id in the window costs memory, and this is where the mass is.
		mail.Duplicates = s.Recognised()
		configs = append(configs, mail)
	}
	return configs
}

// Recognised is for how long the log recognises a commit of an email that comes
// again.
func (s *Store) Recognised() time.Duration {
	if s.local == nil {
		return clusterWindow
	}
	return cmp.Or(s.cfg.Recognise, 30*time.Second)
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
