package eventstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// published is the server's answer to one message.
type published struct {
	seq       uint64
	stream    string
	duplicate bool // the server knew the message's id: seq is the earlier one
	err       error
}

// publish hands messages to the server, all at once, and waits for its answers
// and, if durable, for the disk. An error of one message says nothing about the
// others.
func (s *Store) publish(ctx context.Context, durable bool, msgs ...*nats.Msg) []published {
	out := make([]published, len(msgs))
	if err := s.Err(); err != nil {
		for i := range out {
			out[i].err = err
		}
		return out
	}
	if s.cfg.MarkKey != nil {
		for _, m := range msgs {
			setMark(s.cfg.MarkKey, m)
		}
	}
	s.trimming.RLock()
	if len(msgs) == 1 {
		bounded, cancel := context.WithTimeout(ctx, ackTimeout)
		ack, err := s.publishOne(bounded, msgs[0])
		cancel()
		out[0] = answer(ack, err)
	} else {
		s.publishMany(ctx, out, msgs)
	}
	s.trimming.RUnlock()
	if durable {
		s.waitForDisk(ctx, out)
	}
	return out
}

func (s *Store) publishMany(ctx context.Context, out []published, msgs []*nats.Msg) {
	futures := make([]jetstream.PubAckFuture, len(msgs))
	for i, m := range msgs {
		f, err := s.writer(m.Subject).PublishMsgAsync(m)
		if err != nil {
			out[i] = answer(nil, err)
			continue
		}
		futures[i] = f
	}
	for i, f := range futures {
		if f == nil {
			continue
		}
		select {
		case ack := <-f.Ok():
			out[i] = answer(ack, nil)
		case err := <-f.Err():
			out[i] = answer(nil, err)
		case <-ctx.Done():
			out[i] = answer(nil, ctx.Err())
		}
	}
}

// answer sorts what can come back: an acknowledgement; a conflict, which the
// server reports under two codes; a message that is too large, which is the
// caller's fault; and everything else, which is a log that does not write.
func answer(ack *jetstream.PubAck, err error) published {
	if err == nil {
		return published{seq: ack.Sequence, stream: ack.Stream, duplicate: ack.Duplicate}
	}
	api, ok := errors.AsType[*jetstream.APIError](err)
	switch {
	case ok && (api.ErrorCode == codeWrongLastSequence || api.ErrorCode == codeWriteUnderWay):
		return published{err: fmt.Errorf("%w: %w", ErrConflict, err)}
	case errors.Is(err, nats.ErrMaxPayload):
		return published{err: err}
	}
	return published{err: fmt.Errorf("%w: %w", ErrUnavailable, err)}
}

// The server's codes for an expectation that does not hold. The second stands
// for one that could not be checked, because another write is under way.
const (
	codeWrongLastSequence jetstream.ErrorCode = 10071
	codeWriteUnderWay     jetstream.ErrorCode = 10164
)

// Sync returns when everything that a log had acknowledged before the call is on
// disk. Where the log is elsewhere, or syncs by the clock, it returns at once.
func (s *Store) Sync(ctx context.Context, log string) error {
	out := []published{{stream: log}}
	s.waitForDisk(ctx, out)
	return out[0].err
}

// waitForDisk returns when every message that was acknowledged is on disk: all
// streams sync at the same time.
func (s *Store) waitForDisk(ctx context.Context, out []published) {
	if s.local == nil || s.cfg.Durability != Fsync {
		return
	}
	waits := map[string]<-chan error{}
	for i := range out {
		if out[i].err == nil && waits[out[i].stream] == nil {
			waits[out[i].stream] = s.syncer(out[i].stream).enrol()
		}
	}
	for stream, wait := range waits {
		var err error
		select {
		case err = <-wait:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err == nil {
			continue
		}
		for i := range out {
			if out[i].err == nil && out[i].stream == stream {
				out[i].err = fmt.Errorf("%w: wait for the disk: %w", ErrUnavailable, err)
			}
		}
	}
}
