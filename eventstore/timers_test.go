package eventstore

import (
	"context"
	"testing"
	"time"
)

// fired hands over the timers of a kind as they become due.
func fired(t *testing.T, s *Store, kind string) <-chan Entry {
	t.Helper()
	due := make(chan Entry, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Follow(ctx, Following{Log: Timers, Subjects: []string{DueTimers(kind)}}, func(_ context.Context, entries []Entry) error {
			for _, e := range entries {
				due <- e
			}
			return nil
		})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	return due
}

func schedule(t *testing.T, s *Store, kind, id string, when time.Time, body string) {
	t.Helper()
	if err := s.Schedule(t.Context(), kind, id, when, []byte(body)); err != nil {
		t.Fatal(err)
	}
}

// expect takes the next timer that fires and checks that it is that one, not
// before its time.
func expect(t *testing.T, due <-chan Entry, kind, id, body string, when time.Time) {
	t.Helper()
	e := soon(t, "timer "+id, due)
	if e.Subject != "timers.due."+kind+"."+id || string(e.Raw) != body {
		t.Errorf("%s fired with %q; want %s with %q", e.Subject, e.Raw, id, body)
	}
	if e.Time.Before(when) {
		t.Errorf("%s fired %s early", id, when.Sub(e.Time))
	}
}

func TestTimerFires(t *testing.T) {
	t.Parallel()
	s := open(t)
	due := fired(t, s, "send")
	now := time.Now()
	schedule(t, s, "send", "past", now.Add(-time.Hour), "at once")
	expect(t, due, "send", "past", "at once", now)
	when := time.Now().Add(400 * time.Millisecond)
	schedule(t, s, "send", "soon", when, "later")
	schedule(t, s, "verify", "other", time.Now(), "of another kind")
	expect(t, due, "send", "soon", "later", when)
	// A timer that has fired can be set again.
	schedule(t, s, "send", "soon", time.Now(), "again")
	expect(t, due, "send", "soon", "again", when)
	for _, bad := range [][2]string{{"send", "a.b"}, {"", "a"}, {"send", "*"}} {
		if err := s.Schedule(t.Context(), bad[0], bad[1], now, nil); err == nil {
			t.Errorf("scheduled %v", bad)
		}
		if err := s.Cancel(t.Context(), bad[0], bad[1]); err == nil {
			t.Errorf("cancelled %v", bad)
		}
	}
}

// A timer that was replaced fires once, at the later time; one that was
// cancelled, never. The last timer shows that their times have passed.
func TestTimerIsReplacedAndCancelled(t *testing.T) {
	t.Parallel()
	s := open(t)
	due := fired(t, s, "send")
	early := time.Now().Add(300 * time.Millisecond)
	later := early.Add(700 * time.Millisecond)
	schedule(t, s, "send", "moved", early, "early")
	schedule(t, s, "send", "cancelled", early, "never")
	schedule(t, s, "send", "moved", later, "later")
	for range 2 { // cancelling what is not there is no error
		if err := s.Cancel(t.Context(), "send", "cancelled"); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, due, "send", "moved", "later", later)
	last := time.Now().Add(300 * time.Millisecond)
	schedule(t, s, "send", "last", last, "last")
	expect(t, due, "send", "last", "last", last)
	if n := len(due); n != 0 {
		t.Errorf("%d more have fired", n)
	}
}

// What became due while the server was down fires when it is back, and what is
// due later keeps its time.
func TestTimersOutliveRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, in(dir))
	missed := time.Now().Add(300 * time.Millisecond)
	schedule(t, s, "send", "missed", missed, "missed")
	later := missed.Add(1500 * time.Millisecond)
	schedule(t, s, "send", "later", later, "later")
	schedule(t, s, "send", "cancelled", later, "never")
	if err := s.Cancel(t.Context(), "send", "cancelled"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(missed)) // its time passes with nobody there
	s = open(t, in(dir))
	due := fired(t, s, "send")
	expect(t, due, "send", "missed", "missed", missed)
	expect(t, due, "send", "later", "later", later)
	last := time.Now().Add(200 * time.Millisecond)
	schedule(t, s, "send", "last", last, "last")
	expect(t, due, "send", "last", "last", last)
}
