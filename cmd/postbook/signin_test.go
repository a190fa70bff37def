package main

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pquerna/otp/totp"

	"postbook.dev/postbook/internal/testenv"
)

// Behind a proxy that is known, whoever guesses locks out themselves alone, and
// what they did is on record under their own address.
func TestGuessingBehindAProxy(t *testing.T) {
	t.Parallel()
	i := launch(t, "POSTBOOK_TRUSTED_PROXIES=127.0.0.0/8")
	guess := map[string]string{"email": i.facts.Staff[0].Email, "password": "a guess, and another", "totp": "000000"}
	var group sync.WaitGroup
	statuses := make([]int, 40)
	for n := range statuses {
		group.Go(func() {
			r, err := i.try(t.Context(), "POST", "/staff/sessions", guess, "X-Forwarded-For", fmt.Sprintf("192.0.2.%d, 203.0.113.7", n))
			if err != nil {
				t.Error(err)
			}
			statuses[n] = r.status
		})
	}
	group.Wait()
	slices.Sort(statuses)
	if wrong, refused := statuses[9], statuses[10]; wrong != 401 || refused != 429 {
		t.Errorf("of 40 guesses at once 10 are tried: %v", statuses)
	}
	// The guessed one signs in from elsewhere, and a colleague from there.
	i.staff(0)
	who := i.facts.Staff[1]
	code, err := totp.GenerateCode(who.TOTPSecret, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	proof := map[string]string{"email": who.Email, "password": who.Password, "totp": code}
	if r := i.ask("POST", "/staff/sessions", proof, "X-Forwarded-For", "203.0.113.7"); r.status != 201 {
		t.Errorf("a colleague who shares the address: %s", r)
	}
	if r := i.ask("POST", "/staff/sessions", proof, "X-Forwarded-For", "203.0.113.8"); r.status != 401 {
		t.Errorf("the same code again: %s", r)
	}
	i.onRecordAs(t, 41, "route = 'POST /staff/sessions' and ip = '203.0.113.7'")

	for proto, secure := range map[string]bool{"https": true, "http": false} {
		if r := i.ask("GET", "/console/enter", nil, "X-Forwarded-Proto", proto); strings.Contains(r.header.Get("Set-Cookie"), "; Secure") != secure {
			t.Errorf("over %s the cookie is %q", proto, r.header.Get("Set-Cookie"))
		}
	}
}

// Where no proxy is known the header is worth nothing.
func TestAForwardedAddressOfAStrangerIsNotBelieved(t *testing.T) {
	t.Parallel()
	i := launch(t)
	guess := map[string]string{"email": i.facts.Staff[0].Email, "password": "a guess, and another", "totp": "000000"}
	var last reply
	for n := range 11 {
		last = i.ask("POST", "/staff/sessions", guess, "X-Forwarded-For", fmt.Sprintf("203.0.113.%d", n))
	}
	if last.status != 429 || last.name(t) != "rate_limit_exceeded" {
		t.Errorf("the eleventh guess under an eleventh name: %s", last)
	}
	i.onRecordAs(t, 11, "route = 'POST /staff/sessions' and ip = '127.0.0.1'")
}

// onRecordAs waits until so many requests are on record.
func (i *instance) onRecordAs(t *testing.T, want int, condition string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), i.facts.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	testenv.Eventually(t, 20*time.Second, func() error {
		var n int
		if err := conn.QueryRow(t.Context(), "select count(*) from requests where "+condition).Scan(&n); err != nil {
			return err
		}
		if n != want {
			return fmt.Errorf("%d requests are on record where %s, not %d", n, condition, want)
		}
		return nil
	})
}
