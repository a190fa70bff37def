package keyring

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// To forget a person closes everything that is about them, and nothing else: what is
// sealed about them later opens.
func TestForgettingAPersonClosesWhatIsAboutThem(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		k := open(t, newMemory())
		if err := k.Create(t.Context(), "a"); err != nil {
			rt.Fatal(err)
		}
		type sealed struct {
			box   []byte
			about map[string]int // generation by person
			class Class
			id    string
		}
		var all []sealed
		generation := map[string]int{}
		people := []string{"ada", "grace", "edsger"}
		for n := range rapid.IntRange(1, 25).Draw(rt, "steps") {
			a, err := k.Account(t.Context(), "a")
			if err != nil {
				rt.Fatal(err)
			}
			who := rapid.SampledFrom(people).Draw(rt, "who")
			s := sealed{about: map[string]int{who: generation[who]}, class: Recipient, id: who}
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0:
				g := generation[who]
				if got, err := k.ForgetRecipient(t.Context(), "a", who, g); err != nil || got != 1 {
					rt.Fatalf("%d keys destroyed, %v", got, err)
				}
				if got, err := k.ForgetRecipient(t.Context(), "a", who, g); err != nil || got != 0 {
					rt.Fatalf("said twice: %d keys destroyed, %v", got, err)
				}
				generation[who]++
				continue
			case 1:
				s.box, err = a.Seal(Recipient, who, []byte("x"), nil)
			case 2:
				s.class, s.id = Body, fmt.Sprint(n)
				both := rapid.SliceOfN(rapid.SampledFrom(people), 1, 3).Draw(rt, "recipients")
				s.about = map[string]int{}
				for _, p := range both {
					s.about[p] = generation[p]
				}
				s.box, err = a.SealAbout(Body, s.id, both, []byte("x"), nil)
			case 3:
				if len(all) == 0 {
					continue
				}
				beside := all[rapid.IntRange(0, len(all)-1).Draw(rt, "beside")]
				if beside.class == Recipient {
					continue
				}
				s.class, s.id, s.about = Envelope, beside.id, beside.about
				s.box, err = a.SealBeside(Envelope, s.id, beside.box, []byte("x"), nil)
				if gone(s.about, generation) {
					if !errors.Is(err, ErrErased) {
						rt.Fatalf("sealed beside what was forgotten: %v", err)
					}
					continue
				}
			}
			if err != nil {
				rt.Fatal(err)
			}
			all = append(all, s)
		}
		a, err := k.Account(t.Context(), "a")
		if err != nil {
			rt.Fatal(err)
		}
		for _, s := range all {
			_, err := a.Open(t.Context(), s.class, s.id, s.box, nil)
			if closed := gone(s.about, generation); closed != errors.Is(err, ErrErased) || !closed && err != nil {
				rt.Fatalf("%s %s about %v, now %v: %v", s.class, s.id, s.about, generation, err)
			}
		}
	})
}

// gone reports whether one of the people was forgotten since.
func gone(about, now map[string]int) bool {
	for p, g := range about {
		if g < now[p] {
			return true
		}
	}
	return false
}

func TestABoxAboutPeopleOpensOnlyAsItWasSealed(t *testing.T) {
	k := open(t, newMemory())
	if err := k.Create(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	a, _ := k.Account(t.Context(), "a")
	box, err := a.SealAbout(Body, "mail", []string{"ada", "grace", "ada"}, []byte("dear both"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Open(t.Context(), Body, "mail", box, []byte("aad")); err != nil || string(got) != "dear both" {
		t.Fatalf("opens as %q, %v", got, err)
	}
	for i := range box {
		changed := append([]byte(nil), box...)
		changed[i] ^= 1
		if _, err := a.Open(t.Context(), Body, "mail", changed, []byte("aad")); err == nil {
			t.Errorf("a box with byte %d changed was opened", i)
		}
		if _, err := a.Open(t.Context(), Body, "mail", box[:i], []byte("aad")); err == nil {
			t.Errorf("the first %d bytes of a box were opened", i)
		}
	}
	if _, err := a.Open(t.Context(), Recipient, "grace", box, []byte("aad")); err == nil {
		t.Error("a body was opened as an address")
	}
	own, err := a.Seal(Recipient, "ada", []byte("ada@example.com"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Open(t.Context(), Recipient, "grace", own, nil); err == nil {
		t.Error("one recipient's box was opened as another's")
	}
}

// A keyset with many forgotten people stays quick, and as large as is said.
func BenchmarkOpenAfterManyErasures(b *testing.B) {
	k := open(b, newMemory())
	_ = k.Create(b.Context(), "a")
	var names []string
	for i := range 2000 {
		names = append(names, fmt.Sprint("p", i))
	}
	if _, err := k.Forget(b.Context(), "a", Recipient, names...); err != nil {
		b.Fatal(err)
	}
	a, _ := k.Account(b.Context(), "a")
	box, _ := a.SealAbout(Body, "mail", []string{"ada"}, make([]byte, 300), nil)
	for b.Loop() {
		a.derived.Purge()
		if _, err := a.Open(b.Context(), Body, "mail", box, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(a.keys.marshal()))/2000, "B/erasure")
}
