package forensics

import (
	"math"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/projections"
)

// changes is what a stretch of a log says of one account.
type changes struct {
	emails   *emails
	requests uint64
	refusals uint64
	keys     map[string]*projections.KeyUse
}

func newChanges() *changes {
	return &changes{emails: &emails{at: map[uuid.UUID]int{}}, keys: map[string]*projections.KeyUse{}}
}

func (c *changes) answered(rec domain.Recorded) {
	c.requests++
	if id, ok := projections.UsedKey(rec); ok {
		c.key(id).Fold(rec)
	}
}

func (c *changes) key(id string) *projections.KeyUse {
	u := c.keys[id]
	if u == nil {
		u = &projections.KeyUse{}
		c.keys[id] = u
	}
	return u
}

func (c *changes) then(later *changes) {
	for _, row := range later.emails.rows {
		c.emails.then(row)
	}
	c.requests += later.requests
	c.refusals += later.refusals
	for id, use := range later.keys {
		c.key(id).Then(*use)
	}
}

// emails are the emails of an account that a stretch is about, in the order in which
// it comes to them.
type emails struct {
	at   map[uuid.UUID]int
	rows []emailRow
}

// emailRow is a projections.EmailChange in little space: an account may have
// millions.
type emailRow struct {
	id      uuid.UUID
	created int64 // nanoseconds
	due     int64 // nanoseconds, or never
	first   uint64
	seq     uint64
	last    string
}

// never is the due time of an email without one.
const never = math.MinInt64

func (s *emails) row(id uuid.UUID) *emailRow {
	i, known := s.at[id]
	if !known {
		i = len(s.rows)
		s.at[id] = i
		s.rows = append(s.rows, emailRow{id: id, due: never})
	}
	return &s.rows[i]
}

func (s *emails) fold(rec domain.Recorded, e email.Event) {
	id, err := uuid.Parse(rec.Stream.ID)
	if err != nil {
		return // the log takes no email in whose id is none
	}
	row := s.row(id)
	c := row.change()
	accepted := c.Accepted
	c.Fold(rec, e)
	if c.Accepted && !accepted {
		row.first = rec.Seq
	}
	row.keep(c)
}

func (s *emails) then(later emailRow) {
	row := s.row(later.id)
	c := row.change()
	c.Then(later.change())
	if row.first == 0 {
		row.first = later.first
	}
	row.keep(c)
}

func (r *emailRow) change() projections.EmailChange {
	c := projections.EmailChange{Accepted: r.first > 0, Last: r.last, Seq: r.seq}
	if c.Accepted {
		c.Created = instant(r.created)
	}
	if r.due != never {
		due := instant(r.due)
		c.Scheduled = &due
	}
	return c
}

// keep takes over all but where the row begins.
func (r *emailRow) keep(c projections.EmailChange) {
	r.last, r.seq = c.Last, c.Seq
	if c.Accepted {
		r.created = c.Created.UnixNano()
	}
	if c.Scheduled != nil {
		r.due = c.Scheduled.UnixNano()
	}
}

func instant(nanoseconds int64) time.Time { return time.Unix(0, nanoseconds).UTC() }
