package workers

import "time"

// Backlog is what waits in a partition that this process works on.
type Backlog struct {
	Log  string
	Open int           // emails without a final state, scheduled ones too
	Due  int           // of these, those that could go out now
	Held int           // of these, those that are due and whose account may not send
	Wait time.Duration // how long the first of those that could go out has been due
}

// Backlog says what waits in each partition that this process works on at the moment.
func (d *Dispatcher) Backlog() []Backlog {
	var all []Backlog
	for _, p := range d.partitions {
		if b, ok := p.backlog(); ok {
			all = append(all, b)
		}
	}
	return all
}

func (p *partition) backlog() (Backlog, bool) {
	now := p.d.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.working {
		return Backlog{}, false
	}
	p.agenda.ripen(now)
	b := Backlog{Log: p.name, Open: len(p.open)}
	for account, ready := range p.agenda.ready {
		if p.d.blocked(account) != "" {
			b.Held += len(ready)
			continue
		}
		b.Due += len(ready)
		b.Wait = max(b.Wait, now.Sub(ready[0].due))
	}
	return b, true
}
