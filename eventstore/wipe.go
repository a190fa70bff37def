package eventstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
)

// draftExtension is added by the server to the name of a block that it rewrites.
const draftExtension = ".tmp"

// wipeDeleted finishes what a kill has interrupted while the server wiped messages
// off a slate. The server notes a deletion first and overwrites the message after
// that; when it starts again it believes the note, and the bytes stay. It also leaves
// the file lying that was to replace the block. The server must not run yet.
func wipeDeleted(dir, stream string, fsync func(*os.File) error) error {
	b, err := OpenBlocks(dir, stream)
	if errors.Is(err, ErrNoEntry) {
		return nil
	}
	if err != nil {
		return err
	}
	drafts, err := fs.Glob(os.DirFS(b.dir), "*"+blockExtension+draftExtension)
	if err != nil {
		return fmt.Errorf("eventstore: look for half-written blocks of %s: %w", stream, err)
	}
	for _, name := range drafts {
		if err := os.Remove(filepath.Join(b.dir, name)); err != nil {
			return fmt.Errorf("eventstore: remove a half-written block of %s: %w", stream, err)
		}
	}
	gone := map[uint64]bool{} // sequences whose deletion was noted
	for n := range b.files {
		data, sum, err := b.load(n)
		if err != nil {
			return err
		}
		eachSound(data, sum, func(r record) {
			if seq := r.seq(); seq&isTombstone != 0 {
				gone[seq&^isTombstone] = true
			}
		})
	}
	if len(gone) == 0 {
		return nil
	}
	for n := range b.files {
		data, sum, err := b.load(n)
		if err != nil {
			return err
		}
		wiped := false
		eachSound(data, sum, func(r record) {
			if gone[r.seq()] {
				r.wipe(sum)
				wiped = true
			}
		})
		if wiped {
			if err := replaceBlock(b.path(n), data, fsync); err != nil {
				return fmt.Errorf("eventstore: wipe what was deleted off %s: %w", stream, err)
			}
		}
	}
	return nil
}

// eachSound hands over the records of a block up to the first that is damaged, where
// the server cuts it.
func eachSound(data []byte, sum hash.Hash64, each func(record)) {
	for len(data) > 0 {
		r, ok := cutRecord(&data)
		if !ok || r.check(sum) != nil {
			return
		}
		each(r)
	}
}

// wipe puts noise in the place of a record, in the form that the server gives one
// that was erased.
func (r record) wipe(sum hash.Hash64) {
	end := len(r) - recordSum
	binary.LittleEndian.PutUint32(r, uint32(len(r)))
	binary.LittleEndian.PutUint64(r[4:], r.seq()|wasErased)
	clear(r[12:recordHead])             // time, and length of the subject
	_, _ = rand.Read(r[recordHead:end]) // never fails
	sum.Reset()
	sum.Write(r[4:20])
	sum.Write(r[recordHead:end])
	copy(r[end:], sum.Sum(nil))
}

// replaceBlock puts a block in the place of another, as a whole.
func replaceBlock(name string, data []byte, fsync func(*os.File) error) error {
	f, err := os.OpenFile(name+draftExtension, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = fsync(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(fsync(dir), dir.Close())
}
