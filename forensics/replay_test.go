package forensics

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"testing"
	"time"

	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// What is replayed is what the read models showed, at each of many moments at which
// somebody has looked: row by row and column by column, of each account and of all,
// with snapshots and without, whether the moment is named by its time or by an event.
func TestReplayIsWhatTheReadModelsShowed(t *testing.T) {
	w := newWorld(t, 1)
	db := w.project()
	var moments []shown
	for n := range 25 {
		for range 1 + w.r.IntN(40) {
			w.step()
		}
		at := time.Now().UTC().Format(time.RFC3339Nano)
		if n%2 == 1 {
			rec := w.append(account.Stream("acme"), account.UnblockRequested{Reason: "look here"})
			at = rec[0].ID.String()
			if n%4 == 1 {
				at = fmt.Sprintf("%s/%d", eventstore.Ledger, rec[0].Seq)
			}
		}
		moments = append(moments, db.look(w, at))
	}
	snapshots := smallSnapshots(t)
	for name, replay := range map[string]*Replay{"alone": NewReplay(w.store, nil), "with snapshots": NewReplay(w.store, snapshots)} {
		used := 0
		for n, m := range moments {
			p := must(replay.Resolve(t.Context(), m.at))(t)
			for _, of := range []string{"", accounts[n%len(accounts)]} {
				s := must(replay.At(t.Context(), p, of))(t)
				db.compare(t, fmt.Sprintf("%s, %q as of %s", name, of, m.at), s, m)
				used += s.Work.Snapshots
			}
		}
		if (used > 0) != (replay.snapshots != nil) {
			t.Errorf("%s: %d snapshots were used", name, used)
		}
	}
}

// smallSnapshots are of so short stretches that a short log has many.
func smallSnapshots(t testing.TB) *Snapshots {
	s := OpenSnapshots(t.TempDir(), []byte("a key"))
	s.every = 16
	return s
}

// compare holds a replayed state against what was shown.
func (d database) compare(t *testing.T, name string, s *State, m shown) {
	t.Helper()
	rows := map[string]string{}
	as := func(table string, rowsOf any) {
		data := must(json.Marshal(rowsOf))(t)
		d.rows(t, rows, table, "select to_jsonb(x)::text from jsonb_populate_recordset(null::"+table+", $1::jsonb) x", string(data))
	}
	accountRows := []projections.AccountRow{}
	for _, a := range s.Accounts {
		accountRows = append(accountRows, a.AccountRow)
	}
	keyRows := []projections.APIKeyRow{}
	for _, k := range s.Keys {
		keyRows = append(keyRows, k.APIKeyRow)
	}
	as("accounts", accountRows)
	as("api_keys", keyRows)
	as("domains", s.Domains)
	usage := []map[string]any{}
	for id, u := range s.keys {
		usage = append(usage, map[string]any{"id": id, "key_id": id, "account_id": u.Account, "last_used_at": u.Last.Truncate(time.Microsecond), "uses": u.Uses})
	}
	d.rows(t, rows, "api_key_usage", "select to_jsonb(x)::text from (select key_id as id, * from jsonb_populate_recordset(null::api_key_usage, $1::jsonb)) x", string(must(json.Marshal(usage))(t)))

	want := maps.Clone(m.rows)
	maps.DeleteFunc(want, func(_, row string) bool {
		var of struct {
			ID      string
			Account string `json:"account_id"`
		}
		must(0, json.Unmarshal([]byte(row), &of))(t)
		return s.Of != "" && s.Of != of.ID && s.Of != of.Account
	})
	differ(t, name, rows, want)

	emails, wantEmails := map[string]string{}, map[string]string{}
	for _, e := range s.Emails(-1) {
		row := must(s.Row(t.Context(), e))(t)
		row.CreatedAt = row.CreatedAt.Truncate(time.Microsecond)
		emails[row.ID] = asText(row)
		if again, ok := s.Email(e.ID); !ok || !reflect.DeepEqual(again, e) {
			t.Errorf("%s: the email %s is found as %v", name, e.ID, again)
		}
	}
	for id, row := range m.emails {
		if s.Of == "" || s.Of == row.AccountID {
			wantEmails[id] = asText(row)
		}
	}
	differ(t, name, emails, wantEmails)
	if s.Numbers.Emails != len(wantEmails) {
		t.Errorf("%s: %d emails are counted, want %d", name, s.Numbers.Emails, len(wantEmails))
	}
	if got, want := int(s.Numbers.Requests), m.counts["requests/"+s.Of]; got != want {
		t.Errorf("%s: %d requests, want %d", name, got, want)
	}
	if got, want := int(s.Numbers.Refusals), m.counts["refusals/"+s.Of]; got != want {
		t.Errorf("%s: %d refusals, want %d", name, got, want)
	}
}

func asText(row projections.Email) string {
	row.CreatedAt = row.CreatedAt.UTC()
	if row.ScheduledAt != nil {
		due := row.ScheduledAt.UTC().Truncate(time.Microsecond)
		row.ScheduledAt = &due
	}
	data, _ := json.Marshal(row)
	return string(data)
}

func differ(t *testing.T, name string, got, want map[string]string) {
	t.Helper()
	for key, row := range want {
		if got[key] != row {
			t.Fatalf("%s: %s is\n%s, want\n%s", name, key, got[key], row)
		}
	}
	for key, row := range got {
		if _, ok := want[key]; !ok {
			t.Fatalf("%s: %s is there, and should not be:\n%s", name, key, row)
		}
	}
}
