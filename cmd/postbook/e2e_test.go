package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postbook.dev/postbook/internal/testenv"
)

// What somebody sees who runs the program for the first time.
func TestFirstRun(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.stop()
	if _, err := os.Stat(filepath.Join(i.dir, devFile)); err == nil {
		t.Error("dev.json is still there after a stop")
	}
	i.start()
	testenv.Eventually(t, 30*time.Second, func() error {
		for _, want := range []string{"email.accepted", "email.prepared", "email.attempted", "email.delivered", "Console  http://"} {
			if !strings.Contains(i.output.String(), want) {
				return fmt.Errorf("%q is not in the output: %s", want, i.output)
			}
		}
		return nil
	})
	info, err := os.Stat(filepath.Join(i.dir, devFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("dev.json: %v, mode %v", err, info.Mode())
	}
	if r := i.ask("GET", "/emails", nil); !strings.Contains(string(r.body), "A first mail") {
		t.Errorf("the first mail is not listed: %s", r)
	}
	for _, args := range [][]string{{"events", "stats"}, {"events", "check"}, {"projections", "list"}, {"accounts", "show", i.facts.AccountID}} {
		if out, err := i.postbook(args...); err != nil {
			t.Errorf("postbook %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// A mail that a real server takes through real DNS, with a signature that
// somebody else's program verifies.
func TestMailReachesARealServer(t *testing.T) {
	t.Parallel()
	dns := testenv.StartDNS(t, "rcpt.test", "acme.test")
	postfix := testenv.StartPostfix(t, "rcpt.test")
	dns.Add("rcpt.test. 60 MX 10 mx1.rcpt.test.", "mx1.rcpt.test. 60 A 127.0.0.1")
	i := launch(t, "POSTBOOK_DELIVERY=mx", "POSTBOOK_DNS_ADDR="+dns.Addr, fmt.Sprint("POSTBOOK_MX_PORT=", postfix.Port),
		"POSTBOOK_MX_PRIVATE=true", "POSTBOOK_HOSTNAME=mail.acme.test")

	made := i.ask("POST", "/domains", map[string]any{"name": "acme.test"})
	id := made.id(t)
	mail := map[string]any{
		"from": "Ada Lovelace <ada@acme.test>", "to": []string{"one@rcpt.test"}, "cc": "two@rcpt.test", "bcc": "three@rcpt.test",
		"subject": "Grüße aus dem Test", "html": "<p>Viele <b>Grüße</b>\n.\nwith a lone dot</p>", "headers": map[string]string{"X-Order": "42"},
	}
	if r := i.ask("POST", "/emails", mail); r.status != 403 || r.name(t) != "validation_error" {
		t.Errorf("a domain that is not verified may send: %s", r)
	}

	publish(t, dns, "acme.test", made)
	if r := i.ask("POST", "/domains/"+id+"/verify", nil); r.status != 200 {
		t.Fatalf("verify: %s", r)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		var d struct{ Status string }
		r := i.ask("GET", "/domains/"+id, nil)
		r.decode(t, &d)
		if d.Status != "verified" {
			return fmt.Errorf("the domain is not verified: %s", r)
		}
		return nil
	})

	email := i.ask("POST", "/emails", mail).id(t)
	i.lastEvent(email, "delivered")
	testenv.Eventually(t, 20*time.Second, func() error {
		if n := len(postfix.Received()); n != 3 {
			return fmt.Errorf("%d messages were received\n%s", n, postfix.Log())
		}
		return nil
	})
	for _, message := range postfix.Received() {
		if problem := testenv.VerifyDKIM(t, message, dns.Addr); problem != "" {
			t.Errorf("%s\n%s", problem, message)
		}
		if altered := strings.Replace(message, "X-Order: 42", "X-Order: 43", 1); altered == message {
			t.Error("the header that the customer set is missing")
		}
		if problem := testenv.VerifyDKIM(t, strings.Replace(message, "Ada Lovelace", "Eve Lovelace", 1), dns.Addr); problem == "" {
			t.Error("a message that was changed on the way passes")
		}
		if !strings.Contains(message, "Return-Path: <bounces+") || !strings.Contains(message, "@send.acme.test>") {
			t.Errorf("the envelope sender is not the return path:\n%s", message)
		}
		if !strings.Contains(message, "Message-ID: <"+email+"@acme.test>") {
			t.Errorf("the Message-ID is not the email's:\n%s", message)
		}
		if strings.Contains(strings.SplitN(message, "DKIM-Signature", 2)[1], "three@rcpt.test") {
			t.Errorf("a blind copy is named in the message:\n%s", message)
		}
	}

	refused := i.ask("POST", "/emails", with(mail, "to", "reject@rcpt.test", "cc", nil, "bcc", nil)).id(t)
	later := i.ask("POST", "/emails", with(mail, "to", "later@rcpt.test", "cc", nil, "bcc", nil)).id(t)
	nowhere := i.ask("POST", "/emails", with(mail, "to", "x@nowhere.rcpt.test", "cc", nil, "bcc", nil)).id(t)
	i.lastEvent(refused, "bounced")
	i.lastEvent(later, "delivery_delayed")
	i.lastEvent(nowhere, "bounced")
}

// publish puts the records that a domain is asked to publish into DNS.
func publish(t *testing.T, dns *testenv.DNS, zone string, made reply) {
	t.Helper()
	var d struct {
		Records []struct {
			Name, Type, Value string
			Priority          int
		}
	}
	made.decode(t, &d)
	if len(d.Records) < 3 {
		t.Fatalf("the domain has no records: %s", made)
	}
	for _, r := range d.Records {
		value := strings.Trim(r.Value, `"`)
		switch r.Type {
		case "MX":
			dns.Add(fmt.Sprintf("%s.%s. 60 MX %d %s.", r.Name, zone, r.Priority, value))
		case "TXT":
			// A string of a record has at most 255 characters.
			var parts []string
			for len(value) > 250 {
				parts, value = append(parts, value[:250]), value[250:]
			}
			parts = append(parts, value)
			dns.Add(fmt.Sprintf(`%s.%s. 60 TXT "%s"`, r.Name, zone, strings.Join(parts, `" "`)))
		}
	}
}

// with is a mail with some fields set, or left out if nil.
func with(mail map[string]any, pairs ...any) map[string]any {
	changed := map[string]any{}
	for k, v := range mail {
		changed[k] = v
	}
	for n := 0; n < len(pairs); n += 2 {
		key := pairs[n].(string)
		if pairs[n+1] == nil {
			delete(changed, key)
		} else {
			changed[key] = pairs[n+1]
		}
	}
	return changed
}

func TestOneKeyFromManyIsOneMail(t *testing.T) {
	t.Parallel()
	sink := testenv.StartSink(t)
	i := launch(t, "POSTBOOK_DELIVERY=relay", "POSTBOOK_RELAY_URL=smtp://"+sink.Addr)
	var mu sync.Mutex
	ids := map[string]int{}
	var asking sync.WaitGroup
	for range 50 {
		asking.Go(func() {
			for {
				r, err := i.try(t.Context(), "POST", "/emails", hello("one@rcpt.test"), "Idempotency-Key", "the-same")
				if err != nil {
					t.Error(err)
					return
				}
				if r.status == 409 {
					continue // the contract: another request with this key is being answered
				}
				mu.Lock()
				ids[r.id(t)]++
				mu.Unlock()
				return
			}
		})
	}
	asking.Wait()
	if len(ids) != 1 {
		t.Fatalf("the same key has made %d emails: %v", len(ids), ids)
	}
	for id := range ids {
		i.lastEvent(id, "delivered")
	}
	// A mail that comes after it has been taken when this one has.
	i.lastEvent(i.ask("POST", "/emails", hello("after@rcpt.test")).id(t), "delivered")
	if n := sink.Total(); n != 2 {
		t.Errorf("the sink has taken %d messages, not the one and the one after", n)
	}
}

func TestReadModelsComeBackFromTheLog(t *testing.T) {
	t.Parallel()
	i := launch(t)
	paths := []string{"/emails?limit=100", "/domains"}
	for n, to := range []string{"a@rcpt.test", "bounced@rcpt.test", "deferred@rcpt.test", "suppressed@rcpt.test", "b@rcpt.test"} {
		id := i.ask("POST", "/emails", with(hello(to), "subject", fmt.Sprint("Nr. ", n), "tags", []map[string]string{{"name": "n", "value": fmt.Sprint(n)}})).id(t)
		i.lastEvent(id, map[string]string{"a": "delivered", "b": "delivered", "bounced": "bounced", "deferred": "delivery_delayed", "suppressed": "suppressed"}[strings.SplitN(to, "@", 2)[0]])
		paths = append(paths, "/emails/"+id)
	}
	scheduled := i.ask("POST", "/emails", with(hello("c@rcpt.test"), "scheduled_at", time.Now().Add(time.Hour))).id(t)
	cancelled := i.ask("POST", "/emails", with(hello("c@rcpt.test"), "scheduled_at", time.Now().Add(time.Hour))).id(t)
	if r := i.ask("POST", "/emails/"+cancelled+"/cancel", nil); r.status != 200 {
		t.Fatal(r)
	}
	paths = append(paths, "/emails/"+scheduled, "/emails/"+cancelled)
	domain := i.ask("POST", "/domains", map[string]any{"name": "acme.test"}).id(t)
	i.ask("POST", "/api-keys", map[string]any{"name": "Second"}).id(t)
	paths = append(paths, "/domains/"+domain)
	var keys struct{ Data []json.RawMessage }
	i.ask("GET", "/api-keys", nil).decode(t, &keys)
	unused := string(keys.Data[0])
	var logs struct{ Data []struct{ ID string } }
	i.ask("GET", "/logs?limit=20", nil).decode(t, &logs)
	for _, l := range logs.Data {
		paths = append(paths, "/logs/"+l.ID)
	}
	before := map[string]string{}
	for _, p := range paths {
		r := i.ask("GET", p, nil)
		if r.status != 200 {
			t.Fatalf("%s: %s", p, r)
		}
		before[p] = string(r.body)
	}

	i.stop()
	if err := os.RemoveAll(filepath.Join(i.dir, "postgres")); err != nil {
		t.Fatal(err)
	}
	i.start("--quiet")
	for _, p := range paths {
		var after string
		testenv.Eventually(t, 30*time.Second, func() error {
			r := i.ask("GET", p, nil)
			if after = string(r.body); r.status != 200 {
				return fmt.Errorf("%s: %s", p, r)
			}
			return nil
		})
		if after != before[p] {
			t.Errorf("%s\nbefore %s\nafter  %s", p, before[p], after)
		}
	}
	i.ask("GET", "/api-keys", nil).decode(t, &keys)
	if string(keys.Data[0]) != unused {
		t.Errorf("the key that nobody has used\nbefore %s\nafter  %s", unused, keys.Data[0])
	}
	if out, err := i.postbook("projections", "list"); err != nil {
		t.Errorf("projections list: %v\n%s", err, out)
	}
}

// Mail is taken and delivered while the database is away, and reads say so.
func TestMailGoesOnWithoutTheDatabase(t *testing.T) {
	t.Parallel()
	sink := testenv.StartSink(t)
	db := testenv.Postgres(t)
	i := launch(t, "POSTBOOK_DELIVERY=relay", "POSTBOOK_RELAY_URL=smtp://"+sink.Addr, "POSTBOOK_DATABASE_URL="+db.Owner)
	first := i.ask("POST", "/emails", hello("a@rcpt.test")).id(t)
	i.lastEvent(first, "delivered")

	back := testenv.CutDatabase(t, db)
	second := i.ask("POST", "/emails", hello("b@rcpt.test")).id(t)
	testenv.Eventually(t, 20*time.Second, func() error {
		if sink.Total() != 2 {
			return fmt.Errorf("%d were delivered", sink.Total())
		}
		return nil
	})
	if r := i.ask("GET", "/emails/"+second, nil); r.status != 503 || r.name(t) == "" {
		t.Errorf("a read without the database: %s", r)
	}
	// Also from a cold start, once the outcome is on record: it would be unknown
	// after a kill between the two.
	testenv.Eventually(t, 20*time.Second, func() error {
		if out, err := i.postbook("events", "show", second); err != nil || !strings.Contains(out, "email.delivered") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	i.kill()
	i.start("--quiet")
	third := i.ask("POST", "/emails", hello("c@rcpt.test")).id(t)

	back()
	for _, id := range []string{first, second, third} {
		testenv.Eventually(t, 30*time.Second, func() error {
			if r := i.ask("GET", "/emails/"+id, nil); r.status != 200 || !strings.Contains(string(r.body), `"delivered"`) {
				return fmt.Errorf("%s", r)
			}
			return nil
		})
	}
}
