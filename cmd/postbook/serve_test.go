package main

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/eventstore"
)

// What ends a server, and what only begins it again.
func TestAgain(t *testing.T) {
	t.Parallel()
	type end struct {
		ready bool
		err   error
	}
	noLeader := fmt.Errorf("read: %w: %w", eventstore.ErrUnavailable, &jetstream.APIError{Code: 503, ErrorCode: 10008})
	nobody := fmt.Errorf("connect: %w: %w", eventstore.ErrUnavailable, nats.ErrNoServers)
	broken := errors.New("the seal's key is not that of the others")
	for name, c := range map[string]struct {
		url   string
		ends  []end // of each start, of which the last is repeated
		want  error
		times int
	}{
		"it is told to stop":                     {"nats://n1", []end{{true, nil}}, nil, 1},
		"no leader at the start":                 {"nats://n1", []end{{false, noLeader}, {false, noLeader}, {true, nil}}, nil, 3},
		"no leader for long":                     {"nats://n1", []end{{false, noLeader}}, noLeader, 1 + int(electing/time.Second)},
		"no leader after it was ready":           {"nats://n1", []end{{true, noLeader}}, noLeader, 1},
		"no server at all":                       {"nats://n1", []end{{false, nobody}}, nobody, 1},
		"no leader of a log in this process":     {"", []end{{false, noLeader}}, noLeader, 1},
		"something else is wrong":                {"nats://n1", []end{{false, broken}}, broken, 1},
		"the number of partitions has changed":   {"", []end{{true, eventstore.ErrRepartitioned}, {true, nil}}, nil, 2},
		"it has changed, and there is no leader": {"nats://n1", []end{{true, eventstore.ErrRepartitioned}, {false, noLeader}, {true, nil}}, nil, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				times := 0
				err := again(t.Context(), Config{NATSURL: c.url}, func(context.Context, Config) (bool, error) {
					e := c.ends[min(times, len(c.ends)-1)]
					times++
					return e.ready, e.err
				})
				if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) || times != c.times {
					t.Errorf("it ends with %v after %d starts, want %v after %d", err, times, c.want, c.times)
				}
			})
		})
	}
}
