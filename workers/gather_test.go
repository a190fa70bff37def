package workers

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// twice answers with the double of each item, and notes what was asked for together.
type twice struct {
	mu    sync.Mutex
	calls [][]int
	fail  error
	gate  chan struct{} // if not nil, an answer waits for it
}

func (d *twice) do(ctx context.Context, items []int) ([]int, error) {
	d.mu.Lock()
	d.calls = append(d.calls, slices.Clone(items))
	d.mu.Unlock()
	if d.gate != nil {
		select {
		case <-d.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	answers := make([]int, len(items))
	for i, n := range items {
		answers[i] = 2 * n
	}
	return answers, d.fail
}

// sizes are how many items each call had.
func (d *twice) sizes() (sizes []int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.calls {
		sizes = append(sizes, len(c))
	}
	return sizes
}

func TestWhoComesWithinATimeIsAskedForTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &twice{}
		g := &gather[int, int]{do: d.do}
		var asking sync.WaitGroup
		for n := range 50 {
			asking.Go(func() {
				time.Sleep(time.Duration(n) * time.Millisecond)
				begun := time.Now()
				got, err := g.ask(t.Context(), 20*time.Millisecond, n)
				if err != nil || got != 2*n {
					t.Errorf("the answer to %d is %d, %v", n, got, err)
				}
				if took := time.Since(begun); took > 20*time.Millisecond {
					t.Errorf("%d waited %s", n, took)
				}
			})
		}
		asking.Wait()
		if sizes := d.sizes(); len(sizes) != 3 {
			t.Errorf("50 in 50 ms were asked for as %v; want three times", sizes)
		}
	})
}

func TestWhoCannotWaitIsAskedForAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &twice{}
		g := &gather[int, int]{do: d.do}
		patient := make(chan int, 1)
		go func() {
			got, _ := g.ask(t.Context(), time.Second, 1)
			patient <- got
		}()
		synctest.Wait()
		begun := time.Now()
		if got, err := g.ask(t.Context(), 0, 2); got != 4 || err != nil || time.Since(begun) != 0 {
			t.Errorf("answered %d, %v after %s", got, err, time.Since(begun))
		}
		if got := <-patient; got != 2 || !slices.Equal(d.sizes(), []int{1, 1}) {
			t.Errorf("who could wait got %d, and they were asked for as %v", got, d.sizes())
		}
	})
}

func TestAnErrorIsForAllWhoAskedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &twice{fail: errors.New("the log is away")}
		g := &gather[int, int]{do: d.do}
		var asking sync.WaitGroup
		for n := range 3 {
			asking.Go(func() {
				if got, err := g.ask(t.Context(), time.Millisecond, n); !errors.Is(err, d.fail) || got != 0 {
					t.Errorf("answered %d, %v", got, err)
				}
			})
		}
		asking.Wait()
		if _, err := g.ask(t.Context(), 0, 1); !errors.Is(err, d.fail) {
			t.Errorf("who could not wait was answered %v", err)
		}
	})
}

// One of those who wait gives up, the one who came first. The others get their answers.
func TestWhoGivesUpLeavesTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &twice{gate: make(chan struct{})}
		g := &gather[int, int]{do: d.do}
		ctx, giveUp := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() {
			_, err := g.ask(ctx, time.Millisecond, 1)
			first <- err
		}()
		synctest.Wait()
		second := make(chan int, 1)
		go func() {
			got, err := g.ask(t.Context(), time.Millisecond, 2)
			if err != nil {
				t.Error(err)
			}
			second <- got
		}()
		time.Sleep(2 * time.Millisecond) // both are being asked for
		giveUp()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up was answered %v", err)
		}
		close(d.gate)
		if got := <-second; got != 4 || !slices.Equal(d.sizes(), []int{2}) {
			t.Errorf("the other got %d, and they were asked for as %v", got, d.sizes())
		}
	})
}
