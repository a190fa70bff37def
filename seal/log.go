package seal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Log seals one log: it takes its entries in order, and signs heads of their
// tree. Its folder holds the tiles, and the newest checkpoint.
//
// What is signed is never taken back or repaired: if the folder does not hold
// what its checkpoint says, or an entry comes that is not the next, there is an
// error, and somebody has to look.
type Log struct {
	name string
	dir  string
	keys *Keys
	tree *Tree

	mu     sync.Mutex
	newest Checkpoint
}

// The files of a log's folder, beside the tiles.
const (
	checkpointFile = "checkpoint"
	witnessedFile  = "checkpoint.witnessed"
)

// ErrBroken says that what was sealed and what is there differ.
var ErrBroken = errors.New("the seal is broken")

// OpenLog opens the seal of a log, as it was last signed.
func OpenLog(dir, name string, keys *Keys) (*Log, error) {
	l := &Log{name: name, dir: dir, keys: keys}
	trusted, err := ParseVerifiers(keys.Public(), nil)
	if err != nil {
		return nil, err
	}
	l.newest, err = ReadCheckpoint(dir, trusted, Origin(keys.Instance, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if held, err := ReadTree(dir); err == nil && held.Size() > 0 {
			_ = held.Close() // it was read only
			// The first head is signed before anything is written, so it was removed.
			return nil, fmt.Errorf("seal: %s: there are tiles, but no checkpoint: %w", name, ErrBroken)
		}
	case err != nil:
		return nil, fmt.Errorf("seal: %s: %w: %w", name, ErrBroken, err)
	}
	if l.tree, err = OpenTree(dir, l.newest.Size); err != nil {
		return nil, fmt.Errorf("seal: %s: %w: %w", name, ErrBroken, err)
	}
	root, err := l.tree.Root(l.newest.Size)
	if err == nil && l.newest.Note != nil && root != l.newest.Root {
		err = errors.New("the tiles do not lead to the head that was signed")
	}
	if err == nil && l.newest.Note == nil {
		err = l.Sign(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("seal: %s: %w: %w", name, ErrBroken, err), l.tree.Close())
	}
	return l, nil
}

// ReadCheckpoint reads the newest checkpoint of a log's folder.
func ReadCheckpoint(dir string, trusted Verifiers, origin string) (Checkpoint, error) {
	signed, err := os.ReadFile(filepath.Join(dir, checkpointFile))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("seal: read a checkpoint: %w", err)
	}
	return trusted.Open(origin, signed)
}

// ReadNewest reads a checkpoint of a log's folder that covers an entry: the
// newest that witnesses have cosigned, if it does, or else the newest.
func ReadNewest(dir string, trusted Verifiers, origin string, seq uint64) (Checkpoint, error) {
	signed, err := ReadWitnessed(dir)
	if err != nil {
		return Checkpoint{}, err
	}
	if signed != nil {
		if c, err := trusted.Open(origin, signed); err == nil && uint64(c.Size) >= seq {
			return c, nil
		}
	}
	return ReadCheckpoint(dir, trusted, origin)
}

// Logs lists the logs that are sealed in a directory, each in its folder.
func Logs(dir string) ([]string, error) {
	heads, err := fs.Glob(os.DirFS(dir), "*/"+checkpointFile)
	if err != nil {
		return nil, fmt.Errorf("seal: look for sealed logs: %w", err)
	}
	logs := make([]string, len(heads))
	for i, head := range heads {
		logs[i] = filepath.Dir(head)
	}
	return logs, nil
}

// Next is the sequence of the entry that Add wants.
func (l *Log) Next() uint64 { return uint64(l.tree.Size()) + 1 }

// Add puts the next entry into the tree. Sign makes it count. An entry that is
// missing leaves a mark in its place, and an error that says so.
func (l *Log) Add(e Entry) error {
	next := l.Next()
	if e.Seq < next {
		return fmt.Errorf("seal: %s %d comes again, or out of its order: %w", l.name, e.Seq, ErrBroken)
	}
	for seq := next; seq < e.Seq; seq++ {
		if err := l.tree.Append(gap(l.name, seq)); err != nil {
			return err
		}
	}
	if err := l.tree.Append(e.Hash()); err != nil {
		return err
	}
	if e.Seq > next {
		return fmt.Errorf("seal: %s: %d to %d were gone before they were sealed: %w", l.name, next, e.Seq-1, ErrBroken)
	}
	return nil
}

// Sign signs the head of what was added, and keeps it: first the tiles come to
// the disk, and then the checkpoint. The entries have to be there already.
func (l *Log) Sign(now time.Time) error {
	c, err := l.Draft(now)
	if err != nil {
		return err
	}
	return l.keep(c)
}

// Draft signs the head of what was added, and keeps it not yet: Adopt does, once
// nobody else has signed another.
func (l *Log) Draft(now time.Time) (Checkpoint, error) {
	if err := l.tree.Flush(); err != nil {
		return Checkpoint{}, err
	}
	size := l.tree.Size()
	root, err := l.tree.Root(size)
	if err != nil {
		return Checkpoint{}, err
	}
	if now.IsZero() {
		now = time.Now()
	}
	origin := Origin(l.keys.Instance, l.name)
	signed, err := sign(origin, size, root, l.keys.Signing(now))
	if err != nil {
		return Checkpoint{}, err
	}
	return Checkpoint{Origin: origin, Size: size, Root: root, At: now, Note: signed}, nil
}

// Open reads a head of this log that somebody else has signed with its keys.
func (l *Log) Open(signed []byte) (Checkpoint, error) {
	trusted, err := ParseVerifiers(l.keys.Public(), nil)
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := trusted.Open(Origin(l.keys.Instance, l.name), signed)
	if err != nil {
		return c, fmt.Errorf("seal: %s: the head that another process has signed: %w", l.name, err)
	}
	return c, nil
}

// Adopt keeps a head that this or another process has signed, if it is one of
// what was added; if it is not, there are two histories of this log. A head of
// what was not added yet is left alone: it is not known whether it fits.
func (l *Log) Adopt(c Checkpoint) (fits bool, err error) {
	if c.Size > l.tree.Size() {
		return false, nil
	}
	if fits, err = l.Fits(c); err != nil {
		return false, err
	}
	if !fits {
		return false, fmt.Errorf("seal: %s: the first %d entries here are not those of the head that another process has signed: %w", l.name, c.Size, ErrBroken)
	}
	if c.Size < l.Newest().Size {
		return true, nil // it is an older one of the same history
	}
	if err := l.tree.Flush(); err != nil {
		return false, err
	}
	return true, l.keep(c)
}

// Fits reports whether a head that was kept elsewhere is one of what was added.
func (l *Log) Fits(c Checkpoint) (bool, error) {
	if c.Size > l.tree.Size() {
		return false, nil
	}
	root, err := l.tree.Root(c.Size)
	return err == nil && root == c.Root, err
}

func (l *Log) keep(c Checkpoint) error {
	if err := WriteFile(filepath.Join(l.dir, checkpointFile), c.Note, 0o600); err != nil {
		return fmt.Errorf("seal: keep a checkpoint: %w", err)
	}
	l.mu.Lock()
	l.newest = c
	l.mu.Unlock()
	return nil
}

// Newest is the checkpoint that was signed last.
func (l *Log) Newest() Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.newest
}

// KeepWitnessed keeps a head that witnesses have cosigned.
func (l *Log) KeepWitnessed(signed []byte) error {
	if err := WriteFile(filepath.Join(l.dir, witnessedFile), signed, 0o600); err != nil {
		return fmt.Errorf("seal: keep a cosigned checkpoint: %w", err)
	}
	return nil
}

// ReadWitnessed reads the newest head that witnesses have cosigned, or nil.
func ReadWitnessed(dir string) ([]byte, error) {
	signed, err := os.ReadFile(filepath.Join(dir, witnessedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return signed, err
}

// Pending is how many entries were added since.
func (l *Log) Pending() int64 { return l.tree.Size() - l.Newest().Size }

// Dir is the folder of the log's seal.
func (l *Log) Dir() string { return l.dir }

// proveTree proves that the tree with size leaves begins with the one that had old.
func proveTree(dir string, size, old int64) (tlog.TreeProof, error) {
	if old == 0 || old == size {
		return nil, nil // there is nothing to prove
	}
	tree, err := ReadTree(dir)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	proof, err := tlog.ProveTree(size, old, tree)
	if err != nil {
		return nil, fmt.Errorf("seal: prove that %d leaves follow from %d: %w", size, old, err)
	}
	return proof, nil
}

// Close closes the files. What was added and not signed is added again later.
func (l *Log) Close() error { return l.tree.Close() }
