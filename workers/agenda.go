package workers

import (
	"container/heap"
	"time"
)

// agenda is what a partition has to do, and in which order: what is due goes
// round the accounts, so that a large one makes a small one wait for one email
// and not for all of its own. It is not safe for concurrent use.
type agenda struct {
	later  byTime
	ready  map[string][]*mail // by account, first come first served
	ring   []string           // accounts with something ready
	turn   int
	active map[string]int // attempts under way, by account
}

func newAgenda() *agenda {
	return &agenda{ready: map[string][]*mail{}, active: map[string]int{}}
}

// add notes that there is something to do for an email at a time.
func (a *agenda) add(m *mail, at time.Time) {
	m.due = at
	heap.Push(&a.later, m)
}

// ripen has what is due by now ready.
func (a *agenda) ripen(now time.Time) {
	for len(a.later) > 0 && !a.later[0].due.After(now) {
		m := heap.Pop(&a.later).(*mail) //nolint:errcheck // it holds nothing else
		if len(a.ready[m.account]) == 0 {
			a.ring = append(a.ring, m.account)
		}
		a.ready[m.account] = append(a.ready[m.account], m)
	}
}

// next takes the email whose turn it is, of an account that passes. It returns
// nil if there is none, and then when the next one is due, zero for never.
func (a *agenda) next(now time.Time, passes func(account string) bool) (*mail, time.Time) {
	a.ripen(now)
	for range a.ring {
		if a.turn >= len(a.ring) {
			a.turn = 0
		}
		account := a.ring[a.turn]
		if !passes(account) {
			a.turn++
			continue
		}
		m := a.ready[account][0]
		a.ready[account][0] = nil
		a.ready[account] = a.ready[account][1:]
		if len(a.ready[account]) == 0 {
			delete(a.ready, account)
			a.ring = append(a.ring[:a.turn], a.ring[a.turn+1:]...)
		} else {
			a.turn++
		}
		a.active[account]++
		return m, time.Time{}
	}
	if len(a.later) > 0 {
		return nil, a.later[0].due
	}
	return nil, time.Time{}
}

// done notes that an attempt has ended.
func (a *agenda) done(account string) {
	if a.active[account]--; a.active[account] == 0 {
		delete(a.active, account)
	}
}

// takeExpired takes the emails that are ready and have expired: those of
// accounts that do not pass would wait for ever.
func (a *agenda) takeExpired(now time.Time) []*mail {
	var expired []*mail
	for i := 0; i < len(a.ring); {
		account := a.ring[i]
		kept := a.ready[account][:0]
		for _, m := range a.ready[account] {
			if m.expires.Before(now) {
				expired = append(expired, m)
			} else {
				kept = append(kept, m)
			}
		}
		if len(kept) == 0 {
			delete(a.ready, account)
			a.ring = append(a.ring[:i], a.ring[i+1:]...)
			continue
		}
		a.ready[account] = kept
		i++
	}
	for _, m := range expired {
		a.active[m.account]++
	}
	return expired
}

// byTime is a heap of emails by when they are due.
type byTime []*mail

func (h byTime) Len() int           { return len(h) }
func (h byTime) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h byTime) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].place, h[j].place = i, j }
func (h *byTime) Push(x any) {
	m := x.(*mail) //nolint:errcheck // it holds nothing else
	m.place = len(*h)
	*h = append(*h, m)
}

func (h *byTime) Pop() any {
	old := *h
	m := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	m.place = -1
	return m
}

// postpone moves an email to a later time.
func (h *byTime) postpone(m *mail, at time.Time) {
	m.due = at
	heap.Fix(h, m.place)
}
