package delivery

import (
	"errors"
	"strings"
	"testing"
)

var (
	verp    = VERP{Key: []byte("a key of thirty-two bytes, about")}
	emailID = [16]byte{0x01, 0x8f, 3: 0xff, 7: 0x42, 15: 0x99}
)

func TestReturnPathsSayWhichRecipientTheyAreAbout(t *testing.T) {
	seen := map[string]bool{}
	for _, n := range []int{0, 1, 49, 255, 256, 65535} {
		addr := verp.Address(emailID, n, "send.acme.test")
		if addr != verp.Address(emailID, n, "send.acme.test") {
			t.Fatal("a return path changes from try to try, which greylisting punishes")
		}
		if seen[addr] {
			t.Fatalf("two recipients have %s", addr)
		}
		seen[addr] = true
		local, domain, _ := strings.Cut(addr, "@")
		if len(local) > 64 || domain != "send.acme.test" || local != strings.ToLower(local) {
			t.Fatalf("%s is not fit for an envelope", addr)
		}
		if _, err := ParseAddress(addr); err != nil {
			t.Fatal(err)
		}
		// Servers on the way may change the case.
		for _, form := range []string{addr, strings.ToUpper(addr), strings.ToUpper(addr[:20]) + addr[20:], local} {
			email, recipient, err := verp.Parse(form)
			if err != nil || email != emailID || recipient != n {
				t.Fatalf("%s is read as %x, %d, %v", form, email, recipient, err)
			}
		}
	}
}

func TestForgedReturnPathsAreRefused(t *testing.T) {
	good := verp.Address(emailID, 7, "send.acme.test")
	local, _, _ := strings.Cut(good, "@")
	forged := []string{
		"", "@", "bounces+@send.acme.test", "bounces@send.acme.test", "x" + good, "bounces+" + good,
		local[:len(local)-1] + "@send.acme.test", local + "a@send.acme.test", strings.Replace(good, "+", "-", 1),
		VERP{Key: []byte("another key")}.Address(emailID, 7, "send.acme.test"),
		VERP{}.Address(emailID, 7, "send.acme.test"),
	}
	// Each character counts, but for what base32 leaves over in the last one.
	for i := len(verpPrefix); i < len(local)-1; i++ {
		other := byte('a')
		if local[i] == other {
			other = 'b'
		}
		forged = append(forged, local[:i]+string(other)+local[i+1:]+"@send.acme.test")
	}
	for _, addr := range forged {
		if email, recipient, err := verp.Parse(addr); !errors.Is(err, ErrForged) || email != [16]byte{} || recipient != 0 {
			t.Errorf("%q is read as %x, %d, %v", addr, email, recipient, err)
		}
	}
}

// What is read is what was written: nobody without the key makes another.
func FuzzVERPParse(f *testing.F) {
	f.Add(verp.Address(emailID, 7, "send.acme.test"))
	f.Add("bounces+aaaaaaaa@x")
	f.Add("bounces+\r\n@x")
	f.Fuzz(func(t *testing.T, addr string) {
		email, recipient, err := verp.Parse(addr)
		if err != nil {
			if !errors.Is(err, ErrForged) {
				t.Fatal(err)
			}
			return
		}
		again, n, err := verp.Parse(verp.Address(email, recipient, "d.test"))
		if err != nil || again != email || n != recipient {
			t.Fatalf("%q is read as %x %d, which is written so that it is read as %x %d, %v", addr, email, recipient, again, n, err)
		}
	})
}
