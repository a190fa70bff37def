package forensics

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"time"

	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

// Snapshots keep what stretches of the logs say, so that they need not be read again.
// The one of a stretch holds what changed in it and not how everything was at its
// end: together they are as large as the log is long. The state at any point is what
// the stretches before it say, and the entries since the last of them.
//
// They are made from the log, and can be deleted at any time. One that was edited, or
// that was made from another log, is found out and thrown away.
type Snapshots struct {
	dir   string
	key   []byte
	every uint64
}

// snapshotEvery is how many entries there are to a stretch. It bounds what is read
// for an answer, in each log.
const snapshotEvery = 1 << 13

// OpenSnapshots keeps snapshots in a directory, and believes those that were made
// with the key.
func OpenSnapshots(dir string, key []byte) *Snapshots {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("postbook: snapshots of the replay"))
	return &Snapshots{dir: dir, key: h.Sum(nil), every: snapshotEvery}
}

// path is where the nth stretch of a log is.
func (s *Snapshots) path(log string, n uint64) string {
	return filepath.Join(s.dir, log, fmt.Sprintf("%015d.folded", (n+1)*s.every))
}

func (s *Snapshots) has(log string, n uint64) bool {
	_, err := os.Stat(s.path(log, n)) //nolint:gosec // the directory is the operator's, and a log's name is a word
	return err == nil
}

// A snapshot's file is a head and, for each account, its part. The head says where
// the stretch is and what lies at its end in the log, lists the accounts with the
// length and hash of their parts, and carries a MAC; so that one account's part can
// be read, and believed, without the others.
const (
	snapshotMagic = "postbook replay 1\n"
	macSize       = sha256.Size
	sumSize       = 16
	maxHead       = 1 << 28
)

// snapshotHead is what a snapshot says of itself.
type snapshotHead struct {
	log         string
	first, last uint64
	end         [sha256.Size]byte // the entry at last
	at          int64             // when that was stored, nanoseconds
	parts       []snapshotPart
	body        int64 // where the parts begin
}

type snapshotPart struct {
	account string
	at      int64 // from the beginning of the parts
	size    int
	sum     [sumSize]byte
}

// hashOf is an entry as a snapshot remembers it.
func hashOf(e eventstore.Entry) (sum [sha256.Size]byte) {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%d\n%d\n%s\n", e.Log, e.Seq, e.Time.UnixNano(), e.Subject)
	h.Write(e.Raw)
	h.Sum(sum[:0])
	return sum
}

// write keeps what the nth stretch says.
func (s *Snapshots) write(n uint64, said *stretch, end eventstore.Entry) error {
	head := snapshotHead{log: said.log, first: n*s.every + 1, last: (n + 1) * s.every, end: hashOf(end), at: end.Time.UnixNano()}
	data := s.encode(head, said)
	if err := seal.WriteFile(s.path(said.log, n), data, 0o600); err != nil {
		return fmt.Errorf("keep a snapshot of %s: %w", said.log, err)
	}
	return nil
}

// encode writes the head and the parts.
func (s *Snapshots) encode(head snapshotHead, said *stretch) []byte {
	names := said.names()
	parts := make([][]byte, len(names))
	size := 0
	for i, account := range names {
		parts[i] = said.accounts[account].encode(head.first)
		size += len(parts[i])
	}
	b := writer{}
	b.text(head.log)
	b.number(head.first)
	b.number(head.last)
	b.bytes(head.end[:])
	b.difference(head.at)
	b.number(uint64(len(names)))
	for i, account := range names {
		b.text(account)
		b.number(uint64(len(parts[i])))
		sum := sha256.Sum256(parts[i])
		b.bytes(sum[:sumSize])
	}
	data := make([]byte, 0, len(snapshotMagic)+4+len(b)+macSize+size)
	data = append(data, snapshotMagic...)
	data = binary.BigEndian.AppendUint32(data, uint32(len(b)))
	data = append(data, b...)
	data = append(data, s.mac(data)...)
	for _, p := range parts {
		data = append(data, p...)
	}
	return data
}

func (s *Snapshots) mac(data []byte) []byte {
	h := hmac.New(sha256.New, s.key)
	h.Write(data)
	return h.Sum(nil)
}

// errUnbelieved says that a snapshot is not what this platform has written.
var errUnbelieved = errors.New("the snapshot is not as it was written")

// open reads a snapshot's head.
func (s *Snapshots) open(log string, n uint64) (*os.File, snapshotHead, error) {
	f, err := os.Open(s.path(log, n)) //nolint:gosec // the directory is the operator's, and a log's name is a word
	if err != nil {
		return nil, snapshotHead{}, err
	}
	head, err := s.readHead(f)
	if err == nil && (head.log != log || head.first != n*s.every+1 || head.last != (n+1)*s.every) {
		err = errUnbelieved
	}
	if err != nil {
		_ = f.Close()
		return nil, head, err
	}
	return f, head, nil
}

func (s *Snapshots) readHead(f io.ReaderAt) (snapshotHead, error) {
	var head snapshotHead
	start := make([]byte, len(snapshotMagic)+4)
	if _, err := f.ReadAt(start, 0); err != nil || string(start[:len(snapshotMagic)]) != snapshotMagic {
		return head, errUnbelieved
	}
	length := binary.BigEndian.Uint32(start[len(snapshotMagic):])
	if length > maxHead {
		return head, errUnbelieved
	}
	data := make([]byte, len(start)+int(length)+macSize)
	if _, err := f.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		return head, errUnbelieved
	}
	signed := data[:len(data)-macSize]
	if !hmac.Equal(data[len(signed):], s.mac(signed)) {
		return head, errUnbelieved
	}
	r := reader{data: signed[len(start):]}
	head.body = int64(len(data))
	head.log, head.first, head.last = r.text(), r.number(), r.number()
	copy(head.end[:], r.bytes(len(head.end)))
	head.at = r.difference()
	count := r.number()
	at := int64(0)
	for range count {
		p := snapshotPart{account: r.text(), at: at, size: int(r.number())}
		copy(p.sum[:], r.bytes(sumSize))
		at += int64(p.size)
		head.parts = append(head.parts, p)
		if r.failed {
			break
		}
	}
	if r.failed {
		return head, errUnbelieved
	}
	return head, nil
}

// around finds between which sequences the last entry lies that was stored up to a
// time, by what the snapshots say of their ends. ok is false if one is missing.
func (s *Snapshots) around(log string, t time.Time, last uint64) (after, until uint64, ok bool) {
	ok = true
	stretches := int(last / s.every)
	n := sort.Search(stretches, func(n int) bool {
		f, head, err := s.open(log, uint64(n))
		if err != nil {
			ok = false
			return true
		}
		_ = f.Close()
		return head.at > t.UnixNano()
	})
	return uint64(n) * s.every, min(uint64(n+1)*s.every, last), ok
}

// load takes what the nth stretch of a log says into total.
func (s *Snapshots) load(n uint64, total *stretch) error {
	f, head, err := s.open(total.log, n)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := head.body
	for _, p := range head.parts {
		size += int64(p.size)
	}
	if size != info.Size() {
		return errUnbelieved
	}
	loaded := newStretch(total.log, "")
	for _, p := range head.parts {
		if total.only != "" && p.account != total.only {
			continue
		}
		data := make([]byte, p.size)
		if _, err := f.ReadAt(data, head.body+p.at); err != nil {
			return errUnbelieved
		}
		if sum := sha256.Sum256(data); [sumSize]byte(sum[:]) != p.sum {
			return errUnbelieved
		}
		said, ok := decodeChanges(data, head.first)
		if !ok {
			return errUnbelieved
		}
		loaded.accounts[p.account] = said
	}
	total.then(loaded)
	return nil
}

// discard throws a snapshot away.
func (s *Snapshots) discard(log string, n uint64) error {
	err := os.Remove(s.path(log, n)) //nolint:gosec // the directory is the operator's, and a log's name is a word
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// foldSnapshots takes every whole stretch up to a sequence into total, or with nil
// only sees to it that they are there. It returns where the last of them ends.
func (r *Replay) foldSnapshots(ctx context.Context, log string, whole, from uint64, total *stretch, work *Work) (after uint64, err error) {
	s := r.snapshots
	stretches := whole / s.every
	if err := r.discardForeign(ctx, log, stretches, work); err != nil {
		return 0, err
	}
	for n := uint64(0); n < stretches; {
		if s.has(log, n) {
			if total == nil {
				n++
				continue
			}
			err := s.load(n, total)
			if err == nil {
				n++
				work.Snapshots++
				continue
			}
			if !errors.Is(err, errUnbelieved) {
				return 0, err
			}
			work.Discarded++
			if err := s.discard(log, n); err != nil {
				return 0, err
			}
		}
		end := n + 1
		for end < stretches && !s.has(log, end) {
			end++
		}
		if err := r.build(ctx, log, n, end, from, total, work); err != nil {
			return 0, err
		}
		n = end
	}
	return stretches * s.every, nil
}

// discardForeign throws away the newest snapshots as long as they do not fit what is
// in the log: it may have been put back to an earlier state, or a power cut may have
// taken its end.
func (r *Replay) discardForeign(ctx context.Context, log string, stretches uint64, work *Work) error {
	s := r.snapshots
	for n := stretches; n > 0; n-- {
		if !s.has(log, n-1) {
			continue
		}
		f, head, err := s.open(log, n-1)
		if err == nil {
			_ = f.Close()
			var e eventstore.Entry
			e, err = r.store.Read(ctx, log, head.last)
			if errors.Is(err, eventstore.ErrNoEntry) || err == nil && hashOf(e) == head.end {
				return nil // it fits, or the log no longer holds what it was made from
			}
			if err == nil {
				err = errUnbelieved
			}
		}
		if !errors.Is(err, errUnbelieved) {
			return err
		}
		work.Discarded++
		if err := s.discard(log, n-1); err != nil {
			return err
		}
	}
	return nil
}

// build makes the snapshots of some stretches that follow each other, and takes what
// they say into total unless it is nil. from is where what can be read begins.
func (r *Replay) build(ctx context.Context, log string, first, end, from uint64, total *stretch, work *Work) error {
	s := r.snapshots
	n := first
	said := newStretch(log, "")
	var newest eventstore.Entry
	troubles := len(work.Unreadable)
	finish := func() error {
		complete := from <= n*s.every && newest.Seq == (n+1)*s.every && len(work.Unreadable) == troubles
		if complete {
			if err := s.write(n, said, newest); err != nil {
				return err
			}
			work.Written++
		}
		if total != nil {
			total.then(said)
		}
		n, said, troubles = n+1, newStretch(log, ""), len(work.Unreadable)
		return nil
	}
	err := r.read(ctx, log, max(first*s.every, from), end*s.every, "", func(e eventstore.Entry) error {
		for e.Seq > (n+1)*s.every {
			if err := finish(); err != nil {
				return err
			}
		}
		work.Entries++
		said.take(e, len(e.Events), work)
		newest = e
		return nil
	})
	if err != nil {
		return err
	}
	for n < end {
		if err := finish(); err != nil {
			return err
		}
	}
	return nil
}

// Extend makes the snapshots that are missing, up to the end of the logs.
func (r *Replay) Extend(ctx context.Context) (Work, error) {
	var work Work
	for _, log := range r.foldedLogs() {
		stats, err := r.store.Stats(ctx, log)
		if err != nil || stats.Entries == 0 {
			if err != nil {
				return work, err
			}
			continue
		}
		if _, err := r.foldSnapshots(ctx, log, stats.Last, stats.First-1, nil, &work); err != nil {
			return work, fmt.Errorf("forensics: make snapshots of %s: %w", log, err)
		}
	}
	return work, nil
}

// KeepSnapshots makes snapshots as the logs grow, until ctx ends.
func (r *Replay) KeepSnapshots(ctx context.Context, pause time.Duration, log *slog.Logger) error {
	for {
		work, err := r.Extend(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			log.Warn("snapshots for the replay are not made", "error", err)
		case work.Discarded > 0:
			log.Warn("snapshots for the replay were not as they were written, and are made again", "count", work.Discarded)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
