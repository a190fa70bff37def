package archive

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

// Config of an archiver.
type Config struct {
	Store   *eventstore.Store
	Archive *Archive
	SealDir string         // holds a folder for each log that is sealed
	Trusted seal.Verifiers // that heads of the seal are signed by
	Lock    string         // a file: one process works at a time
	Record  string         // a file that says how far each log was archived, so that an archive that is not all there is known

	// What leaves the streams, once it is archived. Nothing does if both are 0.
	HotAge   time.Duration
	HotBytes int64 // of each log's stream

	// A segment is written when it is full, or its oldest entry is old. 0 takes the
	// defaults.
	SegmentBytes   int64
	SegmentEntries int64
	SegmentAge     time.Duration

	// Spare is how many archived entries stay in a stream; a fifth of them does if
	// they have SpareBytes. 0 takes the defaults.
	Spare      uint64
	SpareBytes int64

	Mine   func(log string) bool // whether a log is this process's to archive, of several; nil is always
	Claims *eventstore.Bucket    // which segments are being written, where several hosts may archive; nil if this one is alone
	Every  time.Duration         // looks this often; 0 is ten seconds
	Now    func() time.Time
	Log    *slog.Logger
}

// The defaults. A segment is held in memory while it is written, compressed.
const (
	segmentBytes   = 32 << 20
	segmentEntries = 1 << 18
	segmentAge     = 6 * time.Hour
	spareEntries   = 10_000
	spareBytes     = 256 << 20
	lookEvery      = 10 * time.Second
)

// Archiver writes the segments of an instance.
type Archiver struct {
	Config
	verified map[string]uint64 // up to where segments were read back once more, to be trimmed
	warned   map[string]time.Time
	done     atomic.Int64 // when the last pass ended in which nothing failed, in nanoseconds since 1970
}

// Done is when everything that was due was archived last, or when the archiver was
// made.
func (a *Archiver) Done() time.Time { return time.Unix(0, a.done.Load()) }

// NewArchiver makes an archiver.
func NewArchiver(c Config) *Archiver {
	if c.SegmentBytes == 0 {
		c.SegmentBytes = segmentBytes
		if c.HotBytes > 0 {
			c.SegmentBytes = min(c.SegmentBytes, max(c.HotBytes/4, frameSize))
		}
	}
	if c.SegmentEntries == 0 {
		c.SegmentEntries = segmentEntries
	}
	if c.SegmentAge == 0 {
		c.SegmentAge = segmentAge
		if c.HotAge > 0 {
			c.SegmentAge = min(c.SegmentAge, c.HotAge/4)
		}
	}
	if c.Spare == 0 {
		c.Spare = spareEntries
	}
	if c.SpareBytes == 0 {
		c.SpareBytes = spareBytes
	}
	if c.Every == 0 {
		c.Every = min(lookEvery, max(c.SegmentAge/4, 100*time.Millisecond))
	}
	a := &Archiver{Config: c, verified: map[string]uint64{}, warned: map[string]time.Time{}}
	a.done.Store(c.Now().UnixNano())
	return a
}

// Logs names all logs of a store that are archived.
func Logs(store *eventstore.Store) []string {
	return append(store.Logs(), eventstore.Content, eventstore.Dead)
}

// Run archives until ctx ends. What fails is tried again, and said.
func (a *Archiver) Run(ctx context.Context) error {
	tick := time.NewTicker(a.Every)
	defer tick.Stop()
	for {
		if err := a.Pass(ctx, false); err != nil && ctx.Err() == nil {
			a.Log.Warn("the archive is not up to date; it is tried again", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Pass writes the segments that are due, and trims what may go. With all, also
// segments that are not full go out. A log that fails does not keep the others.
func (a *Archiver) Pass(ctx context.Context, all bool) error {
	unlock, err := lock(ctx, a.Lock)
	if err != nil {
		return err
	}
	defer unlock()
	reached, err := a.reached(ctx)
	if err != nil {
		return err
	}
	var failed error
	for _, log := range Logs(a.Store) {
		if a.Mine != nil && !a.Mine(log) {
			continue
		}
		err := a.archive(ctx, log, all)
		if err == nil {
			err = a.record(ctx, log, reached)
		}
		if err == nil {
			err = a.trim(ctx, log)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("archive %s: %w", log, err))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if failed == nil {
		a.done.Store(a.Now().UnixNano())
	}
	return failed
}

// reached reads how far each log was archived. It is an error if the place does not
// hold that: what is put into it would not be found later.
func (a *Archiver) reached(ctx context.Context) (map[string]uint64, error) {
	reached, err := ReadRecord(a.Record)
	if err != nil {
		return nil, err
	}
	if err := a.Archive.Holds(ctx, reached); err != nil {
		return nil, fmt.Errorf("nothing is archived (should what is missing be gone for good, remove %s): %w", a.Record, err)
	}
	return reached, nil
}

// ReadRecord reads the file in which an archiver keeps how far each log was
// archived: nothing if there is none.
func ReadRecord(path string) (map[string]uint64, error) {
	reached := map[string]uint64{}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return reached, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &reached)
	}
	if err != nil {
		return nil, fmt.Errorf("archive: read how far the logs were archived: %w", err)
	}
	return reached, nil
}

// Holds returns an error that wraps ErrMissing if the archive ends before what was
// put into it: segments were cut off, or a file system that is not mounted, or
// another place, looks like an archive in which there was never more.
func (a *Archive) Holds(ctx context.Context, reached map[string]uint64) error {
	var missing []error
	for _, log := range slices.Sorted(maps.Keys(reached)) {
		spans, err := a.list(ctx, log, true)
		if err != nil {
			return err
		}
		if len(spans) == 0 || spans[len(spans)-1].last < reached[log] {
			missing = append(missing, fmt.Errorf("archive: %s was archived up to %d, and %s does not hold that: %w (is it mounted, and the right one?)", log, reached[log], a.place, ErrMissing))
		}
	}
	return errors.Join(missing...)
}

// record keeps how far a log is archived, before anything of it leaves the stream.
func (a *Archiver) record(ctx context.Context, log string, reached map[string]uint64) error {
	_, last, err := a.Archive.Extent(ctx, log)
	if err != nil || last <= reached[log] {
		return err
	}
	reached[log] = last
	text, err := json.Marshal(reached)
	if err == nil {
		err = seal.WriteFile(a.Record, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("record how far it is archived: %w", err)
	}
	return nil
}

// source is what a log is held against: its signed head and tree, or nothing if
// it is not sealed.
type source struct {
	log  string
	head seal.Checkpoint
	tree *seal.Tree
	end  uint64 // the last entry that may be archived
}

func (a *Archiver) source(ctx context.Context, log string) (*source, func(), error) {
	if !notary.Seals(log) {
		end, err := a.onDisk(ctx, log)
		return &source{log: log, end: end}, func() {}, err
	}
	dir := filepath.Join(a.SealDir, log)
	head, err := seal.ReadCheckpoint(dir, a.Trusted, seal.Origin(a.Archive.instance, log))
	if errors.Is(err, os.ErrNotExist) {
		return &source{log: log}, func() {}, nil // nothing is sealed yet
	}
	if err != nil {
		return nil, nil, err
	}
	tree, err := seal.ReadTree(dir)
	if err != nil {
		return nil, nil, err
	}
	return &source{log, head, tree, uint64(head.Size)}, func() { _ = tree.Close() }, nil // it was only read
}

// settled is after how long an entry of a log elsewhere is on its disk.
const settled = 5 * time.Second

// onDisk is the last entry of a log that a power failure does not take back.
func (a *Archiver) onDisk(ctx context.Context, log string) (uint64, error) {
	if !a.Store.Alone() {
		return a.Store.Before(ctx, log, a.Now().Add(-settled))
	}
	head, err := a.Store.Head(ctx, log)
	if err != nil {
		return 0, err
	}
	return head, a.Store.Sync(ctx, log)
}

// leaves are the leaves of a span as the seal has them.
func (s *source) leaves(first, last uint64) ([]seal.Hash, error) {
	return s.tree.Leaves(int64(first-1), int64(last-first+1))
}

func (a *Archiver) archive(ctx context.Context, log string, all bool) error {
	src, done, err := a.source(ctx, log)
	if err != nil {
		return err
	}
	defer done()
	claimed, err := a.claimed(ctx, log)
	if err != nil {
		return err
	}
	spans, err := a.Archive.list(ctx, log, true)
	if err != nil {
		return err
	}
	next, err := a.begin(ctx, log, spans)
	if err != nil {
		return err
	}
	for next <= src.end {
		due, err := a.due(ctx, log, next, src.end, all)
		if err != nil || !due {
			return err
		}
		last, err := a.write(ctx, src, spans, next, &claimed)
		if errors.Is(err, errClaimed) && !all {
			return nil // the next pass looks whether that was done
		}
		if err != nil {
			return err
		}
		s := span{next, last}
		a.Archive.added(log, s)
		spans, next = append(spans, s), last+1
	}
	return nil
}

// ErrMissing says that the archive lacks entries that have left the stream.
var ErrMissing = errors.New("the archive is not all there")

// begin is the entry that the next segment begins with.
func (a *Archiver) begin(ctx context.Context, log string, spans []span) (uint64, error) {
	stats, err := a.Store.Stats(ctx, log)
	if err != nil {
		return 0, err
	}
	next := uint64(1)
	if len(spans) > 0 {
		next = spans[len(spans)-1].last + 1
	} else if eventstore.Aged(log) {
		next = max(stats.Hot, 1) // what was forgotten before there was an archive is gone
	}
	if next < stats.Hot {
		return 0, fmt.Errorf("%d to %d have left the stream, and %s does not hold them: %w", next, stats.Hot-1, a.Archive.place, ErrMissing)
	}
	return next, nil
}

// due reports whether the next segment is to be written.
func (a *Archiver) due(ctx context.Context, log string, next, end uint64, all bool) (bool, error) {
	stats, err := a.Store.Stats(ctx, log)
	if err != nil || all {
		return all, err
	}
	waiting := end - next + 1
	held := stats.Last - stats.Hot + 1
	if waiting >= uint64(a.SegmentEntries) || held > 0 && waiting*(stats.Bytes/held) >= uint64(a.SegmentBytes) {
		return true, nil
	}
	oldest, err := a.Store.Read(ctx, log, next)
	if err != nil {
		return false, err
	}
	age := a.Now().Sub(oldest.Time)
	if late := 2*a.SegmentAge + time.Minute; age > late && a.Now().Sub(a.warned[log]) > late {
		a.warned[log] = a.Now()
		a.Log.Warn("the archive falls behind", "log", log, "entries", waiting, "oldest", oldest.Time)
	}
	return age >= a.SegmentAge, nil
}

var errFull = errors.New("the segment is full")

// gather reads the entries of one segment, from next on: up to an end that was claimed
// for it, or until it is full.
func (a *Archiver) gather(ctx context.Context, src *source, next uint64, claimed claim) (*writer, []seal.Hash, error) {
	w := &writer{manifest: Manifest{Log: src.log, Origin: seal.Origin(a.Archive.instance, src.log)}}
	var leaves []seal.Hash
	end, fixed := src.end, claimed.First == next
	if fixed {
		end = claimed.Last
	}
	if a.others(claimed, next) || end > src.end { // which may not be known here to be sealed
		return nil, nil, errClaimed
	}
	f := eventstore.Following{Log: src.log, After: next - 1, StopAt: end, Undecoded: true, MaxBatch: 500}
	if src.log == eventstore.Content {
		f.MaxBatch = 16 // which may be large
	}
	err := a.Store.Follow(ctx, f, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			if want := next + uint64(len(leaves)); e.Seq != want {
				return fmt.Errorf("%d comes where %d is expected", e.Seq, want)
			}
			if e.Seq > end {
				return errFull
			}
			w.add(e)
			leaves = append(leaves, leafOf(e))
			if !fixed && (w.raw() >= a.SegmentBytes || w.entries() >= a.SegmentEntries) {
				return errFull
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errFull) {
		return nil, nil, err
	}
	w.finish()
	return w, leaves, nil
}

// write writes one segment from an entry on, reads it back, and lists it. It
// returns its last entry.
func (a *Archiver) write(ctx context.Context, src *source, spans []span, next uint64, claimed *claim) (uint64, error) {
	w, leaves, err := a.gather(ctx, src, next, *claimed)
	if err != nil {
		return 0, err
	}
	m := &w.manifest
	if len(spans) > 0 {
		before, err := a.Archive.manifest(ctx, src.log, spans[len(spans)-1])
		if err != nil {
			return 0, fmt.Errorf("read the manifest of the segment before: %w", err)
		}
		m.Previous = before.SHA256
	}
	if src.tree != nil {
		proof, err := src.tree.ProveRange(int64(m.First-1), int64(m.Last), src.head.Size)
		if err != nil {
			return 0, err
		}
		m.Checkpoint, m.Proof = string(src.head.Note), &proof
		sealed, err := src.leaves(m.First, m.Last)
		if err != nil {
			return 0, err
		}
		if at := firstDifference(leaves, sealed); at >= 0 {
			return 0, fmt.Errorf("%w: %d is not the entry that was sealed, and nothing is archived from it on", seal.ErrBroken, m.First+uint64(at))
		}
	}
	if err := a.claim(ctx, src.log, claimed, span{m.First, m.Last}); err != nil {
		return 0, err
	}
	if err := a.keep(ctx, m, w.data, leaves); err != nil {
		return 0, err
	}
	a.Log.Info("a segment was archived", "log", m.Log, "first", m.First, "last", m.Last, "bytes", m.Bytes)
	return m.Last, nil
}

// keep puts a segment in its place, reads it back, and puts its manifest beside
// it: from then on it counts.
func (a *Archiver) keep(ctx context.Context, m *Manifest, data []byte, leaves []seal.Hash) error {
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write a manifest: %w", err)
	}
	if _, err := parseManifest(text); err != nil {
		return err // it would not be read
	}
	name := a.Archive.folder(m.Log) + span{m.First, m.Last}.name()
	if err := a.Archive.place.Put(ctx, name+segmentSuffix, data); err != nil {
		return err
	}
	if err := a.Archive.readBack(ctx, m, leaves); err != nil {
		return fmt.Errorf("read the segment back: %w", err)
	}
	if err := a.Archive.place.Put(ctx, name+manifestSuffix, text); err != nil {
		return err
	}
	held, err := a.Archive.place.Get(ctx, name+manifestSuffix, 0, maxManifest)
	if err != nil {
		return err
	}
	if !bytes.Equal(held, text) {
		return fmt.Errorf("%w: the manifest that was read back is not the one that was written", errDamaged)
	}
	return nil
}

// readBack reads a segment from its place, unpacks it, and holds each of its
// entries against its leaf.
func (a *Archive) readBack(ctx context.Context, m *Manifest, leaves []seal.Hash) error {
	held, err := a.whole(ctx, m)
	if err != nil {
		return err
	}
	if int64(len(held)) != m.Bytes || sum(held) != m.SHA256 {
		return fmt.Errorf("%w: its SHA-256 is not the one in its manifest", errDamaged)
	}
	for n, f := range m.Frames {
		entries, err := m.readFrame(n, held[f.Off:f.Off+f.Len])
		if err != nil {
			return err
		}
		for _, e := range entries {
			if leaves[e.Seq-m.First] != leafOf(e) {
				return fmt.Errorf("%w: %s %d is not the entry that was put in", errDamaged, m.Log, e.Seq)
			}
		}
	}
	return nil
}

func firstDifference(a, b []seal.Hash) int {
	for i := range a {
		if i >= len(b) || a[i] != b[i] {
			return i
		}
	}
	return -1
}

// lock waits until no other process works on the archive.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	for {
		f, err := seal.LockFile(path)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("archive: %w", err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Status is how far a log is archived.
type Status struct {
	Log      string    `json:"log"`
	Segments int       `json:"segments"`
	Bytes    int64     `json:"bytes"` // of the segments, compressed
	First    uint64    `json:"first"` // archived
	Last     uint64    `json:"last"`
	Hot      uint64    `json:"hot"`    // the first entry that is in the stream
	Head     uint64    `json:"head"`   // the last entry of the log
	Behind   uint64    `json:"behind"` // entries that are not archived yet
	Since    time.Time `json:"since"`  // when the oldest of them was recorded; zero if there are none
}

// Status says how far the logs are archived.
func (a *Archive) Status(ctx context.Context, store *eventstore.Store, log string) (Status, error) {
	stats, err := store.Stats(ctx, log)
	if err != nil {
		return Status{}, err
	}
	objects, err := a.place.List(ctx, a.folder(log))
	if err != nil {
		return Status{}, err
	}
	spans, err := a.list(ctx, log, true)
	if err != nil {
		return Status{}, err
	}
	st := Status{Log: log, Segments: len(spans), Hot: stats.Hot, Head: stats.Last}
	for _, o := range objects {
		st.Bytes += o.Size
	}
	next := max(stats.First, 1)
	if len(spans) > 0 {
		st.First, st.Last = spans[0].first, spans[len(spans)-1].last
		next = st.Last + 1
	}
	if next > stats.Last {
		return st, nil
	}
	st.Behind = stats.Last - next + 1
	oldest, err := store.Read(ctx, log, next)
	st.Since = oldest.Time
	return st, err
}
