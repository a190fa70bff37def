package forensics

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"postbook.dev/postbook/eventstore"
)

// Difference is what changed between two points: row by row and field by field, with
// the events that did it.
type Difference struct {
	From    Point    `json:"from"`
	To      Point    `json:"to"`
	Of      string   `json:"account,omitempty"`
	Numbers []Number `json:"numbers"`
	Moves   []Move   `json:"emails"`
	Changes []Change `json:"changes"`
	More    int      `json:"more_emails,omitempty"` // that changed and are not listed
	Work    Work     `json:"work"`
}

// Number is a count that changed.
type Number struct {
	Name string  `json:"name"`
	From int64   `json:"from"`
	To   int64   `json:"to"`
	Rate float64 `json:"per_second"`
}

// Move is how many emails went from one last event to another; from nothing if they
// were accepted in between.
type Move struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Emails int    `json:"emails"`
}

// Change is a row that is not as it was.
type Change struct {
	Table  string  `json:"table"`
	Key    string  `json:"key"`
	Kind   string  `json:"kind"` // added, removed, changed, or came and went
	Fields []Field `json:"fields"`
	Events []Event `json:"events"` // that did it
}

// Field is a field that is not as it was. One that was not there, or is not, is null.
type Field struct {
	Name string          `json:"name"`
	From json.RawMessage `json:"from"`
	To   json.RawMessage `json:"to"`
}

// ErrOrder says that a difference was asked for backwards.
var ErrOrder = errors.New("forensics: the second point lies before the first")

// Diff compares two states of the same account, or of all. Of the emails that changed
// at most so many are listed.
func (r *Replay) Diff(ctx context.Context, a, b *State, most int) (*Difference, error) {
	if a.Of != b.Of {
		return nil, errors.New("forensics: the states are not of the same account")
	}
	if !a.Point.Before(b.Point) {
		return nil, ErrOrder
	}
	d := &Difference{From: a.Point, To: b.Point, Of: a.Of}
	d.Work.add(a.Work)
	d.Work.add(b.Work)
	events, err := r.ledgerEvents(ctx, a, b)
	if err != nil {
		return nil, err
	}
	before, err := ledgerFields(a)
	if err != nil {
		return nil, err
	}
	after, err := ledgerFields(b)
	if err != nil {
		return nil, err
	}
	d.Changes = changesOf(before, after, events)
	if err := r.diffEmails(ctx, d, a, b, most); err != nil {
		return nil, err
	}
	d.compare(a.Numbers, b.Numbers)
	return d, nil
}

// rowKey names a row.
type rowKey struct{ table, key string }

type fields = map[string]json.RawMessage

// ledgerFields are all rows but those of emails.
func ledgerFields(s *State) (map[rowKey]fields, error) {
	rows := map[rowKey]fields{}
	var failed error
	add := func(table, key string, row any) {
		data, err := json.Marshal(row)
		var of fields
		if err == nil {
			err = json.Unmarshal(data, &of)
		}
		failed = errors.Join(failed, err)
		rows[rowKey{table, key}] = of
	}
	for id, a := range s.ledger.accounts {
		add("accounts", id, a.AccountRow)
	}
	for id, k := range s.ledger.keys {
		add("api_keys", id, k)
	}
	for id, d := range s.ledger.domains {
		add("domains", id, d)
	}
	for id, m := range s.ledger.members {
		add("members", id, m)
	}
	if failed != nil {
		return nil, fmt.Errorf("forensics: compare rows: %w", failed)
	}
	return rows, nil
}

// tableOf is the table that a kind of aggregate has its rows in.
var tableOf = map[string]string{"account": "accounts", "apikey": "api_keys", "sender": "domains", "member": "members", "email": "emails"}

// ledgerEvents are the events of the ledger between two states, by the row that they
// are about.
func (r *Replay) ledgerEvents(ctx context.Context, a, b *State) (map[rowKey][]Event, error) {
	from, last, err := r.readable(ctx, eventstore.Ledger, b.Point)
	if err != nil {
		return nil, err
	}
	found := map[rowKey][]Event{}
	f := eventstore.Following{
		Log: eventstore.Ledger, After: max(from, a.Point.whole(eventstore.Ledger)), StopAt: last, Subjects: ledgerSubjects(a.Of), MaxBatch: 4000,
	}
	err = follow(ctx, r.store, f, func(e eventstore.Entry) error {
		for _, rec := range e.Events {
			if b.Point.has(rec) && !a.Point.has(rec) {
				key := rowKey{tableOf[rec.Stream.Kind], rec.Stream.ID}
				found[key] = append(found[key], eventOf(rec))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("forensics: read what happened in the ledger: %w", err)
	}
	return found, nil
}

func changesOf(before, after map[rowKey]fields, events map[rowKey][]Event) []Change {
	keys := map[rowKey]bool{}
	for k := range before {
		keys[k] = true
	}
	for k := range after {
		keys[k] = true
	}
	for k := range events {
		keys[k] = true // what happened and left no trace is told too
	}
	var all []Change
	for k := range keys {
		c := Change{Table: k.table, Key: k.key, Kind: kindOf(before[k], after[k]), Fields: differing(before[k], after[k]), Events: events[k]}
		if len(c.Fields) > 0 || len(c.Events) > 0 {
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Change) int {
		return strings.Compare(a.Table+"/"+a.Key, b.Table+"/"+b.Key)
	})
	return all
}

func kindOf(before, after fields) string {
	switch {
	case before == nil && after != nil:
		return "added"
	case before != nil && after == nil:
		return "removed"
	}
	if before == nil {
		return "came and went"
	}
	return "changed"
}

func differing(before, after fields) []Field {
	names := map[string]bool{}
	for n := range before {
		names[n] = true
	}
	for n := range after {
		names[n] = true
	}
	var all []Field
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if !bytes.Equal(before[n], after[n]) {
			all = append(all, Field{n, before[n], after[n]})
		}
	}
	return all
}

// diffEmails compares the emails: counts how they moved, and lists the newest.
func (r *Replay) diffEmails(ctx context.Context, d *Difference, a, b *State, most int) error {
	before := map[uuid.UUID]*emailRow{}
	for _, p := range a.emails {
		for i := range p.rows {
			before[p.rows[i].id] = &p.rows[i]
		}
	}
	moves := map[[2]string]int{}
	var changed []place
	for i, p := range b.emails {
		for k := range p.rows {
			now, was := &p.rows[k], before[p.rows[k].id]
			if was != nil && *was == *now && !cuts(a.Point, p.log, now.seq) {
				continue
			}
			changed = append(changed, place{i, k})
			if was == nil {
				moves[[2]string{"", now.last}]++
			} else {
				moves[[2]string{was.last, now.last}]++
			}
		}
	}
	for move, n := range moves {
		d.Moves = append(d.Moves, Move{move[0], move[1], n})
	}
	slices.SortFunc(d.Moves, func(a, b Move) int {
		return cmp.Or(b.Emails-a.Emails, strings.Compare(a.From, b.From), strings.Compare(a.To, b.To))
	})
	b.newestFirst(changed)
	d.More = max(0, len(changed)-most)
	for _, at := range changed[:min(most, len(changed))] {
		now := b.emails[at.part].email(at.row)
		c, err := r.emailChange(ctx, a, b, now, before[now.ID])
		if err != nil {
			return err
		}
		d.Changes = append(d.Changes, c)
	}
	return nil
}

// cuts reports whether a point lies within an entry, so that what is after it may
// belong to the same.
func cuts(p Point, log string, seq uint64) bool {
	return p.Event != nil && p.Event.Log == log && p.Event.Seq == seq
}

func (r *Replay) emailChange(ctx context.Context, a, b *State, now Email, was *emailRow) (Change, error) {
	fieldsOf := func(e Email) (of fields, err error) {
		data, err := json.Marshal(e)
		if err == nil {
			err = json.Unmarshal(data, &of)
		}
		return of, err
	}
	after, err := fieldsOf(now)
	var before fields
	if was != nil && err == nil {
		before, err = fieldsOf(part{now.Log, now.Account, []emailRow{*was}}.email(0))
	}
	if err != nil {
		return Change{}, fmt.Errorf("forensics: compare emails: %w", err)
	}
	history, err := r.store.Chain(ctx, now.Log, now.LastSeq, now.ID.String())
	if err != nil {
		return Change{}, fmt.Errorf("forensics: read the history of the email %s: %w", now.ID, err)
	}
	c := Change{Table: "emails", Key: now.ID.String(), Kind: kindOf(before, after), Fields: differing(before, after)}
	for _, rec := range history {
		if b.Point.has(rec) && !a.Point.has(rec) {
			c.Events = append(c.Events, eventOf(rec))
		}
	}
	return c, nil
}

// compare lists the numbers that changed.
func (d *Difference) compare(a, b Numbers) {
	seconds := d.To.Time.Sub(d.From.Time).Seconds()
	add := func(name string, from, to int64) {
		if from == to {
			return
		}
		n := Number{Name: name, From: from, To: to}
		if seconds > 0 {
			n.Rate = float64(to-from) / seconds
		}
		d.Numbers = append(d.Numbers, n)
	}
	add("accounts", int64(a.Accounts), int64(b.Accounts))
	add("blocked", int64(a.Blocked), int64(b.Blocked))
	add("api_keys", int64(a.Keys), int64(b.Keys))
	add("domains", int64(a.Domains), int64(b.Domains))
	add("members", int64(a.Members), int64(b.Members))
	add("emails", int64(a.Emails), int64(b.Emails))
	words := map[string]bool{}
	for w := range a.ByLast {
		words[w] = true
	}
	for w := range b.ByLast {
		words[w] = true
	}
	for _, w := range slices.Sorted(maps.Keys(words)) {
		add("emails "+w, int64(a.ByLast[w]), int64(b.ByLast[w]))
	}
	add("requests", int64(a.Requests), int64(b.Requests))
	add("refusals", int64(a.Refusals), int64(b.Refusals))
}
