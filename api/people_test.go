package api

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pquerna/otp/totp"

	"postbook.dev/postbook/domain"
)

// Many guesses at once are no more than the rule allows, however long each takes.
func TestGuessesAtOnceAreCountedBeforeTheyAreTried(t *testing.T) {
	g := newGuard(time.Now)
	var allowed atomic.Int32
	var group sync.WaitGroup
	for range 1000 {
		group.Go(func() {
			if _, ok := g.begin(domain.Staff, proof{email: "ada@acme.com", ip: "203.0.113.7"}); ok {
				allowed.Add(1)
			}
		})
	}
	group.Wait()
	if n := allowed.Load(); n != guesses {
		t.Errorf("%d of 1000 guesses at once are tried, not %d", n, guesses)
	}
}

// Somebody who guesses locks out themselves: for one address, until the window is
// over. Others of the same remote address wait a little, and only for the guesses
// of their own kind.
func TestGuessingLocksOutNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(time.Now)
		guessed := proof{email: "ada@acme.com", ip: "203.0.113.7"}
		for range guesses {
			g.begin(domain.Staff, guessed)
		}
		for _, c := range []struct {
			name string
			kind domain.ActorKind
			who  proof
			wait time.Duration
			ok   bool
		}{
			{"the one who guesses", domain.Staff, guessed, 0, false},
			{"the same in other letters", domain.Staff, proof{email: "ADA@acme.com", ip: "203.0.113.7"}, 0, false},
			{"the same address from elsewhere", domain.Staff, proof{email: "ada@acme.com", ip: "198.51.100.1"}, 0, true},
			{"somebody else from there", domain.Staff, proof{email: "grace@acme.com", ip: "203.0.113.7"}, guessPause, true},
			{"a member from there", domain.Member, proof{email: "ada@acme.com", ip: "203.0.113.7"}, 0, true},
		} {
			if wait, ok := g.begin(c.kind, c.who); wait != c.wait || ok != c.ok {
				t.Errorf("%s: waits %s, %t; not %s, %t", c.name, wait, ok, c.wait, c.ok)
			}
		}
		begun := time.Now()
		if err := g.turn(t.Context(), guessPause); err != nil || time.Since(begun) != guessPause {
			t.Errorf("a turn comes after %s, %v", time.Since(begun), err)
		}
		gone, leave := context.WithCancel(t.Context())
		leave()
		if g.turn(gone, guessPause) == nil {
			t.Error("whoever has gone gets a turn")
		}
		time.Sleep(guessWindow)
		if wait, ok := g.begin(domain.Staff, guessed); wait != 0 || !ok {
			t.Errorf("when the window is over: waits %s, %t", wait, ok)
		}
	})
}

// One who signs in often is not taken for one who guesses, and one who can choose
// their address freely is one.
func TestWhatCountsAsAGuess(t *testing.T) {
	g := newGuard(time.Now)
	who := proof{email: "ada@acme.com", ip: "203.0.113.7"}
	for range 3 * guesses {
		if wait, ok := g.begin(domain.Staff, who); wait != 0 || !ok {
			t.Fatalf("somebody who signs in again waits %s, %t", wait, ok)
		}
		g.giveBack(domain.Staff, who)
	}
	if len(g.attempts) != 0 {
		t.Errorf("%d counts are kept of what was given back", len(g.attempts))
	}
	for n := range guesses {
		g.begin(domain.Staff, proof{email: "ada@acme.com", ip: "2001:db8::" + string(rune('1'+n%9))})
	}
	if _, ok := g.begin(domain.Staff, proof{email: "ada@acme.com", ip: "2001:db8::ffff"}); ok {
		t.Error("another address of the same network may guess on")
	}
}

// A code is six digits, and is for one step of time.
func TestTheStepOfACode(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 10, 0, time.UTC)
	present := now.Unix() / codeStep
	const secret = "JBSWY3DPEHPK3PXP"
	at := func(d time.Duration) string {
		text, err := totp.GenerateCode(secret, now.Add(d))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for _, c := range []struct {
		name, code string
		want       int64
	}{
		{"the code", at(0), present},
		{"with a space", at(0) + " ", 0},
		{"with a space before it", " " + at(0), 0},
		{"with a line feed", at(0) + "\n", 0},
		{"in other digits", strings.Map(func(r rune) rune { return r - '0' + '０' }, at(0)), 0},
		{"none", "", 0},
		{"that of the step before", at(-30 * time.Second), present - 1},
		{"that of the step after", at(30 * time.Second), present + 1},
		{"one that is over", at(-60 * time.Second), 0},
		{"one that is to come", at(60 * time.Second), 0},
	} {
		if step, err := stepOf(secret, c.code, now); err != nil || step != c.want {
			t.Errorf("%s: %d, %v, want %d", c.name, step, err, c.want)
		}
	}
	if _, err := stepOf("no base 32!", at(0), now); err == nil {
		t.Error("a secret that cannot be read is taken")
	}
}
