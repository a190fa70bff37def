package eventstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A server that was killed between the note of a deletion and the overwriting of the
// message leaves the message's bytes, in the block and in the file that was to
// replace it. Neither is there any more when the log is open again.
func TestWhatAKillLeftOfADeletionIsWiped(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "data [1]")
	s := open(t, in(dir))
	l := must(s.Slate(ctx, Keysets))(t)
	earlier := []byte("an earlier value that is to be wiped off")
	first := must(l.Update(ctx, "acme", earlier, 0))(t)
	newest := must(l.Update(ctx, "acme", []byte("the newest value"), first))(t)
	must(l.Update(ctx, "other", []byte("a bystander"), 0))(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	b := must(OpenBlocks(dir, Keysets))(t)
	last := len(b.files) - 1
	data, sum, err := b.load(last)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(data, earlier) {
		t.Fatal("the earlier value is not on disk: the test looks in the wrong place")
	}
	note := make(record, recordHead+recordSum)
	binary.LittleEndian.PutUint32(note, uint32(len(note)))
	binary.LittleEndian.PutUint64(note[4:], first|isTombstone)
	binary.LittleEndian.PutUint64(note[12:], uint64(at.UnixNano()))
	sum.Reset()
	sum.Write(note[4:20])
	copy(note[recordHead:], sum.Sum(nil))
	must(0, os.WriteFile(b.path(last), append(bytes.Clone(data), note...), 0o600))(t)
	draft := b.path(last) + draftExtension
	must(0, os.WriteFile(draft, data, 0o600))(t)

	for range 2 { // the second time, there is nothing to do
		s = open(t, in(dir))
		if bytes.Contains(onFile(t, s, Keysets), earlier) {
			t.Error("the earlier value is still in the block files")
		}
		if _, err := os.Stat(draft); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the half-written block: %v", err)
		}
		l = must(s.Slate(ctx, Keysets))(t)
		if v, rev, err := l.Get(ctx, "acme"); err != nil || string(v) != "the newest value" || rev != newest {
			t.Errorf("reads %q at %d, %v", v, rev, err)
		}
		if v, _, err := l.Get(ctx, "other"); err != nil || string(v) != "a bystander" {
			t.Errorf("the bystander reads %q, %v", v, err)
		}
		if _, err := s.Read(ctx, Keysets, first); !errors.Is(err, ErrNoEntry) {
			t.Errorf("the earlier value reads %v, want ErrNoEntry", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
