package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pquerna/otp/totp"

	"postbook.dev/postbook/internal/testenv"
)

// Somebody who leaves is out at once, with every session, beside a running server;
// and so is a key. Who did it and why is on record, and what is refused is, too.
func TestPeopleAndKeysAreOutAtOnce(t *testing.T) {
	t.Parallel()
	i := launch(t)
	ada := "Bearer " + i.staff(0)
	account := "/staff/accounts/" + i.facts.AccountID
	if r := i.ask("GET", account, nil, "Authorization", ada); r.status != 200 {
		t.Fatalf("a session of staff: %s", r)
	}
	out := func(path, authorization string) func() error {
		return func() error {
			if r := i.ask("GET", path, nil, "Authorization", authorization); r.status/100 != 4 {
				return fmt.Errorf("%s is still open: %s", path, r)
			}
			return nil
		}
	}
	if said, err := i.postbook("staff", "leave", i.facts.Staff[0].Email, "--reason", "her laptop was stolen"); err != nil || !strings.Contains(said, "is out") {
		t.Fatalf("staff leave: %v\n%s", err, said)
	}
	testenv.Eventually(t, 10*time.Second, out(account, ada))
	if said, err := i.postbook("staff", "leave", i.facts.Staff[0].Email, "--reason", "again"); err == nil || !strings.Contains(said, "there is no staff") {
		t.Errorf("left again: %v\n%s", err, said)
	}
	if said, err := i.postbook("events", "show", "platform.staff."+i.facts.Staff[0].ID); err != nil || !strings.Contains(said, "staff.left") || !strings.Contains(said, "her laptop was stolen") {
		t.Errorf("it is not on record: %v\n%s", err, said)
	}

	if said, err := i.postbook("accounts", "remove-member", i.facts.AccountID, i.facts.Member.Email, "--reason", "they left the company"); err != nil {
		t.Fatalf("remove-member: %v\n%s", err, said)
	}
	testenv.Eventually(t, 10*time.Second, func() error {
		if status, body := i.visitor(t).signIn(i.facts.Member.Email, i.facts.Member.Password); status != http.StatusForbidden {
			return fmt.Errorf("they are let in: %d %s", status, body)
		}
		return nil
	})

	var keys struct{ Data []struct{ ID string } }
	i.ask("GET", "/api-keys", nil).decode(t, &keys)
	if said, err := i.postbook("accounts", "revoke-key", i.facts.AccountID, keys.Data[0].ID, "--reason", "it was in a repository"); err != nil {
		t.Fatalf("revoke-key: %v\n%s", err, said)
	}
	if said, err := i.postbook("accounts", "revoke-key", i.facts.AccountID, keys.Data[0].ID, "--reason", "again", "--json"); err != nil || strings.TrimSpace(said) != `{"changed":false}` {
		t.Errorf("revoked again: %v\n%s", err, said)
	}
	testenv.Eventually(t, 10*time.Second, out("/emails", "Bearer "+i.facts.APIKey))
	if said, err := i.postbook("accounts", "revoke-key", i.facts.AccountID, keys.Data[0].ID, "--reason", " "); err == nil || !strings.Contains(said, "Say why") {
		t.Errorf("revoked without a reason: %v\n%s", err, said)
	}

	// The account's story has all of it, and nothing that a password could be guessed from.
	said, err := i.postbook("accounts", "show", i.facts.AccountID)
	if err != nil {
		t.Fatalf("accounts show: %v\n%s", err, said)
	}
	for _, want := range []string{"account.opened", "sender.added", "apikey.issued", "apikey.revoked", "it was in a repository", "member.joined", "member.left", "they left the company"} {
		if !strings.Contains(said, want) {
			t.Errorf("the story does not say %q:\n%s", want, said)
		}
	}
	if strings.Contains(said, "argon2id") {
		t.Errorf("the story has a password's hash:\n%s", said)
	}
	// A time is asked for as it is printed, wherever the operator is.
	i.env = append(i.env, "TZ=America/New_York")
	if again, err := i.postbook("accounts", "show", i.facts.AccountID); err != nil || again != said {
		t.Errorf("elsewhere: %v\n%s", err, again)
	}
	if said, err := i.postbook("replay", "--account", i.facts.AccountID, "--at", strings.Fields(said)[0]); err != nil || !strings.Contains(said, "may send") {
		t.Errorf("at the time of the first event: %v\n%s", err, said)
	}
	if said, err := i.postbook("accounts", "revoke-key", i.facts.AccountID, "0190b3f2-0000-7000-8000-000000000000", "--reason", "x"); err == nil {
		t.Errorf("a key that is none was revoked: %s", said)
	}
}

// Accounts are opened and people let in beside a running server, which knows them at
// once; and an operator can look up who there is.
func TestAnOperatorNeedsNoStop(t *testing.T) {
	t.Parallel()
	i := launch(t)
	ask := func(into any, args ...string) {
		t.Helper()
		said, err := i.postbook(append(args, "--json")...)
		if err == nil {
			err = json.Unmarshal([]byte(said), into)
		}
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, said)
		}
	}
	var acme struct {
		Account  string `json:"account_id"`
		Key      string `json:"api_key"`
		Password string
	}
	ask(&acme, "accounts", "open", "Acme", "--email", "ops@acme.test")
	bearer := []string{"Authorization", "Bearer " + acme.Key}
	testenv.Eventually(t, 10*time.Second, func() error {
		if r := i.ask("POST", "/domains", map[string]string{"name": "acme.test"}, bearer...); r.status != 201 {
			return fmt.Errorf("with the new key: %s", r)
		}
		return nil
	})
	var added struct{ Password string }
	ask(&added, "accounts", "add-member", acme.Account, "second@acme.test")
	for email, password := range map[string]string{"ops@acme.test": acme.Password, "second@acme.test": added.Password} {
		testenv.Eventually(t, 10*time.Second, func() error {
			if status, page := i.visitor(t).signIn(email, password); status != 200 || !strings.Contains(page, "Acme") {
				return fmt.Errorf("%s signs in: %d %s", email, status, page)
			}
			return nil
		})
	}
	if said, err := i.postbook("accounts", "add-member", acme.Account, "Second@ACME.test"); err == nil || !strings.Contains(said, "joined already") {
		t.Errorf("added again: %v\n%s", err, said)
	}
	var joined struct {
		Password string
		Secret   string `json:"totp_secret"`
	}
	ask(&joined, "staff", "join", "lin@postbook.test", "--role", "trust")
	code, err := totp.GenerateCode(joined.Secret, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, func() error {
		if r := i.ask("POST", "/staff/sessions", map[string]string{"email": "lin@postbook.test", "password": joined.Password, "totp": code}); r.status != 201 {
			return fmt.Errorf("the new member of staff signs in: %s", r)
		}
		return nil
	})

	var people []struct{ Email, Role string }
	ask(&people, "staff", "list")
	if len(people) != 3 || people[2].Email != "lin@postbook.test" || people[2].Role != "trust" {
		t.Errorf("staff list: %+v", people)
	}
	ask(&people, "accounts", "members", acme.Account)
	if len(people) != 2 || people[0].Email != "ops@acme.test" || people[1].Email != "second@acme.test" {
		t.Errorf("accounts members: %+v", people)
	}
	if said, err := i.postbook("events", "list", "ACCESS", "--json"); err != nil || !regexp.MustCompile(`"type":"access.unsealed".*"actor":"operator:.*"class":"user"`).MatchString(said) {
		t.Errorf("that addresses were read is not on record: %v\n%s", err, said)
	}
	between := time.Now()
	if r := i.ask("GET", "/domains", nil, bearer...); r.status != 200 {
		t.Fatal(r)
	}
	i.lastEvent(i.ask("POST", "/emails", hello("ada@rcpt.test")).id(t), "delivered")
	listed := func(flags ...string) (events []line) {
		t.Helper()
		said, err := i.postbook(append([]string{"events", "list", "LEDGER", "MAIL", "ACCESS", "--json"}, flags...)...)
		if err != nil {
			t.Fatalf("events list: %v\n%s", err, said)
		}
		for _, text := range strings.Split(strings.TrimSpace(said), "\n") {
			var e line
			if text != "" && json.Unmarshal([]byte(text), &e) != nil {
				t.Fatal(text)
			}
			events = append(events, e)
		}
		return events
	}
	if all := listed("--from", between.Format(time.RFC3339Nano)); !slices.ContainsFunc(all, func(e line) bool { return e.Type == "email.delivered" }) ||
		slices.ContainsFunc(all, func(e line) bool { return e.Time.Before(between) }) {
		t.Errorf("from %s on: %+v", between, all)
	}
	theirs := listed("--account", acme.Account, "--to", between.Format(time.RFC3339Nano))
	if slices.ContainsFunc(theirs, func(e line) bool { return !strings.Contains(e.Subject, acme.Account) || e.Time.After(between) }) ||
		theirs[0].Type != "account.opened" || !slices.ContainsFunc(theirs, func(e line) bool { return e.Log == "ACCESS" }) {
		t.Errorf("of the account, until %s: %+v", between, theirs)
	}
	var accounts []struct {
		ID, Name, State string
		Domains         []string
	}
	ask(&accounts, "accounts", "list")
	if len(accounts) != 2 || accounts[1].ID != acme.Account || accounts[1].State != "may send" {
		t.Errorf("accounts list: %+v", accounts)
	}
	ask(&accounts, "accounts", "list", "--domain", "ACME.test")
	if len(accounts) != 1 || accounts[0].Name != "Acme" || accounts[0].Domains[0] != "acme.test" {
		t.Errorf("the account of a domain: %+v", accounts)
	}
	if said, err := i.postbook("accounts", "list", "--domain", "nowhere.test"); err == nil || !strings.Contains(said, "no account has") {
		t.Errorf("the account of a domain that nobody has: %v\n%s", err, said)
	}
}

// A code is good once, so it is asked for last, and is enough for several accounts.
func TestStaffGiveOneCodeForSeveralAccounts(t *testing.T) {
	t.Parallel()
	i := launch(t)
	said, err := i.postbook("accounts", "open", "Acme", "--json")
	var other struct {
		Account string `json:"account_id"`
	}
	if err != nil || json.Unmarshal([]byte(said), &other) != nil {
		t.Fatalf("accounts open: %v\n%s", err, said)
	}
	ada := i.facts.Staff[0]
	code, err := totp.GenerateCode(ada.TOTPSecret, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	i.env = append(i.env, "POSTBOOK_STAFF_EMAIL="+ada.Email, "POSTBOOK_STAFF_PASSWORD="+ada.Password, "POSTBOOK_STAFF_TOTP="+code)
	block := func(reason string, ids ...string) (string, error) {
		return i.postbook(append(append([]string{"accounts", "block"}, ids...), "--policy", "fraud", "--evidence", "one billing address", "--reason", reason)...)
	}
	for _, c := range []struct {
		want, reason string
		ids          []string
	}{
		{`no account "bogus"`, "they are one", []string{i.facts.AccountID, "bogus"}},
		{"say why", " ", []string{i.facts.AccountID, other.Account}},
	} {
		if said, err := block(c.reason, c.ids...); err == nil || !strings.Contains(said, c.want) {
			t.Errorf("block %v for %q: %v\n%s", c.ids, c.reason, err, said)
		}
	}
	if said, err := block("they are one", i.facts.AccountID, other.Account); err != nil || strings.Count(said, "account.blocked") != 2 {
		t.Errorf("block both: %v\n%s", err, said)
	}
	again := func() {
		t.Helper()
		if said, err := block("once more", i.facts.AccountID); err == nil || !strings.Contains(said, "used already") {
			t.Errorf("with a code that was used: %v\n%s", err, said)
		}
	}
	again()
	i.kill() // what was used is in the log
	i.start("--quiet")
	again()
	if said, err := i.postbook("events", "show", "platform.staff."+ada.ID); err != nil || strings.Count(said, "staff.signed_in") != 1 {
		t.Errorf("one sign-in is not on record: %v\n%s", err, said)
	}
}

// What an operator is refused at the command line is on record as well.
func TestRefusalsOfCommandsAreOnRecord(t *testing.T) {
	t.Parallel()
	i := launch(t)
	if said, err := i.postbook("holds", "place", "--account", i.facts.AccountID, "--reason", "a court wants it"); err != nil {
		t.Fatalf("holds place: %v\n%s", err, said)
	}
	if said, err := i.postbook("erase", "--account", i.facts.AccountID, "--reason", "they asked"); err == nil {
		t.Fatalf("erased against a hold: %s", said)
	}
	db, err := pgx.Connect(t.Context(), i.facts.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	testenv.Eventually(t, 10*time.Second, func() error {
		var n int
		err := db.QueryRow(t.Context(), "select count(*) from refusals where verb = 'retention.erase_account'").Scan(&n)
		if err == nil && n != 1 {
			err = fmt.Errorf("%d refusals are on record", n)
		}
		return err
	})
}

// Empty and mistyped values are refused, instead of less being done than was asked for.
func TestMistypedValuesAreRefused(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.stop()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"verify", "--log", "--key", ""}, "no public key"},
		{[]string{"verify", "--log", "--copy", t.TempDir()}, "holds no checkpoint"},
		{[]string{"verify", "--read-models", "--model", "emial"}, `no read model called "emial"`},
		{[]string{"accounts", "open", "Acme", "--email", "nobody"}, "no email address"},
		{[]string{"accounts", "show", "bogus"}, `no account "bogus"`},
		{[]string{"accounts", "remove-member", "bogus", "ada@acme.test", "--reason", "x"}, `no account "bogus"`},
		{[]string{"holds", "list", "--account", "bogus"}, `no account "bogus"`},
		{[]string{"staff", "leave", i.facts.Staff[0].Email, "--reason", ""}, "Say why"},
		{[]string{"restore", t.TempDir(), "--key", "bogus"}, `"bogus" is no public key`},
		{[]string{"witness", "--dir", t.TempDir(), "bogus"}, `"bogus" is no public key`},
		{[]string{"events", "list", "--account", "bogus"}, `no account "bogus"`},
		{[]string{"events", "list", "--from", "2026-01-02T00:00:00Z", "--to", "2026-01-01T00:00:00Z"}, "--to is before --from"},
		{[]string{"events", "show", "BOGUS/1"}, `no log "BOGUS"`},
		{[]string{"events", "show", "MAIL/1"}, "choose from MAIL_00"},
	} {
		if said, err := i.postbook(c.args...); err == nil || !strings.Contains(said, c.want) {
			t.Errorf("%v: %v\n%s", c.args, err, said)
		}
	}
	// A refusal is not lost in the end of the server that the command runs by itself.
	for range 5 {
		if said, err := i.postbook("staff", "join", i.facts.Staff[0].Email); err == nil || !strings.Contains(said, "has joined already") {
			t.Errorf("joined again: %v\n%s", err, said)
		}
	}
	i.env = append(i.env, "POSTBOOK_RELAY_URL=smtp://relay.test:25")
	if said, err := i.postbook("serve"); err == nil || !strings.Contains(said, "POSTBOOK_RELAY_URL: delivery is mx") {
		t.Errorf("a relay that would be passed by: %v\n%s", err, said)
	}
	i.env = append(i.env, "POSTBOOK_RELAY_URL=", "POSTBOOK_HTTP_ADDR=")
	if said, err := i.postbook("serve"); err == nil || !strings.Contains(said, "POSTBOOK_HTTP_ADDR: it is empty") {
		t.Errorf("an empty address: %v\n%s", err, said)
	}
}
