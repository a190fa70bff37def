package eventstore

// Following a log past its server, on whose disk it lies. To hand an entry to one
// more reader costs a server a fifth of what it costs to take it, and it keeps the
// blocks that are read in memory; whoever reads the files costs it nothing.

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// followDisk is followStream without the server. Entries are valid until apply returns.
func (s *Store) followDisk(ctx context.Context, f Following, apply func(context.Context, []Entry) error) (uint64, error) {
	if _, err := s.stream(ctx, f.Log); err != nil {
		return f.After, err
	}
	t := &diskTail{log: f.Log, dir: s.local.blocks(f.Log), last: f.After}
	defer t.leave()
	look := time.NewTicker(max(f.Linger, time.Millisecond))
	defer look.Stop()
	last := f.After
	for {
		entries, err := t.read()
		if err != nil {
			return last, err
		}
		if len(entries) == 0 {
			select {
			case <-look.C:
				continue
			case <-ctx.Done():
				return last, context.Cause(ctx)
			}
		}
		if err := s.overtaken(ctx, f, last, entries); err != nil {
			return last, err
		}
		if ctx.Err() != nil {
			return last, context.Cause(ctx)
		}
		if err := apply(ctx, entries); err != nil {
			return last, err
		}
		last = entries[len(entries)-1].Seq
		if f.StopAt > 0 && last >= f.StopAt {
			return last, nil
		}
	}
}

// diskTail reads a log's block files while a server writes them. That only appends to
// the newest, and where it takes room back it puts another file in a block's place.
type diskTail struct {
	log, dir string
	last     uint64 // the sequence of the entry that was read last

	file    *os.File // the block that is read; nil before the first
	number  int
	sum     hash.Hash64
	at      int64     // where its next record begins
	stuck   time.Time // since when that is not whole
	data    []byte
	entries []Entry
}

// tornFor is how long a record may be on its way to a file: a write is seen in pieces.
const tornFor = 5 * time.Second

// read returns the entries that come next, or none if there are none yet. They are
// valid until it is called again. The error wraps ErrDamaged if a record is not as it
// was written.
func (t *diskTail) read() ([]Entry, error) {
	for {
		if t.file == nil {
			if found, err := t.find(); err != nil || !found {
				return nil, err
			}
		}
		entries, err := t.more()
		if err != nil || len(entries) > 0 {
			return entries, err
		}
		next, err := os.Open(t.path(t.number + 1))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if lies(t.file, t.path(t.number)) {
				return nil, nil
			}
			t.leave()
		case err != nil:
			return nil, fmt.Errorf("eventstore: follow the blocks of %s: %w", t.log, err)
		default:
			// The last of this block was written before the next one was made.
			entries, err = t.more()
			if err == nil && len(entries) == 0 {
				if !t.stuck.IsZero() {
					err = t.damaged()
				} else if err = t.enter(next, t.number+1); err == nil {
					continue
				}
			}
			return entries, errors.Join(err, next.Close())
		}
	}
}

// more reads what follows in the block.
func (t *diskTail) more() ([]Entry, error) {
	t.entries = t.entries[:0]
	if t.data == nil {
		t.data = make([]byte, maxMessage)
	}
	for {
		n, err := t.file.ReadAt(t.data, t.at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("eventstore: follow block %d of %s: %w", t.number, t.log, err)
		}
		left := t.data[:n]
		for {
			record, ok := cutRecord(&left)
			if !ok {
				break
			}
			e, err := record.entry(t.log, t.sum)
			if errors.Is(err, ErrDamaged) {
				left = t.data[n-len(left)-len(record) : n] // to be read again
				break
			}
			t.at += int64(len(record))
			if err == nil && e.Seq > t.last { // others keep a place, or are marked as removed
				t.entries = append(t.entries, e)
				t.last = e.Seq
			}
		}
		switch {
		case len(t.entries) > 0:
			t.stuck = time.Time{}
			return t.entries, nil
		case len(left) == 0 && n == 0:
			t.stuck = time.Time{}
			return nil, nil
		case len(left) < n:
			// Only what is known already.
		case n == len(t.data) && n < maxRecord:
			t.data = make([]byte, 2*n) // a record that is longer
		case t.stuck.IsZero():
			t.stuck = time.Now()
			return nil, nil
		case time.Since(t.stuck) > tornFor:
			return nil, t.damaged()
		default:
			return nil, nil
		}
	}
}

func (t *diskTail) damaged() error {
	return fmt.Errorf("%w: %s, what follows %d in block %d", ErrDamaged, t.log, t.last, t.number)
}

// find opens the block in which the next entry lies, or will.
func (t *diskTail) find() (bool, error) {
	numbers, err := blockNumbers(t.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("eventstore: look for the blocks of %s: %w", t.log, err)
	}
	for i, number := range slices.Backward(numbers) {
		file, err := os.Open(t.path(number))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // it was removed just now
		}
		if err != nil {
			return false, fmt.Errorf("eventstore: follow the blocks of %s: %w", t.log, err)
		}
		var head record = make([]byte, recordHead)
		if _, err := file.ReadAt(head, 0); i > 0 && (err != nil || head.seq() > t.last+1) {
			// It begins later, or with a mark and nobody knows. One too many is read rather than one too few.
			_ = file.Close()
			continue
		}
		return true, t.enter(file, number)
	}
	return false, nil
}

func (t *diskTail) enter(file *os.File, number int) (err error) {
	t.leave()
	t.file, t.number, t.at, t.stuck = file, number, 0, time.Time{}
	t.sum, err = blockSum(t.log, number)
	return err
}

func (t *diskTail) leave() {
	if t.file != nil {
		_ = t.file.Close() // it was read only
		t.file = nil
	}
}

func (t *diskTail) path(number int) string {
	return blockPath(t.dir, number)
}
