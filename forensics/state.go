package forensics

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// State is how an account was at a point, or all accounts. What is personal is as the
// log has it: sealed.
type State struct {
	Point    Point                `json:"point"`
	Of       string               `json:"account,omitempty"` // the account that it is of; empty is all
	Accounts []Account            `json:"accounts"`
	Keys     []Key                `json:"api_keys"`
	Domains  []projections.Domain `json:"domains"`
	Members  []Member             `json:"members"`
	Numbers  Numbers              `json:"numbers"`
	Work     Work                 `json:"work"`

	store      *eventstore.Store
	ledger     ledgerRows
	ledgerWork Work
	emails     []part
	byID       map[uuid.UUID]place // made when first asked for
	keys       map[string]*projections.KeyUse
}

// part is the emails of one account in one log.
type part struct {
	log     string
	account string
	rows    []emailRow
}

// Numbers count what there is.
type Numbers struct {
	Accounts int            `json:"accounts"`
	Blocked  int            `json:"blocked"`
	Keys     int            `json:"api_keys"`
	Domains  int            `json:"domains"`
	Members  int            `json:"members"`
	Emails   int            `json:"emails"`
	ByLast   map[string]int `json:"emails_by_last_event"`
	Lately   []Lately       `json:"accepted_lately"`
	Requests uint64         `json:"requests"`
	Refusals uint64         `json:"refusals"`
}

// Lately is how many emails were accepted in the time before the point.
type Lately struct {
	Within string  `json:"within"`
	Emails int     `json:"emails"`
	Rate   float64 `json:"per_second"`
}

var latelies = []struct {
	name string
	time.Duration
}{{"1m", time.Minute}, {"1h", time.Hour}, {"24h", 24 * time.Hour}}

// Email is an email's row without the columns that the log has in one place, in its
// acceptance: they are read from there when they are asked for.
type Email struct {
	ID        uuid.UUID  `json:"id"`
	Account   string     `json:"account_id"`
	Created   time.Time  `json:"created_at"`
	Last      string     `json:"last_event"`
	Scheduled *time.Time `json:"scheduled_at"`
	Log       string     `json:"log"`
	LastSeq   uint64     `json:"last_seq"`
	Accepted  uint64     `json:"accepted_seq"`
}

type place struct{ part, row int }

// take adds what a log said.
func (s *State) take(log string, said *stretch) {
	if s.keys == nil {
		s.keys = map[string]*projections.KeyUse{}
	}
	for _, account := range said.names() {
		c := said.accounts[account]
		// An email whose acceptance is not in the log any more has no row.
		rows := slices.DeleteFunc(c.emails.rows, func(row emailRow) bool { return row.first == 0 })
		if len(rows) > 0 {
			s.emails = append(s.emails, part{log, account, rows})
		}
		s.Numbers.Requests += c.requests
		s.Numbers.Refusals += c.refusals
		maps.Copy(s.keys, c.keys)
	}
}

// count fills in the lists and the numbers.
func (s *State) count() {
	s.Work.add(s.ledgerWork)
	s.Accounts, s.Keys, s.Domains, s.Members = []Account{}, []Key{}, []projections.Domain{}, []Member{}
	for _, id := range slices.Sorted(maps.Keys(s.ledger.accounts)) {
		s.Accounts = append(s.Accounts, *s.ledger.accounts[id])
	}
	for _, row := range s.ledger.keys {
		s.Keys = append(s.Keys, Key{*row, s.keys[row.ID]})
	}
	slices.SortFunc(s.Keys, func(a, b Key) int { return listed(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	for _, row := range s.ledger.domains {
		s.Domains = append(s.Domains, *row)
	}
	slices.SortFunc(s.Domains, func(a, b projections.Domain) int { return listed(a.CreatedAt, b.CreatedAt, a.ID, b.ID) })
	for _, row := range s.ledger.members {
		s.Members = append(s.Members, *row)
	}
	slices.SortFunc(s.Members, func(a, b Member) int { return listed(a.Joined.Time, b.Joined.Time, a.ID, b.ID) })

	n := &s.Numbers
	n.Accounts, n.Keys, n.Domains, n.Members = len(s.Accounts), len(s.Keys), len(s.Domains), len(s.Members)
	for _, a := range s.Accounts {
		if a.Blocked {
			n.Blocked++
		}
	}
	s.countEmails()
}

func (s *State) countEmails() {
	n := &s.Numbers
	n.ByLast = map[string]int{}
	since := make([]int64, len(latelies))
	n.Lately = make([]Lately, len(latelies))
	for i, l := range latelies {
		since[i], n.Lately[i].Within = s.Point.Time.Add(-l.Duration).UnixNano(), l.name
	}
	for _, p := range s.emails {
		n.Emails += len(p.rows)
		for i := range p.rows {
			n.ByLast[p.rows[i].last]++
			for k := range since {
				if p.rows[i].created > since[k] {
					n.Lately[k].Emails++
				}
			}
		}
	}
	for i, l := range latelies {
		n.Lately[i].Rate = float64(n.Lately[i].Emails) / l.Seconds()
	}
}

// Largest is the account with the most emails, and how many these are.
func (s *State) Largest() (account string, emails int) {
	counts := map[string]int{}
	for _, p := range s.emails {
		counts[p.account] += len(p.rows)
		if counts[p.account] > emails {
			account, emails = p.account, counts[p.account]
		}
	}
	return account, emails
}

// listed orders the newest first, as the read models list.
func listed(a, b time.Time, idA, idB string) int {
	return cmp.Or(b.Compare(a), cmp.Compare(idB, idA))
}

func (p part) email(i int) Email {
	row := &p.rows[i]
	c := row.change()
	return Email{row.id, p.account, c.Created, c.Last, c.Scheduled, p.log, c.Seq, row.first}
}

// newestFirst orders places of emails as the read models list them.
func (s *State) newestFirst(all []place) {
	sort.Slice(all, func(i, k int) bool {
		a, b := &s.emails[all[i].part].rows[all[i].row], &s.emails[all[k].part].rows[all[k].row]
		if a.created != b.created {
			return a.created > b.created
		}
		return bytes.Compare(a.id[:], b.id[:]) > 0
	})
}

// Emails are the emails that there were, the newest first, at most so many; all with
// a negative number.
func (s *State) Emails(most int) []Email {
	var all []place
	for i, p := range s.emails {
		for k := range p.rows {
			all = append(all, place{i, k})
		}
	}
	s.newestFirst(all)
	if most >= 0 && most < len(all) {
		all = all[:most]
	}
	emails := make([]Email, len(all))
	for i, at := range all {
		emails[i] = s.emails[at.part].email(at.row)
	}
	return emails
}

// Email finds an email, if there was one of that id.
func (s *State) Email(id uuid.UUID) (Email, bool) {
	if s.byID == nil {
		s.byID = make(map[uuid.UUID]place, s.Numbers.Emails)
		for i, p := range s.emails {
			for k := range p.rows {
				s.byID[p.rows[k].id] = place{i, k}
			}
		}
	}
	at, ok := s.byID[id]
	if !ok {
		return Email{}, false
	}
	return s.emails[at.part].email(at.row), true
}

// Row is an email's whole row, as the read model would have shown it.
func (s *State) Row(ctx context.Context, e Email) (projections.Email, error) {
	entry, err := s.store.Read(ctx, e.Log, e.Accepted)
	if err == nil {
		err = entry.Err
	}
	if err != nil {
		return projections.Email{}, fmt.Errorf("forensics: read how %s was accepted: %w", e.ID, err)
	}
	for _, rec := range entry.Events {
		if accepted, ok := rec.Event.(email.Accepted); ok && rec.Stream.ID == e.ID.String() {
			return projections.NewEmail(rec.Stream, e.Log, accepted, projections.EmailChange{
				Accepted: true, Created: e.Created, Last: e.Last, Scheduled: e.Scheduled, Seq: e.LastSeq,
			}), nil
		}
	}
	return projections.Email{}, fmt.Errorf("forensics: %s/%d does not say how %s was accepted", e.Log, e.Accepted, e.ID)
}
