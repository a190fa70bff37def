package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Time travel by the command line, beside a server and without one: what an edited
// row says does not count, nor does what came later.
func TestTimeTravel(t *testing.T) {
	t.Parallel()
	i := launch(t)
	account := i.facts.AccountID
	first := i.ask("POST", "/emails", hello("a@rcpt.test")).id(t)
	i.lastEvent(first, "delivered")
	then := time.Now().UTC().Format(time.RFC3339Nano)
	second := i.ask("POST", "/emails", hello("b@rcpt.test")).id(t)
	i.lastEvent(second, "delivered")

	db, err := pgx.Connect(t.Context(), i.facts.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	if _, err := db.Exec(t.Context(), "update accounts set blocked = true; delete from emails"); err != nil {
		t.Fatal(err)
	}
	for _, server := range []string{"beside a server", "without one"} {
		for n, c := range []struct {
			args      []string
			has, lack string
		}{
			{[]string{"--at", then, "--account", account, "--all-emails"}, first + "  delivered", second},
			{[]string{"--at", "now", "--account", account, "--all-emails"}, second + "  delivered", "BLOCKED"},
			{[]string{"--at", "now", "--no-snapshots"}, "accounts  1, 0 blocked", "LEFT OUT"},
			{[]string{"--at", "now", "--email", first}, "email.delivered", second},
			{[]string{"--at", "now", "--aggregate", account + ".account." + account}, `"Open":true`, "email"},
			{[]string{"--at", then, "--to", "now", "--account", account}, "emails " + second + " added", "emails " + first + " "},
		} {
			if server == "without one" && n > 0 && n < 5 {
				continue // each starts a server of its own, to read
			}
			out, err := i.postbook(append([]string{"replay"}, c.args...)...)
			if err != nil || !strings.Contains(out, c.has) || strings.Contains(out, c.lack) {
				t.Errorf("%s: replay %v: %v, want %q and not %q in\n%s", server, c.args, err, c.has, c.lack, out)
			}
		}
		if server == "without one" {
			return
		}
		out, err := i.postbook("replay", "--at", "now", "--account", account, "--all-emails", "--json")
		var got struct {
			Numbers struct{ Emails int }
			Emails  []struct{ ID string }
		}
		if err != nil || json.Unmarshal([]byte(out), &got) != nil || got.Numbers.Emails != len(got.Emails) || got.Emails[0].ID != second {
			t.Errorf("%s: as JSON: %v\n%s", server, err, out)
		}
		for _, args := range [][]string{{"--at", "yesterday"}, {"--at", "LEDGER/99999"}, {"--at", "now", "--email", account}, {"--at", "now", "--to", then}} {
			if out, err := i.postbook(append([]string{"replay"}, args...)...); err == nil {
				t.Errorf("%s: replay %v says nothing is wrong:\n%s", server, args, out)
			}
		}
		// The event that delivered it is a point too.
		out, err = i.postbook("replay", "--at", "now", "--email", first, "--json")
		var h struct {
			Events []struct {
				ID, Log, Type string
				Seq           uint64
			}
		}
		if err != nil || json.Unmarshal([]byte(out), &h) != nil || len(h.Events) != 4 {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, e := range h.Events {
			want := map[string]string{"email.accepted": "queued", "email.prepared": "queued", "email.attempted": "sent", "email.delivered": "delivered"}[e.Type]
			out, err := i.postbook("replay", "--at", e.ID, "--account", account, "--emails", "1")
			if err != nil || !strings.Contains(out, fmt.Sprintf("%s  %-16s %s/%d", first, want, e.Log, e.Seq)) {
				t.Errorf("as of %s: %v, want %s in\n%s", e.Type, err, want, out)
			}
		}
		i.stop()
	}
}
