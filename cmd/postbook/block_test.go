package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/internal/testenv"
)

const queued = 10_000

// An account that is blocked sends nothing, whatever waits, whatever is written
// into the database, and whoever asks.
func TestBlockHolds(t *testing.T) {
	t.Parallel()
	sink := testenv.StartSink(t)
	release := sink.Hold()
	i := launch(t, "POSTBOOK_DELIVERY=relay", "POSTBOOK_RELAY_URL=smtp://"+sink.Addr)
	account := "/staff/accounts/" + i.facts.AccountID
	batch := make([]map[string]any, 100)
	for n := range queued / len(batch) {
		for k := range batch {
			batch[k] = hello(fmt.Sprintf("n%d@rcpt.test", n*len(batch)+k))
		}
		if r := i.ask("POST", "/emails/batch", batch); r.status != 200 {
			t.Fatal(r)
		}
	}
	var scheduled []string
	for range 3 {
		scheduled = append(scheduled, i.ask("POST", "/emails", with(hello("later@rcpt.test"), "scheduled_at", time.Now().Add(time.Second))).id(t))
	}

	waiting := func() (open, due, held, wait float64) {
		for name, v := range i.metrics(t) {
			switch name, _, _ := strings.Cut(name, "{"); name {
			case "postbook_emails_open":
				open += v
			case "postbook_emails_due":
				due += v
			case "postbook_emails_held":
				held += v
			case "postbook_email_wait_seconds":
				wait = max(wait, v)
			}
		}
		return open, due, held, wait
	}
	if open, due, held, wait := waiting(); open != queued+3 || due < queued/2 || held != 0 || wait == 0 {
		t.Errorf("while the receiver takes nothing, %v are open, %v due for %v s, and %v held", open, due, wait, held)
	}

	ada := "Bearer " + i.staff(0)
	r := i.ask("POST", account+"/block", map[string]string{"policy": "spam", "evidence": "412 complaints in 10,000 mails", "reason": "complaints"}, "Authorization", ada)
	if r.status != 200 || !strings.Contains(string(r.body), `"settled":true`) {
		t.Fatalf("block: %s", r)
	}
	release()
	if r := i.ask("POST", "/emails", hello("x@rcpt.test")); r.status != 403 || r.name(t) != "account_blocked" {
		t.Errorf("a blocked account sends: %s", r)
	}

	i.editRow(t)
	i.stop()
	i.start("--quiet")
	i.editRow(t)
	if r := i.ask("POST", "/emails", hello("x@rcpt.test")); r.status != 403 {
		t.Errorf("after the row was edited and the server restarted: %s", r)
	}
	refused := i.tryToUnblock(t, account, ada)
	// Every mail that was due has been looked at by now: those that were scheduled
	// are due as well.
	testenv.Eventually(t, 20*time.Second, func() error {
		out, err := i.postbook("events", "check", "--json")
		if err != nil || !strings.Contains(out, fmt.Sprintf(`"open": %d`, queued+len(scheduled))) && !strings.Contains(out, fmt.Sprintf(`"open":%d`, queued+len(scheduled))) {
			return fmt.Errorf("check: %v %s", err, out)
		}
		return nil
	})
	if n := sink.Begun(); n != 0 {
		t.Fatalf("%d transactions began although the account was blocked", n)
	}
	testenv.Eventually(t, time.Minute, func() error {
		if open, due, held, wait := waiting(); open != queued+3 || held != queued+3 || due != 0 || wait != 0 {
			return fmt.Errorf("while the account is blocked, %v are open, %v held, and %v due for %v s", open, held, due, wait)
		}
		return nil
	})
	testenv.Eventually(t, 20*time.Second, func() error { return i.onRecord(t, refused) })

	grace := "Bearer " + i.staff(1)
	var request struct{ Request string }
	i.ask("POST", account+"/unblock-requests", map[string]string{"reason": "the list has been cleaned"}, "Authorization", ada).decode(t, &request)
	if r := i.ask("POST", account+"/unblock", map[string]string{"request": request.Request, "reason": "I agree with myself"}, "Authorization", ada); r.status != 403 {
		t.Fatalf("somebody has approved their own request: %s", r)
	}
	if r := i.ask("POST", account+"/unblock", map[string]string{"request": request.Request, "reason": "I have looked at the list"}, "Authorization", grace); r.status != 200 {
		t.Fatalf("unblock: %s", r)
	}
	testenv.Eventually(t, 3*time.Minute, func() error {
		if n := sink.Total(); n != queued+len(scheduled) {
			return fmt.Errorf("%d of %d were delivered", n, queued+len(scheduled))
		}
		return nil
	})
	for key, n := range sink.Taken() {
		if n != 1 {
			t.Errorf("%s was delivered %d times", key, n)
		}
	}
	out, err := i.postbook("accounts", "show", i.facts.AccountID)
	for _, want := range []string{"account.blocked", "412 complaints", "account.unblock_requested", "the list has been cleaned", "account.unblocked", "I have looked at the list", "second_factor"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("the account's story does not say %q: %v\n%s", want, err, out)
		}
	}
}

// editRow does what the incident's attackers did.
func (i *instance) editRow(t *testing.T) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), i.facts.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	testenv.Eventually(t, 10*time.Second, func() error {
		tag, err := conn.Exec(t.Context(), "update accounts set blocked = false where id = $1 and blocked", i.facts.AccountID)
		if err != nil || tag.RowsAffected() == 1 {
			return err
		}
		var blocked bool
		if err := conn.QueryRow(t.Context(), "select blocked from accounts where id = $1", i.facts.AccountID).Scan(&blocked); err != nil || blocked {
			return fmt.Errorf("the row is not there yet: %w", err)
		}
		return nil // it was edited before
	})
}

// tryToUnblock tries twenty ways that have no authority, and returns the
// interfaces and verbs that have to be on record.
func (i *instance) tryToUnblock(t *testing.T, account, ada string) int {
	t.Helper()
	body := map[string]string{"request": uuid.NewString(), "reason": "let me out"}
	var key struct{ Token string }
	i.ask("POST", "/api-keys", map[string]any{"name": "Sending", "permission": "sending_access"}).decode(t, &key)
	forged := ada[:len(ada)-4] + "AAAA"
	ways := []struct {
		name, method, path string
		body               any
		authorization      string
	}{
		{"the account's own key", "POST", account + "/unblock", body, "Bearer " + i.facts.APIKey},
		{"the account's own key, as a request", "POST", account + "/unblock-requests", body, "Bearer " + i.facts.APIKey},
		{"a sending key", "POST", account + "/unblock", body, "Bearer " + key.Token},
		{"a key that nobody issued", "POST", account + "/unblock", body, "Bearer re_12345678_123456789012345678901234"},
		{"nobody", "POST", account + "/unblock", body, ""},
		{"nobody, as a request", "POST", account + "/unblock-requests", body, ""},
		{"a forged session", "POST", account + "/unblock", body, forged},
		{"one of staff, without a request", "POST", account + "/unblock", body, ada},
		{"one of staff, without a reason", "POST", account + "/unblock-requests", map[string]string{}, ada},
		{"one of staff, with a field that no command has", "POST", account + "/unblock-requests", map[string]any{"reason": "x", "blocked": false}, ada},
		{"one of staff, with another verb", "PATCH", account, map[string]any{"blocked": false}, ada},
		{"one of staff, by writing the account", "PUT", account, map[string]any{"blocked": false}, ada},
		{"one of staff, by deleting the block", "DELETE", account + "/block", nil, ada},
		{"the account's key, by writing the account", "PATCH", "/accounts/" + i.facts.AccountID, map[string]any{"blocked": false}, "Bearer " + i.facts.APIKey},
		{"the account's key, by writing its key", "PATCH", "/api-keys/" + uuid.NewString(), map[string]any{"blocked": false}, "Bearer " + i.facts.APIKey},
		{"the account's key, with a field too many in a mail", "POST", "/emails", with(hello("x@rcpt.test"), "blocked", false), "Bearer " + i.facts.APIKey},
		{"the account's key, with an approval of its own", "POST", account + "/unblock", map[string]any{"reason": "x", "approvals": []string{"ada", "grace"}}, "Bearer " + i.facts.APIKey},
		{"a customer who signs in as staff", "POST", "/staff/sessions", map[string]string{"email": i.facts.Member.Email, "password": i.facts.Member.Password, "totp": "123456"}, ""},
	}
	refused := 0
	for _, w := range ways {
		r := i.ask(w.method, w.path, w.body, "Authorization", w.authorization)
		if r.status/100 != 4 {
			t.Errorf("%s: %s", w.name, r)
		}
		refused++
	}
	for name, args := range map[string][]string{
		"the command line, as a request": {"accounts", "request-unblock", i.facts.AccountID, "--reason", "x"},
		"the command line":               {"accounts", "unblock", i.facts.AccountID, "--reason", "x"},
	} {
		cmd := exec.Command(binary, args...)
		cmd.Env = append(os.Environ(), "POSTBOOK_DATA_DIR="+i.dir, "POSTBOOK_STAFF_EMAIL="+i.facts.Staff[0].Email, "POSTBOOK_STAFF_PASSWORD=guessed", "POSTBOOK_STAFF_TOTP=000000")
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("%s: %s", name, out)
		}
		refused++
	}
	if refused != 20 {
		t.Errorf("%d ways were tried, not 20", refused)
	}
	return refused
}

// onRecord looks for each of the attempts among the requests that were answered.
func (i *instance) onRecord(t *testing.T, attempts int) error {
	conn, err := pgx.Connect(t.Context(), i.facts.DatabaseURL)
	if err != nil {
		return err
	}
	defer conn.Close(t.Context())
	var n, commands int
	err = conn.QueryRow(t.Context(), `
		select (select count(*) from requests where status between 400 and 499 and created_at > (select opened_at from accounts where id = $1)
		          and (path like '%unblock%' or path like '/staff/%' or method in ('PATCH', 'PUT') or route = 'POST /emails')),
		       (select count(*) from refusals where verb like 'account.%')`, i.facts.AccountID).Scan(&n, &commands)
	if err != nil {
		return err
	}
	if n < attempts || commands == 0 {
		return fmt.Errorf("%d requests and %d commands of %d attempts are on record", n, commands, attempts)
	}
	return nil
}
