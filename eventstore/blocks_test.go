package eventstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/minio/highwayhash"
)

// What is read from block files is what the server hands over, byte for byte.
func TestBlocksHoldWhatTheServerSays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, in(dir), func(c *Config) { c.MarkKey = []byte("key") })
	must(s.Own(t.Context(), 0, "worker-1"))(t)
	for range 20 {
		c := accepted(newEmail())
		if _, err := s.Accept(t.Context(), []Commit{c}); err != nil {
			t.Fatal(err)
		}
	}
	log := MailLog(0)
	head := must(s.Head(t.Context(), log))(t)
	fromServer := followed(t, s, Following{Log: log, Undecoded: true, StopAt: head})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	fromBlocks := atRest(t, dir, log)
	if len(fromBlocks) != len(fromServer) || len(fromBlocks) == 0 {
		t.Fatalf("%d entries are in the blocks, %d came from the server", len(fromBlocks), len(fromServer))
	}
	sameEntries(t, "in the blocks", fromBlocks, fromServer)
	for _, b := range fromBlocks {
		if b.Err != nil {
			t.Errorf("%d: %v", b.Seq, b.Err)
		}
		if !b.Marked([]byte("key")) || b.Marked([]byte("another")) {
			t.Errorf("%d: the mark does not tell who wrote it: %s", b.Seq, b.Header)
		}
	}
}

// atRest reads a log's blocks.
func atRest(t *testing.T, dir, log string) []Entry {
	t.Helper()
	blocks := must(OpenBlocks(dir, log))(t)
	var all []Entry
	for n := range blocks.Count() {
		err := blocks.Read(t.Context(), n, func(e Entry) error {
			all = append(all, e)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// recordEnds is where each record of a block ends.
func recordEnds(t *testing.T, block []byte) (ends []int) {
	t.Helper()
	for rest := block; len(rest) > 0; ends = append(ends, len(block)-len(rest)) {
		if _, ok := cutRecord(&rest); !ok {
			t.Fatal("a sound block cannot be cut into records")
		}
	}
	return ends
}

// A record that is damaged says so, the others are read; one that a crash cut off
// at the very end was promised to nobody.
func TestDamagedBlocks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, in(dir))
	for range 5 {
		c := issued(newKey())
		if _, err := s.Append(t.Context(), c, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(blocksDir(dir, Ledger), "1.blk")
	whole := must(os.ReadFile(path))(t)
	ends := recordEnds(t, whole)
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   []bool // whether each entry is sound
	}{
		{"as it was", func(b []byte) []byte { return b }, []bool{true, true, true, true, true}},
		{"a byte of the third body", func(b []byte) []byte { b[ends[2]-20] ^= 1; return b }, []bool{true, true, false, true, true}},
		{"the third sequence", func(b []byte) []byte { b[ends[1]+4] ^= 1; return b }, []bool{true, true, false, true, true}},
		{"the third length", func(b []byte) []byte { b[ends[1]+3] = 0x7f; return b }, []bool{true, true}},
		{"the last one cut off", func(b []byte) []byte { return b[:len(b)-7] }, []bool{true, true, true, true}},
		{"the last one's last byte", func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, []bool{true, true, true, true}},
		{"nothing", func([]byte) []byte { return nil }, nil},
	} {
		if err := os.WriteFile(path, c.change(append([]byte{}, whole...)), 0o600); err != nil {
			t.Fatal(err)
		}
		got := atRest(t, dir, Ledger)
		if len(got) != len(c.want) {
			t.Errorf("%s: %d entries, want %d", c.name, len(got), len(c.want))
			continue
		}
		for i, e := range got {
			if (e.Err == nil) != c.want[i] || e.Err != nil && !errors.Is(e.Err, ErrDamaged) {
				t.Errorf("%s: entry %d says %v", c.name, i+1, e.Err)
			}
		}
	}
}

func FuzzRecord(f *testing.F) {
	sum, err := highwayhash.New64(make([]byte, highwayhash.Size))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add(make([]byte, recordHead+recordSum))
	f.Fuzz(func(t *testing.T, data []byte) {
		for len(data) > 0 {
			before := len(data)
			r, ok := cutRecord(&data)
			if !ok {
				return
			}
			if len(r)+len(data) != before {
				t.Fatal("a record was cut off that is not at the beginning")
			}
			if e, err := r.entry(Ledger, sum); err == nil && e.Seq == 0 {
				t.Fatalf("a record without a sequence is sound: %+v", e)
			}
		}
	})
}
