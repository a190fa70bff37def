package delivery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// ErrNoAnswer says that DNS has no such record, with authority: the name or the
// type does not exist. Any other error of a look-up may pass.
var ErrNoAnswer = errors.New("DNS has no such record")

// How long answers are kept. The answers' own times to live are not known here,
// and are seldom shorter.
const (
	keepFound   = time.Minute
	keepMissing = 30 * time.Second
	keepAtMost  = 10_000 // answers
)

// Resolver asks DNS, and remembers the answers for a short time.
type Resolver struct {
	net    *net.Resolver
	flight singleflight.Group

	mu      sync.Mutex
	answers map[string]answer
}

type answer struct {
	value any
	err   error
	until time.Time
}

// NewResolver asks the server at addr, host:port, or the system's if it is empty.
func NewResolver(addr string) *Resolver {
	r := &Resolver{net: net.DefaultResolver, answers: map[string]answer{}}
	if addr != "" {
		var dialer net.Dialer
		r.net = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, addr)
		}}
	}
	return r
}

// Fresh is the same resolver without its memory, for whoever must not see stale
// answers.
func (r *Resolver) Fresh() *Resolver { return &Resolver{net: r.net} }

// MX returns the mail servers of a domain, best first, and those that are equally
// good in random order.
func (r *Resolver) MX(ctx context.Context, domain string) ([]*net.MX, error) {
	found, err := lookup(ctx, r, "MX", domain, r.net.LookupMX)
	mx := slices.Clone(found)
	rand.Shuffle(len(mx), func(i, j int) { mx[i], mx[j] = mx[j], mx[i] })
	slices.SortStableFunc(mx, func(a, b *net.MX) int { return int(a.Pref) - int(b.Pref) })
	return mx, err
}

// TXT returns the texts of a name, each joined from its strings.
func (r *Resolver) TXT(ctx context.Context, name string) ([]string, error) {
	return lookup(ctx, r, "TXT", name, r.net.LookupTXT)
}

// Addrs returns the addresses of a host.
func (r *Resolver) Addrs(ctx context.Context, host string) ([]netip.Addr, error) {
	return lookup(ctx, r, "A", host, func(ctx context.Context, name string) ([]netip.Addr, error) {
		return r.net.LookupNetIP(ctx, "ip", name)
	})
}

func lookup[T any](ctx context.Context, r *Resolver, kind, name string, ask func(context.Context, string) (T, error)) (T, error) {
	// A name that ends in a dot is looked up as it is, without a search list.
	name = strings.TrimSuffix(name, ".") + "."
	key := kind + " " + strings.ToLower(name)
	if a, ok := r.remembered(key); ok {
		value, _ := a.value.(T)
		return value, a.err
	}
	coming := r.flight.DoChan(key, func() (any, error) {
		// Whoever gave up must not spoil the answer for the others.
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
		defer cancel()
		value, err := ask(asking, name)
		if fault, ok := errors.AsType[*net.DNSError](err); ok && fault.IsNotFound {
			err = fmt.Errorf("%s of %s: %w", kind, strings.TrimSuffix(name, "."), ErrNoAnswer)
		} else if err != nil {
			err = fmt.Errorf("look up %s of %s: %w", kind, strings.TrimSuffix(name, "."), err)
		}
		r.remember(key, value, err)
		return value, err
	})
	select {
	case got := <-coming:
		value, _ := got.Val.(T)
		return value, got.Err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("look up %s of %s: %w", kind, strings.TrimSuffix(name, "."), ctx.Err())
	}
}

func (r *Resolver) remembered(key string) (answer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.answers[key]
	return a, ok && time.Now().Before(a.until)
}

func (r *Resolver) remember(key string, value any, err error) {
	keep := keepFound
	if errors.Is(err, ErrNoAnswer) {
		keep = keepMissing
	} else if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answers == nil {
		return
	}
	if len(r.answers) >= keepAtMost {
		clear(r.answers)
	}
	r.answers[key] = answer{value, err, time.Now().Add(keep)}
}
