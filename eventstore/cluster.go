package eventstore

// What differs where the log is kept by a cluster of NATS servers rather than by
// this process: how many copies there are, who is asked when a server is alive
// but cut off, and which refusals of a write say "not now" rather than "no".

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// clusterReplicas is how many servers keep each stream when nothing else is
// asked for: one of them may be lost.
const clusterReplicas = 3

const (
	// pingEvery finds a connection that leads nowhere: after two pings without an
	// answer another server is asked.
	pingEvery = 2 * time.Second
	// lookEvery and cutOffAfter find a server that answers, and has lost the rest of
	// its cluster: it keeps its clients, and can neither write nor read for them.
	lookEvery   = time.Second
	cutOffAfter = 4 * time.Second
	// heartbeat is how often a server says that a tail is still being served: one that
	// has said nothing for twice as long is lost.
	heartbeat = 2 * time.Second
	// askAgain is how long an answer is waited for that takes milliseconds.
	askAgain = 2 * time.Second
	// electionTime is how long a start waits for a cluster that is still electing.
	electionTime = time.Minute
)

// clusterWindow is how long a cluster knows the ids of the emails' commits: longer
// than anybody goes on trying to record one.
const clusterWindow = 5 * time.Minute

// external are the options of connections to servers that are not this process.
func external() []nats.Option {
	return []nats.Option{nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(2), nats.Timeout(5 * time.Second)}
}

// settleReplicas decides how many servers keep each stream.
func (s *Store) settleReplicas() {
	if s.cfg.Replicas == 0 && s.local == nil && s.nc.ConnectedClusterName() != "" {
		s.cfg.Replicas = clusterReplicas
	}
	s.cfg.Replicas = max(s.cfg.Replicas, 1)
}

// Replicas is how many servers keep each stream.
func (s *Store) Replicas() int { return s.cfg.Replicas }

// Alone reports whether no other process can use the log.
func (s *Store) Alone() bool { return s.local != nil }

// untilElected tries something that a cluster may not be ready for, for a while.
func (s *Store) untilElected(ctx context.Context, within time.Duration, try func(context.Context) error) error {
	err := try(ctx)
	if s.local != nil {
		return err
	}
	for deadline := time.Now().Add(within); notYet(err) && time.Now().Before(deadline); {
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
		err = try(ctx)
	}
	return err
}

// answered asks for something that leaves nothing behind, however often it is asked.
// A question to a server that is lost is lost with it, so that a cluster is asked
// again before anybody would give up.
func (s *Store) answered(ctx context.Context, ask func(context.Context) error) error {
	each := ackTimeout
	if s.local == nil {
		each = askAgain
	}
	return s.untilElected(ctx, ackTimeout, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, each)
		defer cancel()
		return ask(ctx)
	})
}

// The server's codes for a cluster without a leader, and for one that knows of
// fewer servers than are asked for: they may still be on their way.
const (
	codeNoLeader    jetstream.ErrorCode = 10008
	codeFewServers  jetstream.ErrorCode = 10005
	codeNoResources jetstream.ErrorCode = 10023
	codeNoQuorum    jetstream.ErrorCode = 10009
	codeOffline     jetstream.ErrorCode = 10118

	// A consumer was put on a server that is gone: another one may be put elsewhere.
	codeConsumerOffline jetstream.ErrorCode = 10119
)

func notYet(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		switch api.ErrorCode {
		case codeNoLeader, codeFewServers, codeNoResources, codeNoQuorum, codeOffline:
			return true
		}
		return false
	}
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoServers) ||
		errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrConnectionClosed)
}

// Electing reports whether an error says that a cluster has no leader, or answers late,
// as it does for a while after it has lost a server.
func Electing(err error) bool { return notYet(err) && !errors.Is(err, nats.ErrNoServers) }

// refusedForGood reports whether a server has answered, and will not answer otherwise.
func refusedForGood(err error) bool {
	api, answered := errors.AsType[*jetstream.APIError](err)
	return answered && !notYet(err) && api.ErrorCode != codeConsumerOffline
}

// watchServers moves each link to another server when the one that it is
// connected to has not answered for JetStream for a while.
func (s *Store) watchServers(ctx context.Context) {
	for i := range s.links {
		l := s.links[i]
		s.watching.Go(func() {
			heard := time.Now()
			tick := time.NewTicker(lookEvery)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				asked, cancel := context.WithTimeout(ctx, lookEvery)
				_, err := l.js.AccountInfo(asked)
				cancel()
				if err == nil || !l.nc.IsConnected() {
					heard = time.Now() // without a connection, the client looks for another by itself
					continue
				}
				if time.Since(heard) > cutOffAfter && ctx.Err() == nil {
					s.cfg.Log.Warn("a server of the log answers, and its cluster does not: another one is asked", "server", l.nc.ConnectedServerName(), "error", err)
					_ = l.nc.ForceReconnect() // fails only when the link is closed
					heard = time.Now()
				}
			}
		})
	}
}

// notNow reports whether a write was refused because another one is under way,
// of which the server cannot know yet whether it will count: another to the same
// subject, or an earlier try of the same.
func notNow(err error) bool {
	const codeTwinUnderWay jetstream.ErrorCode = 10158
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == codeWriteUnderWay || api.ErrorCode == codeTwinUnderWay)
}

// underWay bounds how long a write waits for another that is under way.
const underWay = 2 * time.Second

// publishOne hands one message over. A cluster checks what a write expects of a
// subject before its servers have agreed on it, one write at a time: a second one
// that comes meanwhile is refused, has left nothing, and is handed over again.
func (s *Store) publishOne(ctx context.Context, m *nats.Msg) (*jetstream.PubAck, error) {
	wait := time.Millisecond
	for begun := time.Now(); ; wait = min(2*wait, 50*time.Millisecond) {
		ack, err := s.writer(m.Subject).PublishMsg(ctx, m)
		if !notNow(err) || time.Since(begun) > underWay {
			return ack, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}
