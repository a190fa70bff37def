package archive

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"

	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

// held is what verifying finds in one segment.
type held struct {
	span     span
	manifest *Manifest // nil if it cannot be read
	sums     []seal.Sum
	err      error // why the archive cannot be read at all
}

// walk reads the segments of a log in order, the next one while each works on one.
// What is wrong with a segment is in its sums: Err of one says that the entries
// from there on cannot be read, and Copy that the segment is not what it was.
func (a *Archive) walk(ctx context.Context, log string, markKey []byte, each func(held) error) error {
	ctx, stop := context.WithCancel(ctx)
	segments := make(chan held, 1)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer stop()
	reading.Go(func() {
		defer close(segments)
		w := walker{archive: a, log: log, markKey: markKey}
		for {
			h, ok := w.next(ctx)
			if !ok {
				return
			}
			select {
			case segments <- h:
			case <-ctx.Done():
				return
			}
			if h.err != nil {
				return
			}
		}
	})
	for h := range segments {
		if h.err != nil {
			return h.err
		}
		if err := each(h); err != nil {
			return err
		}
	}
	return ctx.Err()
}

type walker struct {
	archive *Archive
	log     string
	markKey []byte
	known   []span
	done    int
	last    uint64
	sha     string // of the segment before, empty if that is not known
}

// next is the next segment, also of those that are written meanwhile.
func (w *walker) next(ctx context.Context) (held, bool) {
	if w.done == len(w.known) {
		known, err := w.archive.list(ctx, w.log, true)
		if err != nil {
			return held{err: err}, true
		}
		if len(known) <= w.done {
			return held{}, false
		}
		w.known = known
	}
	s := w.known[w.done]
	w.done++
	h := held{span: s}
	var wrong error
	switch {
	case w.last == 0:
	case s.first <= w.last:
		wrong = fmt.Errorf("the segment %s holds entries that the one before it holds", s.name())
	case s.first != w.last+1:
		wrong = fmt.Errorf("the archive has no segment of %d to %d", w.last+1, s.first-1)
	}
	previous := w.sha
	w.last, w.sha = s.last, ""
	m, err := w.archive.manifest(ctx, w.log, s)
	if err != nil {
		h.sums = []seal.Sum{{Seq: s.first, Err: err}}
		return h, ctx.Err() == nil
	}
	h.manifest, w.sha = m, m.SHA256
	if wrong == nil && w.done == 1 && m.Previous != "" {
		wrong = errors.New("the archive has no segment of what was archived before it")
	}
	if wrong == nil && w.done > 1 && previous != "" && m.Previous != previous {
		wrong = fmt.Errorf("the segment %s was not made after the one before it", s.name())
	}
	data, err := w.archive.whole(ctx, m)
	if err != nil {
		h.sums = []seal.Sum{{Seq: s.first, Err: err}}
		return h, ctx.Err() == nil
	}
	if wrong == nil && (int64(len(data)) != m.Bytes || sum(data) != m.SHA256) {
		wrong = fmt.Errorf("the segment %s is not the one that was written: its SHA-256 is not the one in its manifest", s.name())
	}
	h.sums = m.sums(data, w.markKey)
	if wrong != nil && len(h.sums) > 0 {
		h.sums[0].Copy = wrong
	}
	return h, true
}

// sums works out the leaves of a segment, a frame on each core.
func (m *Manifest) sums(data []byte, markKey []byte) []seal.Sum {
	frames := make([][]seal.Sum, len(m.Frames))
	var all sync.WaitGroup
	workers := runtime.NumCPU()
	for w := range workers {
		all.Go(func() {
			for n := w; n < len(m.Frames); n += workers {
				frames[n] = m.frameSums(n, data, markKey)
			}
		})
	}
	all.Wait()
	var sums []seal.Sum
	for _, f := range frames {
		sums = append(sums, f...)
	}
	return sums
}

func (m *Manifest) frameSums(n int, data, markKey []byte) []seal.Sum {
	f := m.Frames[n]
	if f.Off+f.Len > int64(len(data)) {
		return []seal.Sum{{Seq: f.First, Err: fmt.Errorf("%w: it is cut off", errDamaged)}}
	}
	entries, err := m.readFrame(n, data[f.Off:f.Off+f.Len])
	if err != nil {
		return []seal.Sum{{Seq: f.First, Err: err}}
	}
	sums := make([]seal.Sum, len(entries))
	for i, e := range entries {
		sums[i] = seal.Sum{Seq: e.Seq, Time: e.Time, Hash: leafOf(e), Forged: markKey != nil && !e.Marked(markKey)}
	}
	return sums
}

// Sums hands over the leaves of a log: those that have left the stream from the
// archive, and the others from the stream. Where both have an entry, they have to
// agree.
func (a *Archive) Sums(log string, stream notary.Sums, markKey []byte) notary.Sums {
	return func(ctx context.Context, each func([]seal.Sum) error) error {
		ctx, stop := context.WithCancel(ctx)
		parts := make(chan []seal.Sum, 1)
		walked := make(chan error, 1)
		var walking sync.WaitGroup
		defer walking.Wait()
		defer stop()
		walking.Go(func() {
			defer close(parts)
			walked <- a.walk(ctx, log, markKey, func(h held) error {
				select {
				case parts <- h.sums:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
		m := merge{parts: parts, each: each}
		if err := stream(ctx, m.stream); err != nil {
			return err
		}
		if err := m.before(math.MaxUint64); err != nil {
			return err
		}
		return <-walked
	}
}

// merge brings what the archive has and what the stream has into one order.
type merge struct {
	parts <-chan []seal.Sum
	held  []seal.Sum // of the archive, not handed over yet
	last  uint64
	each  func([]seal.Sum) error
}

// ahead is the archive's next entry, or nil.
func (m *merge) ahead() *seal.Sum {
	for len(m.held) == 0 {
		part, ok := <-m.parts
		if !ok {
			return nil
		}
		m.held = part
	}
	return &m.held[0]
}

// before hands over what the archive has before an entry.
func (m *merge) before(seq uint64) error {
	for s := m.ahead(); s != nil && s.Seq < seq; s = m.ahead() {
		n := 1
		for n < len(m.held) && m.held[n].Seq < seq {
			n++
		}
		batch := m.held[:n]
		m.held, m.last = m.held[n:], batch[n-1].Seq
		if err := m.each(batch); err != nil {
			return err
		}
	}
	return nil
}

// stream takes entries of the stream.
func (m *merge) stream(sums []seal.Sum) error {
	for i := range sums {
		s := &sums[i]
		if s.Removed { // it is no entry, and has no copy
			if err := m.each(sums[i : i+1]); err != nil {
				return err
			}
			continue
		}
		seq := s.Seq
		if seq == 0 { // it is damaged, and in the place of the next
			seq = m.last + 1
		}
		if copied := m.ahead(); copied != nil && copied.Seq < seq {
			// What comes before it in this batch is handed over first.
			if err := m.before(seq); err != nil {
				return err
			}
		}
		if copied := m.ahead(); copied != nil && copied.Seq == seq {
			compare(s, *copied)
			m.held = m.held[1:]
		}
		m.last = max(m.last, seq)
		if err := m.each(sums[i : i+1]); err != nil {
			return err
		}
	}
	return nil
}

// compare notes what is wrong with the copy of an entry.
func compare(s *seal.Sum, copied seal.Sum) {
	switch {
	case copied.Copy != nil:
		s.Copy = copied.Copy
	case copied.Err != nil:
		s.Copy = copied.Err
	case s.Err == nil && copied.Hash != s.Hash:
		s.Copy = errors.New("the archive and the stream have different entries")
	}
}

// Report is what became of checking the segments of a log by themselves.
type Report struct {
	Log      string         `json:"log"`
	Segments int            `json:"segments"`
	Entries  int            `json:"entries"`
	First    uint64         `json:"first"`
	Last     uint64         `json:"last"`
	To       time.Time      `json:"to"`
	Sealed   int            `json:"sealed"` // segments that were held against a signed head
	Findings []seal.Finding `json:"findings,omitempty"`
}

// OK reports whether nothing is wrong.
func (r *Report) OK() bool { return len(r.Findings) == 0 }

// Check holds each segment of a log against the signed head that lies in its
// manifest, and against the segment before it. It needs the public keys, and
// neither the log nor its seal.
func (a *Archive) Check(ctx context.Context, log string, trusted seal.Verifiers) (*Report, error) {
	r := &Report{Log: log}
	found := func(kind seal.Kind, seq uint64, err error) {
		r.Findings = append(r.Findings, seal.Finding{Log: log, Seq: seq, Kind: kind, Detail: err.Error()})
	}
	err := a.walk(ctx, log, nil, func(h held) error {
		r.Segments++
		if r.First == 0 {
			r.First = h.span.first
		}
		r.Last = h.span.last
		leaves := make([]seal.Hash, 0, len(h.sums))
		for _, s := range h.sums {
			if s.Copy != nil {
				found(seal.Archived, s.Seq, s.Copy)
			}
			if s.Err != nil {
				found(seal.Unreadable, s.Seq, s.Err)
				continue
			}
			leaves = append(leaves, s.Hash)
		}
		r.Entries += len(leaves)
		m := h.manifest
		if m == nil || uint64(len(leaves)) != h.span.last-h.span.first+1 {
			return nil // which was found
		}
		r.To = m.To
		if m.Checkpoint == "" || m.Proof == nil {
			if notary.Seals(log) {
				found(seal.Unsealed, m.First, errors.New("the segment holds no signed head"))
			}
			return nil
		}
		head, err := trusted.Open(m.Origin, []byte(m.Checkpoint))
		if err == nil {
			err = m.Proof.Check(head, int64(m.First-1), leaves)
		}
		if err != nil {
			found(seal.Changed, m.First, fmt.Errorf("the entries up to %d are not those that were sealed: %w", m.Last, err))
			return nil
		}
		r.Sealed++
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("archive: check %s: %w", log, err)
	}
	return r, nil
}
