// Package archive keeps a log's older entries in compressed, sealed segments, in a
// directory or a bucket, so that the stream on this machine's disk can be bounded.
// An Archive reads them, wherever the event store needs them. An Archiver writes
// them, reads each back and holds it against the seal, and only then lets the
// stream forget.
package archive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"sync"

	"postbook.dev/postbook/eventstore"
)

// Archive reads the segments of an instance. Many may use it at once.
type Archive struct {
	place    Place
	instance string

	mu        sync.Mutex
	spans     map[string][]span // by log, in order
	manifests *recent[string, *Manifest]
	frames    *recent[frameKey, []eventstore.Entry]
}

// What is kept of what was read last.
const (
	keptManifests = 64
	keptFrames    = 24 << 20 // bytes
)

// New makes an archive of what a place has of an instance.
func New(place Place, instance string) *Archive {
	return &Archive{
		place: place, instance: instance, spans: map[string][]span{},
		manifests: newRecent[string, *Manifest](keptManifests), frames: newRecent[frameKey, []eventstore.Entry](keptFrames),
	}
}

// Place is where the segments lie.
func (a *Archive) Place() Place { return a.place }

// The ends of the names of a segment and of its manifest.
const (
	segmentSuffix  = ".seg"
	manifestSuffix = ".json"
)

// span is a segment, as its name says.
type span struct{ first, last uint64 }

func (s span) name() string { return fmt.Sprintf("%020d-%020d", s.first, s.last) }

func parseSpan(name string) (span, bool) {
	var s span
	n, err := fmt.Sscanf(name, "%d-%d", &s.first, &s.last)
	return s, n == 2 && err == nil && s.name() == name && s.first > 0 && s.first <= s.last
}

func (a *Archive) folder(log string) string { return a.instance + "/" + log + "/" }

// list lists the segments of a log that count: those with a manifest. again looks
// at the place, even if it was looked at before.
func (a *Archive) list(ctx context.Context, log string, again bool) ([]span, error) {
	a.mu.Lock()
	held := a.spans[log]
	a.mu.Unlock()
	if len(held) > 0 && !again {
		return held, nil
	}
	objects, err := a.place.List(ctx, a.folder(log))
	if err != nil {
		return nil, err
	}
	var spans []span
	for _, o := range objects {
		name, ok := strings.CutSuffix(strings.TrimPrefix(o.Name, a.folder(log)), manifestSuffix)
		if s, valid := parseSpan(name); ok && valid {
			spans = append(spans, s)
		}
	}
	slices.SortFunc(spans, func(x, y span) int { return cmp.Compare(x.first, y.first) })
	a.mu.Lock()
	a.spans[log] = spans
	a.mu.Unlock()
	return spans, nil
}

// added notes a segment that was written.
func (a *Archive) added(log string, s span) {
	a.mu.Lock()
	a.spans[log] = append(slices.Clip(a.spans[log]), s)
	a.mu.Unlock()
}

// Logs names the logs of which there are segments.
func (a *Archive) Logs(ctx context.Context) ([]string, error) {
	objects, err := a.place.List(ctx, a.instance+"/")
	if err != nil {
		return nil, err
	}
	var logs []string
	for _, o := range objects {
		log, _, ok := strings.Cut(strings.TrimPrefix(o.Name, a.instance+"/"), "/")
		if ok && !slices.Contains(logs, log) {
			logs = append(logs, log)
		}
	}
	return logs, nil
}

// Part is a segment that counts.
type Part struct {
	Log         string
	First, Last uint64 // entries
	Name        string // in the place
	Bytes       int64
	SHA256      string // as its manifest says
}

// Parts lists every segment of every log, as the place has them now.
func (a *Archive) Parts(ctx context.Context) ([]Part, error) {
	logs, err := a.Logs(ctx)
	if err != nil {
		return nil, err
	}
	var parts []Part
	for _, log := range logs {
		spans, err := a.list(ctx, log, true)
		if err != nil {
			return nil, err
		}
		for _, s := range spans {
			m, err := a.manifest(ctx, log, s)
			if err != nil {
				return nil, err
			}
			parts = append(parts, Part{log, s.first, s.last, a.folder(log) + s.name() + segmentSuffix, m.Bytes, m.SHA256})
		}
	}
	return parts, nil
}

// Extent is the first and the last entry of a log that is held.
func (a *Archive) Extent(ctx context.Context, log string) (first, last uint64, err error) {
	spans, err := a.list(ctx, log, false)
	if err != nil || len(spans) == 0 {
		return 0, 0, err
	}
	return spans[0].first, spans[len(spans)-1].last, nil
}

// find is the place in the list of the segment that holds an entry. What another
// process has written since is found.
func (a *Archive) find(ctx context.Context, log string, seq uint64) ([]span, int, error) {
	spans, err := a.list(ctx, log, false)
	if err != nil {
		return nil, 0, err
	}
	if len(spans) > 0 && seq > spans[len(spans)-1].last {
		if spans, err = a.list(ctx, log, true); err != nil {
			return nil, 0, err
		}
	}
	n, _ := slices.BinarySearchFunc(spans, seq, func(s span, seq uint64) int { return cmp.Compare(s.last, seq) })
	if n == len(spans) || spans[n].first > seq {
		return nil, 0, fmt.Errorf("archive: %s has no segment with %s %d: %w", a.place, log, seq, eventstore.ErrNoEntry)
	}
	return spans, n, nil
}

// maxManifest bounds a manifest, in bytes: that of the largest segment has about
// twenty thousand.
const maxManifest = 4 << 20

// manifest reads the manifest of a segment.
func (a *Archive) manifest(ctx context.Context, log string, s span) (*Manifest, error) {
	name := a.folder(log) + s.name()
	if m, ok := a.manifests.get(name); ok {
		return m, nil
	}
	data, err := a.place.Get(ctx, name+manifestSuffix, 0, maxManifest)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if m.Origin != a.instance+"/"+log || m.Log != log || m.First != s.first || m.Last != s.last {
		return nil, fmt.Errorf("%s: %w: its manifest is that of %s %d to %d", name, errDamaged, m.Origin, m.First, m.Last)
	}
	a.manifests.put(name, m, 1)
	return m, nil
}

// frameKey names a frame.
type frameKey struct {
	log   string
	first uint64
}

// Entry returns one entry, or eventstore.ErrNoEntry.
func (a *Archive) Entry(ctx context.Context, log string, seq uint64) (eventstore.Entry, error) {
	spans, at, err := a.find(ctx, log, seq)
	if err != nil {
		return eventstore.Entry{}, err
	}
	m, err := a.manifest(ctx, log, spans[at])
	if err != nil {
		return eventstore.Entry{}, err
	}
	n := m.frameOf(seq)
	f := m.Frames[n]
	entries, ok := a.frames.get(frameKey{log, f.First})
	if !ok {
		if entries, err = a.read(ctx, m, n, n+1); err != nil {
			return eventstore.Entry{}, err
		}
		a.frames.put(frameKey{log, f.First}, entries, f.Raw)
	}
	return entries[seq-f.First], nil
}

// frameOf is the frame that holds an entry.
func (m *Manifest) frameOf(seq uint64) int {
	n, exact := slices.BinarySearchFunc(m.Frames, seq, func(f Frame, seq uint64) int { return cmp.Compare(f.First, seq) })
	if exact {
		return n
	}
	return max(n-1, 0)
}

// read reads the frames from one to before another.
func (a *Archive) read(ctx context.Context, m *Manifest, from, to int) ([]eventstore.Entry, error) {
	first, last := m.Frames[from], m.Frames[to-1]
	name := a.folder(m.Log) + span{m.First, m.Last}.name() + segmentSuffix
	data, err := a.place.Get(ctx, name, first.Off, last.Off+last.Len-first.Off)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err != nil {
		return nil, err
	}
	var entries []eventstore.Entry
	for n := from; n < to; n++ {
		f := m.Frames[n]
		start := f.Off - first.Off
		if start+f.Len > int64(len(data)) {
			return entries, fmt.Errorf("%s: %w: it is cut off", name, errDamaged)
		}
		read, err := m.readFrame(n, data[start:start+f.Len])
		if err != nil {
			return entries, fmt.Errorf("%s: %w", name, err)
		}
		if entries == nil {
			entries = read
		} else {
			entries = append(entries, read...)
		}
	}
	return entries, nil
}

// stretch is how many bytes of records are read at once, where entries are read in
// order.
const stretch = 2 << 20

// part is what one read gives.
type part struct {
	entries []eventstore.Entry
	err     error
}

// Scan hands over the entries after one up to another, in order. What comes next
// is read and unpacked meanwhile.
func (a *Archive) Scan(ctx context.Context, log string, after, upTo uint64, each func([]eventstore.Entry) error) error {
	if after >= upTo {
		return nil
	}
	ctx, stop := context.WithCancel(ctx)
	ahead := make(chan chan part, max(2, runtime.NumCPU()))
	var reading sync.WaitGroup
	defer reading.Wait()
	defer stop()
	reading.Go(func() {
		defer close(ahead)
		for next := after + 1; next <= upTo; {
			m, from, to, err := a.next(ctx, log, next)
			read := make(chan part, 1)
			select {
			case ahead <- read:
			case <-ctx.Done():
				return
			}
			if err != nil {
				read <- part{err: err}
				return
			}
			reading.Go(func() {
				entries, err := a.read(ctx, m, from, to)
				read <- part{entries, err}
			})
			next = m.end(to - 1)
		}
	})
	for read := range ahead {
		p := <-read
		if p.err != nil {
			return p.err
		}
		entries := p.entries
		if skip := after + 1; entries[0].Seq < skip {
			entries = entries[min(uint64(len(entries)), skip-entries[0].Seq):]
		}
		if last := p.entries[len(p.entries)-1].Seq; last > upTo {
			entries = entries[:uint64(len(entries))-(last-upTo)]
		}
		if len(entries) == 0 {
			continue
		}
		if err := each(entries); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// next is the frames that are read together, from the one that holds an entry on.
func (a *Archive) next(ctx context.Context, log string, seq uint64) (m *Manifest, from, to int, err error) {
	spans, at, err := a.find(ctx, log, seq)
	if err != nil {
		return nil, 0, 0, err
	}
	if m, err = a.manifest(ctx, log, spans[at]); err != nil {
		return nil, 0, 0, err
	}
	from = m.frameOf(seq)
	var raw int64
	for to = from; to < len(m.Frames) && raw < stretch; to++ {
		raw += m.Frames[to].Raw
	}
	return m, from, to, nil
}

// whole reads all bytes of a segment. One that is longer than its manifest says is
// read a byte too far, so that this is seen.
func (a *Archive) whole(ctx context.Context, m *Manifest) ([]byte, error) {
	return a.place.Get(ctx, a.folder(m.Log)+span{m.First, m.Last}.name()+segmentSuffix, 0, m.Bytes+1)
}

// recent keeps what was used last, up to a weight.
type recent[K comparable, V any] struct {
	mu     sync.Mutex
	limit  int64
	weight int64
	order  []K // least recently used first
	held   map[K]weighed[V]
}

type weighed[V any] struct {
	value  V
	weight int64
}

func newRecent[K comparable, V any](limit int64) *recent[K, V] {
	return &recent[K, V]{limit: limit, held: map[K]weighed[V]{}}
}

func (r *recent[K, V]) get(key K) (V, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, ok := r.held[key]
	if ok {
		r.touch(key)
	}
	return w.value, ok
}

// touch puts a key at the end of the order. There are a few dozen.
func (r *recent[K, V]) touch(key K) {
	if n := slices.Index(r.order, key); n >= 0 {
		r.order = slices.Delete(r.order, n, n+1)
	}
	r.order = append(r.order, key)
}

func (r *recent[K, V]) put(key K, value V, weight int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.weight += weight - r.held[key].weight
	r.held[key] = weighed[V]{value, weight}
	r.touch(key)
	for r.weight > r.limit && len(r.order) > 1 {
		r.weight -= r.held[r.order[0]].weight
		delete(r.held, r.order[0])
		r.order = r.order[1:]
	}
}
