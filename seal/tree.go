package seal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"
)

// Tree keeps the hashes of a log's leaves in a folder: one file for each level
// of tiles, in which the tiles of C2SP's tlog-tiles follow each other. A tile of
// 256 hashes is a hash of the level above; what lies between is computed from
// them. One tile of each level is in memory.
//
// A Tree is not for concurrent use, but for Hashes.
type Tree struct {
	dir    string
	levels []*level
	size   int64
}

// level is the hashes of the complete subtrees of 256^n leaves.
type level struct {
	file *os.File
	size int64       // hashes, of which the last len(tail) are not written yet
	open []tlog.Hash // the incomplete tile at the end
	tail []byte      // what is to be written
}

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

// OpenTree opens the tree in a folder, as it was when it had size leaves: what
// was written after that and not signed is taken back. Without size leaves it
// reports an error that says so.
func OpenTree(dir string, size int64) (*Tree, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("seal: open a tree: %w", err)
	}
	t := &Tree{dir: dir, size: size}
	for n := 0; n == 0 || size>>(tileHeight*n) > 0; n++ {
		l, err := t.openLevel(n, size>>(tileHeight*n), os.O_RDWR|os.O_CREATE)
		if err != nil {
			return nil, errors.Join(err, t.Close())
		}
		t.levels = append(t.levels, l)
		if err := l.file.Truncate(l.size * tlog.HashSize); err != nil {
			return nil, errors.Join(fmt.Errorf("seal: take back what was not signed: %w", err), t.Close())
		}
	}
	return t, nil
}

// ReadTree opens a tree to read it, as far as it was written.
func ReadTree(dir string) (*Tree, error) {
	info, err := os.Stat(filepath.Join(dir, levelFile(0)))
	if err != nil {
		return nil, fmt.Errorf("seal: read a tree: %w", err)
	}
	t := &Tree{dir: dir, size: info.Size() / tlog.HashSize}
	for n := 0; n == 0 || t.size>>(tileHeight*n) > 0; n++ {
		file, err := os.Open(filepath.Join(dir, levelFile(n)))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("seal: read a tree: %w", err), t.Close())
		}
		t.levels = append(t.levels, &level{file: file, size: t.size >> (tileHeight * n)})
	}
	return t, nil
}

func levelFile(n int) string { return "tiles." + strconv.Itoa(n) }

func (t *Tree) openLevel(n int, size int64, flag int) (*level, error) {
	file, err := os.OpenFile(filepath.Join(t.dir, levelFile(n)), flag, 0o600)
	if err != nil {
		return nil, fmt.Errorf("seal: open a level of the tree: %w", err)
	}
	l := &level{file: file, size: size}
	l.open, err = readHashes(file, size/tileWidth*tileWidth, size%tileWidth)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("seal: level %d of the tree does not hold its %d hashes: %w", n, size, err), file.Close())
	}
	return l, nil
}

// readHashes reads n hashes from the one at first on.
func readHashes(file io.ReaderAt, first, n int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, n)
	if n == 0 {
		return hashes, nil
	}
	buf := make([]byte, n*tlog.HashSize)
	if _, err := file.ReadAt(buf, first*tlog.HashSize); err != nil {
		return nil, err
	}
	for i := range hashes {
		copy(hashes[i][:], buf[i*tlog.HashSize:])
	}
	return hashes, nil
}

// Size is how many leaves there are.
func (t *Tree) Size() int64 { return t.size }

// Append adds the hash of the next leaf. Flush writes it.
func (t *Tree) Append(leaf tlog.Hash) error {
	t.size++
	for n := 0; ; n++ {
		if n == len(t.levels) {
			l, err := t.openLevel(n, 0, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
			if err != nil {
				return err
			}
			t.levels = append(t.levels, l)
		}
		l := t.levels[n]
		l.size++
		l.open = append(l.open, leaf)
		l.tail = append(l.tail, leaf[:]...)
		if len(l.open) < tileWidth {
			return nil
		}
		leaf = foldTile(l.open)
		l.open = l.open[:0]
	}
}

// foldTile is the root of a complete subtree of hashes. It leaves them alone.
func foldTile(hashes []tlog.Hash) tlog.Hash {
	var buf [tileWidth]tlog.Hash
	row := buf[:copy(buf[:], hashes)]
	for len(row) > 1 {
		for i := 0; i < len(row); i += 2 {
			row[i/2] = tlog.NodeHash(row[i], row[i+1])
		}
		row = row[:len(row)/2]
	}
	return row[0]
}

// Flush writes what was appended, and brings it to the disk.
func (t *Tree) Flush() error {
	for n, l := range t.levels {
		if len(l.tail) == 0 {
			continue
		}
		at := l.size*tlog.HashSize - int64(len(l.tail))
		if _, err := l.file.WriteAt(l.tail, at); err != nil {
			return fmt.Errorf("seal: write level %d of the tree: %w", n, err)
		}
		if err := l.file.Sync(); err != nil {
			return fmt.Errorf("seal: sync level %d of the tree: %w", n, err)
		}
		l.tail = l.tail[:0]
	}
	return nil
}

// Root is the head of the tree when it had size leaves.
func (t *Tree) Root(size int64) (tlog.Hash, error) {
	if size > t.size {
		return tlog.Hash{}, fmt.Errorf("seal: the tree has %d leaves, not %d", t.size, size)
	}
	root, err := tlog.TreeHash(size, t)
	if err != nil {
		return root, fmt.Errorf("seal: compute the head of the tree: %w", err)
	}
	return root, nil
}

// ReadHashes makes a Tree a tlog.HashReader.
func (t *Tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		height, n := tlog.SplitStoredHashIndex(index)
		wide := int64(1) << (height % tileHeight)
		row, err := t.row(height/tileHeight, n*wide, wide)
		if err != nil {
			return nil, err
		}
		hashes[i] = foldTile(row)
	}
	return hashes, nil
}

// row is n hashes of a level, all of one tile.
func (t *Tree) row(n int, first, count int64) ([]tlog.Hash, error) {
	if n >= len(t.levels) || first+count > t.levels[n].size {
		return nil, fmt.Errorf("the tree has no hash %d of level %d", first+count-1, n)
	}
	l := t.levels[n]
	if start := l.size - int64(len(l.open)); first >= start && len(l.open) > 0 {
		return l.open[first-start : first-start+count], nil
	}
	if unwritten := int64(len(l.tail)) / tlog.HashSize; first+count > l.size-unwritten {
		if err := t.Flush(); err != nil {
			return nil, err
		}
	}
	return readHashes(l.file, first, count)
}

// Close closes the files. What was not flushed is lost.
func (t *Tree) Close() error {
	var errs []error
	for _, l := range t.levels {
		errs = append(errs, l.file.Close())
	}
	return errors.Join(errs...)
}
