package forensics

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/projections"
)

// What a snapshot says of an account: its emails, column by column within each row as
// differences to what comes before, then its requests. An email takes about thirty
// bytes, most of them its id, which does not compress.

const (
	isAccepted = 1 << iota
	isDue
)

func (s *stretch) names() []string { return slices.Sorted(maps.Keys(s.accounts)) }

func (c *changes) encode(first uint64) []byte {
	w := make(writer, 0, 64+32*len(c.emails.rows))
	words := map[string]uint64{}
	var order []string
	for _, row := range c.emails.rows {
		if _, known := words[row.last]; !known {
			words[row.last] = uint64(len(order))
			order = append(order, row.last)
		}
	}
	w.number(uint64(len(order)))
	for _, word := range order {
		w.text(word)
	}
	w.number(uint64(len(c.emails.rows)))
	created, due := int64(0), int64(0)
	for _, row := range c.emails.rows {
		flags := uint64(0)
		if row.first > 0 {
			flags |= isAccepted
		}
		if row.due != never {
			flags |= isDue
		}
		w.bytes(row.id[:])
		w.number(flags | words[row.last]<<2)
		w.number(row.seq - first)
		if row.first > 0 {
			w.number(row.first - first)
			w.difference(row.created - created)
			created = row.created
		}
		if row.due != never {
			w.difference(row.due - due)
			due = row.due
		}
	}
	w.number(c.requests)
	w.number(c.refusals)
	w.number(uint64(len(c.keys)))
	for _, id := range slices.Sorted(maps.Keys(c.keys)) {
		use := c.keys[id]
		w.text(id)
		w.text(use.Account)
		w.difference(use.Last.UnixNano())
		w.number(uint64(use.Uses))
	}
	return w
}

func decodeChanges(data []byte, first uint64) (*changes, bool) {
	r := reader{data: data}
	words := make([]string, r.count(1))
	for i := range words {
		words[i] = r.text()
	}
	c := newChanges()
	n := r.count(len(uuid.UUID{}))
	c.emails.rows = make([]emailRow, n)
	created, due := int64(0), int64(0)
	for i := range c.emails.rows {
		row := &c.emails.rows[i]
		copy(row.id[:], r.bytes(len(row.id)))
		flags := r.number()
		word := flags >> 2
		if word >= uint64(len(words)) {
			return nil, false
		}
		row.last, row.seq, row.due = words[word], first+r.number(), never
		if flags&isAccepted != 0 {
			row.first = first + r.number()
			created += r.difference()
			row.created = created
		}
		if flags&isDue != 0 {
			due += r.difference()
			row.due = due
		}
	}
	c.requests, c.refusals = r.number(), r.number()
	for range r.count(4) {
		id := r.text()
		c.keys[id] = &projections.KeyUse{Account: r.text(), Last: time.Unix(0, r.difference()).UTC(), Uses: int64(r.number())}
	}
	return c, !r.failed && len(r.data) == 0
}

// writer writes numbers and texts one after the other.
type writer []byte

func (w *writer) bytes(b []byte)     { *w = append(*w, b...) }
func (w *writer) number(n uint64)    { *w = binary.AppendUvarint(*w, n) }
func (w *writer) difference(n int64) { *w = binary.AppendVarint(*w, n) }

func (w *writer) text(s string) {
	w.number(uint64(len(s)))
	*w = append(*w, s...)
}

// reader reads what a writer wrote, and notes if it was not one.
type reader struct {
	data   []byte
	failed bool
}

func (r *reader) number() uint64 {
	n, size := binary.Uvarint(r.data)
	r.pass(size)
	return n
}

func (r *reader) difference() int64 {
	n, size := binary.Varint(r.data)
	r.pass(size)
	return n
}

func (r *reader) pass(size int) {
	if size <= 0 {
		r.failed, r.data = true, nil
		return
	}
	r.data = r.data[size:]
}

// count is how many things follow that take at least size bytes each.
func (r *reader) count(size int) int {
	n := r.number()
	if n > uint64(len(r.data)/size) {
		r.failed, r.data = true, nil
		return 0
	}
	return int(n)
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.data) {
		r.failed, r.data = true, nil
		return nil
	}
	b := r.data[:n]
	r.data = r.data[n:]
	return b
}

func (r *reader) text() string { return string(r.bytes(int(min(r.number(), maxHead)))) }
