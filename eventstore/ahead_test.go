package eventstore

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
)

// Many who follow large entries at once share a connection, which the server ends when
// too much waits in it: they ask for so little ahead that it lasts, also where the way
// to the server is slow.
func TestManyFollowersKeepTheirConnection(t *testing.T) {
	t.Parallel()
	host := open(t)
	const followers, entries = 24, 100
	for n := range entries {
		size := 100 << 10
		if n%7 == 0 {
			size = maxMessage - 10<<10
		}
		c := Commit{Stream: domain.Stream{Account: "acme", Kind: "access", ID: fmt.Sprint(n)}, By: operator(), At: at}
		c.Events = []domain.Event{account.Opened{Name: strings.Repeat("x", size)}}
		must(0, host.Record(t.Context(), Access, "acme", []Commit{c}, false))(t)
	}
	s := open(t, func(c *Config) { c.URL = slowly(t, host.URL(), 100<<20) })
	var all sync.WaitGroup
	for range followers {
		all.Go(func() {
			seen := 0
			err := s.Follow(t.Context(), Following{Log: Access, StopAt: entries, MaxBatch: 10}, func(_ context.Context, es []Entry) error {
				seen += len(es)
				return nil
			})
			if err != nil || seen != entries {
				t.Errorf("%d entries were handed over, want %d; %v", seen, entries, err)
			}
		})
	}
	all.Wait()
	if n := s.links[followLink].nc.Stats().Reconnects; n > 0 {
		t.Errorf("the connection was made again %d times", n)
	}
}

// slowly is the URL of a server over a way that carries so many bytes a second from it.
func slowly(t *testing.T, server string, rate int) string {
	u := must(url.Parse(server))(t)
	behind := u.Host
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	u.Host = l.Addr().String()
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", behind)
			if err != nil {
				_ = near.Close()
				return
			}
			go func() {
				_, _ = io.Copy(far, near) // either end may close first
				_ = far.Close()
			}()
			go func() {
				defer near.Close()
				const pause = 10 * time.Millisecond
				for {
					_, err := io.CopyN(near, far, int64(rate)/int64(time.Second/pause))
					if err != nil {
						return
					}
					time.Sleep(pause)
				}
			}()
		}
	}()
	return u.String()
}
