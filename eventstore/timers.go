package eventstore

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// DueTimers is the filter for the timers of a kind that are due: it is what a
// subscriber subscribes to, as "TIMERS/" and this.
func DueTimers(kind string) string { return "timers.due." + kind + ".*" }

// Schedule has a timer published at a time, on timers.due.<kind>.<id>; a time
// that is past is now. It replaces an earlier timer of the same kind and id.
func (s *Store) Schedule(ctx context.Context, kind, id string, at time.Time, body []byte) error {
	if !isToken(kind) || !isToken(id) {
		return fmt.Errorf("eventstore: schedule: %q of kind %q does not name a timer", id, kind)
	}
	if floor := time.Now().Add(time.Millisecond); at.Before(floor) {
		at = floor // the server keeps a schedule of the past without firing it
	}
	msg := &nats.Msg{Subject: timerSubject(kind, id), Data: body, Header: nats.Header{
		jetstream.ScheduleHeader:       {"@at " + at.UTC().Format(time.RFC3339Nano)},
		jetstream.ScheduleTargetHeader: {"timers.due." + kind + "." + id},
	}}
	if p := s.publish(ctx, true, msg)[0]; p.err != nil {
		return fmt.Errorf("eventstore: schedule %s of %s: %w", kind, id, p.err)
	}
	return nil
}

// Cancel removes a timer that is not due yet. It is no error if there is none.
func (s *Store) Cancel(ctx context.Context, kind, id string) error {
	if !isToken(kind) || !isToken(id) {
		return fmt.Errorf("eventstore: cancel: %q of kind %q does not name a timer", id, kind)
	}
	stream, err := s.stream(ctx, Timers)
	if err != nil {
		return err
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSubject(timerSubject(kind, id))); err != nil {
		return fmt.Errorf("eventstore: cancel %s of %s: %w: %w", kind, id, ErrUnavailable, err)
	}
	return nil
}

func timerSubject(kind, id string) string { return "timers.at." + kind + "." + id }
