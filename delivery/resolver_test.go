package delivery

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestResolverAnswers(t *testing.T) {
	long := strings.Repeat("k", 250)
	dns := serveDNS(t,
		"acme.test. 60 IN MX 20 mx2.acme.test.", "acme.test. 60 IN MX 10 mx1.acme.test.",
		`acme.test. 60 IN TXT "v=spf1 ~all"`, `key.acme.test. 60 IN TXT "`+long+`" "`+long+`" "`+long+`"`,
		"mx1.acme.test. 60 IN A 192.0.2.1", "mx1.acme.test. 60 IN AAAA 2001:db8::1",
		"alias.acme.test. 60 IN CNAME mx1.acme.test.",
	)
	r := NewResolver(dns.addr)
	ctx := t.Context()
	for _, name := range []string{"acme.test", "acme.test.", "ACME.test"} {
		mx, err := r.MX(ctx, name)
		if err != nil || len(mx) != 2 || mx[0].Host != "mx1.acme.test." || mx[1].Pref != 20 {
			t.Errorf("MX of %s: %v, %v", name, mx, err)
		}
	}
	if txt, err := r.TXT(ctx, "acme.test"); err != nil || !slices.Equal(txt, []string{"v=spf1 ~all"}) {
		t.Errorf("TXT: %q, %v", txt, err)
	}
	// A 2048-bit key needs several strings, and more than a packet by UDP.
	if txt, err := r.TXT(ctx, "key.acme.test"); err != nil || !slices.Equal(txt, []string{long + long + long}) {
		t.Errorf("TXT in several strings: %q, %v", txt, err)
	}
	for _, name := range []string{"mx1.acme.test", "alias.acme.test"} {
		addrs, err := r.Addrs(ctx, name)
		if err != nil || len(addrs) != 2 || !slices.Contains(addrs, netip.MustParseAddr("2001:db8::1")) {
			t.Errorf("addresses of %s: %v, %v", name, addrs, err)
		}
	}
}

func TestEqualMailServersAreShuffled(t *testing.T) {
	dns := serveDNS(t, "acme.test. 60 IN MX 10 a.acme.test.", "acme.test. 60 IN MX 10 b.acme.test.", "acme.test. 60 IN MX 5 first.acme.test.")
	r := NewResolver(dns.addr)
	seen := map[string]int{}
	for range 200 {
		mx, err := r.MX(t.Context(), "acme.test")
		if err != nil || mx[0].Host != "first.acme.test." {
			t.Fatal(mx, err)
		}
		seen[mx[1].Host]++
	}
	// 200 throws of a coin with less than 50 on a side: once in 10^13 runs.
	if seen["a.acme.test."] < 50 || seen["b.acme.test."] < 50 {
		t.Errorf("the servers come in a fixed order: %v", seen)
	}
}

// Domains are un-verified by the difference between these two.
func TestNoAnswerIsToldFromNoServer(t *testing.T) {
	dns := serveDNS(t, "acme.test. 60 IN A 192.0.2.1")
	dns.fail("broken.test.")
	r := NewResolver(dns.addr)
	ask := map[string]func(string) error{
		"MX":  func(name string) error { _, err := r.MX(t.Context(), name); return err },
		"TXT": func(name string) error { _, err := r.TXT(t.Context(), name); return err },
		"A":   func(name string) error { _, err := r.Addrs(t.Context(), name); return err },
	}
	for kind, ask := range ask {
		if err := ask("nowhere.test"); !errors.Is(err, ErrNoAnswer) || !strings.Contains(err.Error(), "nowhere.test") {
			t.Errorf("%s, NXDOMAIN: %v", kind, err)
		}
		if err := ask("acme.test"); kind != "A" && !errors.Is(err, ErrNoAnswer) {
			t.Errorf("%s, no data: %v", kind, err)
		}
		if err := ask("broken.test"); err == nil || errors.Is(err, ErrNoAnswer) {
			t.Errorf("%s, SERVFAIL: %v", kind, err)
		}
	}
	gone := NewResolver("127.0.0.1:1")
	if _, err := gone.MX(t.Context(), "acme.test"); err == nil || errors.Is(err, ErrNoAnswer) {
		t.Errorf("no server: %v", err)
	}
}

func TestAnswersAreRememberedUnlessFreshOnesAreAskedFor(t *testing.T) {
	dns := serveDNS(t, `acme.test. 60 IN TXT "old"`)
	dns.fail("broken.test.")
	r := NewResolver(dns.addr)
	text := func(r *Resolver, name string) string {
		txt, err := r.TXT(t.Context(), name)
		switch {
		case errors.Is(err, ErrNoAnswer):
			return "none"
		case err != nil:
			return "fault"
		}
		return strings.Join(txt, "|")
	}
	for range 3 {
		if got := text(r, "acme.test") + text(r, "later.test") + text(r, "broken.test"); got != "oldnonefault" {
			t.Fatal(got)
		}
	}
	if dns.count("TXT acme.test.") != 1 || dns.count("TXT later.test.") != 1 {
		t.Errorf("%d and %d questions for what was known", dns.count("TXT acme.test."), dns.count("TXT later.test."))
	}
	faults := dns.count("TXT broken.test.")
	if text(r, "broken.test"); dns.count("TXT broken.test.") <= faults {
		t.Error("a fault is remembered")
	}
	dns.set(t, `acme.test. 60 IN TXT "new"`, `later.test. 60 IN TXT "there"`)
	if got := text(r, "acme.test") + " " + text(r, "later.test"); got != "old none" {
		t.Errorf("what was remembered is %s", got)
	}
	fresh := r.Fresh()
	if got := text(fresh, "acme.test") + " " + text(fresh, "later.test"); got != "new there" {
		t.Errorf("fresh it is %s", got)
	}
	dns.set(t)
	if got := text(fresh, "acme.test"); got != "none" {
		t.Errorf("fresh it is %s, the second time", got)
	}
}

func TestTheMemoryIsBounded(t *testing.T) {
	r := NewResolver("127.0.0.1:1")
	for i := range keepAtMost * 2 {
		r.remember(fmt.Sprint("TXT ", i), nil, nil)
	}
	if len(r.answers) > keepAtMost {
		t.Errorf("%d answers are kept", len(r.answers))
	}
}

// Many emails for one domain ask once; one that gives up does not spoil it for
// the others.
func TestQuestionsAreAskedOnceAtATime(t *testing.T) {
	dns := serveDNS(t, "acme.test. 60 IN MX 10 mx.acme.test.")
	r := NewResolver(dns.addr)
	given, cancel := context.WithCancel(t.Context())
	cancel()
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			ctx := t.Context()
			if i%2 == 0 {
				ctx = given
			}
			if mx, err := r.MX(ctx, "acme.test"); ctx != given && (err != nil || len(mx) != 1) {
				t.Error(mx, err)
			}
		})
	}
	all.Wait()
	// One that looks just as the answer comes may ask again.
	if n := dns.count("MX acme.test."); n > 10 {
		t.Errorf("there were %d questions", n)
	}
}

func TestAnAnswerThatDoesNotComeHoldsNobodyWhoGivesUp(t *testing.T) {
	dns := serveDNS(t)
	dns.hush("silent.test.")
	s := newSender(t, Config{Hostname: "sender.test", Resolver: NewResolver(dns.addr)})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got := within(t, func() Result {
		return s.Send(ctx, Envelope{From: "a@acme.test", To: "b@silent.test"}, letter, nil)
	})
	if got.Outcome != Deferred || got.Phase != PhaseRoute || got.Duration.Seconds() > 3 {
		t.Errorf("%+v", got)
	}
}
