package workers

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
)

// process is one that shares partitions with others.
type process struct {
	leases *Leases
	kill   func() // it says nothing more, and gives nothing back
	end    func()
}

func startProcess(t *testing.T, url string, partitions int) *process {
	t.Helper()
	store, err := eventstore.Open(t.Context(), eventstore.Config{URL: url, Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	bucket, err := store.Bucket(t.Context(), "owners")
	if err != nil {
		t.Fatal(err)
	}
	p := &process{leases: NewLeases(bucket, partitions, slog.New(slog.DiscardHandler))}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = p.leases.Run(ctx)
	}()
	p.end = func() {
		cancel()
		<-ended
	}
	p.kill = func() {
		store.Close() // first: so that nothing that it does at the end arrives
		p.end()
	}
	t.Cleanup(p.end)
	return p
}

func (p *process) held() []int {
	p.leases.mu.Lock()
	defer p.leases.mu.Unlock()
	var all []int
	for n, held := range p.leases.held {
		if !held.giving {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all
}

func shared(t *testing.T, within time.Duration, want []int, processes ...*process) {
	t.Helper()
	testenv.Eventually(t, within, func() error {
		owners := map[int]int{}
		var counts []int
		for _, p := range processes {
			held := p.held()
			counts = append(counts, len(held))
			for _, n := range held {
				owners[n]++
			}
		}
		slices.Sort(counts)
		for n, times := range owners {
			if times > 1 {
				return fmt.Errorf("partition %d is held %d times", n, times)
			}
		}
		if !slices.Equal(counts, want) {
			return fmt.Errorf("they hold %v, want %v", counts, want)
		}
		return nil
	})
}

// Partitions are shared out evenly; what a dead process had is taken by the others,
// and what one that ends had, at once. Work that is under way ends before its
// partition is somebody else's.
func TestPartitionsAreSharedOut(t *testing.T) {
	t.Parallel()
	server, err := eventstore.Open(t.Context(), eventstore.Config{Dir: t.TempDir(), Durability: eventstore.Interval, Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	const n = 8
	first := startProcess(t, server.URL(), n)
	shared(t, 10*time.Second, []int{8}, first)
	var endWork []func()
	var ends []<-chan struct{}
	for i := range n {
		leased, end, err := first.leases.hold(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		endWork, ends = append(endWork, end), append(ends, leased.Done())
	}
	second := startProcess(t, server.URL(), n)
	testenv.Eventually(t, 10*time.Second, func() error {
		if got := len(first.held()); got != 4 {
			return fmt.Errorf("the first keeps %d", got)
		}
		return nil
	})
	if got := second.held(); len(got) != 0 {
		t.Errorf("the second has %v, and the first still works on them", got)
	}
	given := 0
	for i := range n {
		select {
		case <-ends[i]:
			given++
			endWork[i]()
		default:
		}
	}
	if given != 4 {
		t.Errorf("work on %d partitions was told to end, want 4", given)
	}
	shared(t, 10*time.Second, []int{4, 4}, first, second)
	third := startProcess(t, server.URL(), n)
	for i := range n {
		endWork[i]()
	}
	shared(t, 10*time.Second, []int{2, 3, 3}, first, second, third)
	second.kill()
	shared(t, 3*silent, []int{4, 4}, first, third)
	third.end()
	shared(t, silent, []int{8}, first) // sooner than a dead one is noticed, or no later
}
