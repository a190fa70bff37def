package delivery

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestBackoffGrowsToEightHoursAndStays(t *testing.T) {
	middle := func() float64 { return 0.5 }
	want := []time.Duration{
		time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute,
		time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 8 * time.Hour, 8 * time.Hour,
	}
	for i, w := range want {
		if got := Backoff(i+1, middle); got.Round(time.Second) != w {
			t.Errorf("after %d tries the wait is %v and not %v", i+1, got, w)
		}
	}
	if Backoff(0, middle) != Backoff(1, middle) || Backoff(-5, middle) != Backoff(1, middle) || Backoff(1<<40, middle) != Backoff(8, middle) {
		t.Error("numbers of tries out of range are not brought into it")
	}
}

func TestBackoffIsMovedByAFifthAtMost(t *testing.T) {
	for tries := 1; tries <= 10; tries++ {
		middle := Backoff(tries, func() float64 { return 0.5 })
		low, high := middle*8/10, middle*12/10
		if got := Backoff(tries, func() float64 { return 0 }); (got - low).Abs() > time.Second {
			t.Errorf("after %d tries the least is %v and not %v", tries, got, low)
		}
		seen := map[time.Duration]bool{}
		for range 200 {
			got := Backoff(tries, rand.Float64)
			if got < low-time.Second || got > high+time.Second {
				t.Fatalf("after %d tries %v is out of %v to %v", tries, got, low, high)
			}
			seen[got] = true
		}
		if len(seen) < 100 {
			t.Errorf("after %d tries there are only %d different waits of 200", tries, len(seen))
		}
	}
}

// The tries that fit into MaxAge are enough for a receiver that is down for a
// weekend night, and few enough not to be a nuisance.
func TestTriesWithinMaxAge(t *testing.T) {
	var age time.Duration
	tries := 1
	for ; age < MaxAge; tries++ {
		age += Backoff(tries, func() float64 { return 0.5 })
	}
	if tries < 12 || tries > 20 {
		t.Errorf("%d tries fit into %v", tries, MaxAge)
	}
}
