package eventstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postbook.dev/postbook/domain/account"
)

// followed is what a reader of a log is handed, up to an entry.
func followed(t *testing.T, s *Store, f Following) []Entry {
	t.Helper()
	var all []Entry
	err := s.Follow(t.Context(), f, func(_ context.Context, entries []Entry) error {
		for _, e := range entries {
			e.Raw = bytes.Clone(e.Raw)
			all = append(all, e)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func sameEntries(t *testing.T, what string, got, want []Entry) {
	t.Helper()
	if len(got) < len(want) {
		t.Fatalf("%s: %d entries, want %d", what, len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if g.Position != w.Position || !g.Time.Equal(w.Time) || g.Subject != w.Subject || !bytes.Equal(g.Header, w.Header) || !bytes.Equal(g.Raw, w.Raw) {
			t.Fatalf("%s: from the disk\n%.300v\nfrom the server\n%.300v", what, g, w)
		}
	}
}

// large starts an account with a name of 700 kB: a dozen of them fill a block.
func large() Commit {
	c := opened(newKey().ID)
	c.Events[0] = account.Opened{Name: strings.Repeat("x", 700_000)}
	return c
}

// Who follows a log past its server is handed what the server hands over, byte for byte,
// while it is written, and from wherever they begin.
func TestFollowFromDisk(t *testing.T) {
	t.Parallel()
	s := open(t, func(c *Config) { c.MarkKey = []byte("key") })
	ctx := t.Context()
	const n = 120
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range n {
			c := issued(newKey())
			if i%4 == 0 {
				c = large()
			}
			if _, err := s.Append(ctx, c, 0); err != nil {
				t.Error(err)
				return
			}
		}
	})
	whileWritten := followed(t, s, Following{Log: Ledger, FromDisk: true, Linger: time.Millisecond, StopAt: n})
	writing.Wait()
	fromServer := followed(t, s, Following{Log: Ledger, Undecoded: true, StopAt: n})
	if blocks := must(blockNumbers(s.local.blocks(Ledger)))(t); len(blocks) < 3 {
		t.Fatalf("the log has %d blocks, which proves little", len(blocks))
	}
	sameEntries(t, "while it was written", whileWritten, fromServer)
	for _, after := range []uint64{0, 1, 40, 41, n - 1} {
		sameEntries(t, "later", followed(t, s, Following{Log: Ledger, FromDisk: true, After: after, StopAt: n}), fromServer[after:])
	}
	if err := s.Follow(ctx, Following{Log: "NONE", FromDisk: true}, func(context.Context, []Entry) error { return nil }); !errors.Is(err, ErrNoEntry) {
		t.Errorf("a log that is not there is followed with %v", err)
	}
}

// What has left a stream is not made up by who reads past the server, nor passed over.
func TestFollowFromDiskWhatIsNowhere(t *testing.T) {
	t.Parallel()
	s := open(t, archiving)
	for range 40 { // several blocks, of which the first go
		c := accepted(emailIn(s, 0))
		c.Events = slices.Repeat(c.Events, 500)
		must(s.Accept(t.Context(), []Commit{c}))(t)
	}
	log := MailLog(0)
	must(s.Trim(t.Context(), log, 35))(t)
	if blocks := must(blockNumbers(s.local.blocks(log)))(t); blocks[0] == 1 {
		t.Fatal("no block has gone")
	}
	err := s.Follow(t.Context(), Following{Log: log, FromDisk: true, StopAt: 40}, func(_ context.Context, entries []Entry) error {
		t.Errorf("entries from %d on were handed over, and those before are nowhere", entries[0].Seq)
		return nil
	})
	if err == nil {
		t.Error("what is nowhere was not missed")
	}
	for _, e := range followed(t, s, Following{Log: log, FromDisk: true, After: 36, StopAt: 40}) {
		if e.Seq <= 36 {
			t.Errorf("%d comes after 36", e.Seq)
		}
	}
}

// blockFiles are the blocks of a log of n entries, by their numbers.
func blockFiles(t *testing.T, n int) map[int][]byte {
	t.Helper()
	dir := t.TempDir()
	s := open(t, in(dir))
	for range n {
		must(s.Append(t.Context(), large(), 0))(t)
	}
	must(0, s.Close())(t)
	files := map[int][]byte{}
	for _, number := range must(blockNumbers(blocksDir(dir, Ledger)))(t) {
		files[number] = must(os.ReadFile(blockPath(blocksDir(dir, Ledger), number)))(t)
	}
	return files
}

// Files change under who reads them, in all the ways in which a server changes them.
func TestDiskTail(t *testing.T) {
	t.Parallel()
	blocks := blockFiles(t, 15)
	if len(blocks) != 2 {
		t.Fatalf("%d blocks, want 2", len(blocks))
	}
	ends := recordEnds(t, blocks[1])
	whole := uint64(len(ends)) // entries of the first block
	tail := func(t *testing.T, after uint64) (*diskTail, func(number int, data []byte)) {
		d := &diskTail{log: Ledger, dir: t.TempDir(), last: after}
		t.Cleanup(d.leave)
		return d, func(number int, data []byte) {
			path := filepath.Join(d.dir, "new")
			must(0, os.WriteFile(path, data, 0o600))(t)
			must(0, os.Rename(path, blockPath(d.dir, number)))(t)
		}
	}
	grow := func(t *testing.T, d *diskTail, number int, data []byte) {
		t.Helper()
		f := must(os.OpenFile(blockPath(d.dir, number), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600))(t)
		must(f.Write(data))(t)
		must(0, f.Close())(t)
	}
	reads := func(t *testing.T, d *diskTail, want ...uint64) {
		t.Helper()
		var got []uint64
		for {
			entries, err := d.read()
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				got = append(got, e.Seq)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("it reads %v, want %v", got, want)
		}
	}
	upTo := func(from, to uint64) (seqs []uint64) {
		for ; from <= to; from++ {
			seqs = append(seqs, from)
		}
		return seqs
	}
	t.Run("a record comes in pieces", func(t *testing.T) {
		t.Parallel()
		d, _ := tail(t, 0)
		reads(t, d) // there is nothing at all
		grow(t, d, 1, nil)
		reads(t, d)
		for _, piece := range [][2]int{{0, 10}, {10, 30}, {30, ends[0] - 1}} {
			grow(t, d, 1, blocks[1][piece[0]:piece[1]])
			reads(t, d)
		}
		grow(t, d, 1, blocks[1][ends[0]-1:ends[2]-4])
		reads(t, d, 1, 2)
		grow(t, d, 1, blocks[1][ends[2]-4:])
		grow(t, d, 2, blocks[2])
		reads(t, d, upTo(3, 15)...)
	})
	t.Run("a block is replaced, and the newest removed", func(t *testing.T) {
		t.Parallel()
		d, put := tail(t, 0)
		put(1, blocks[1][:ends[3]])
		reads(t, d, upTo(1, 4)...)
		put(1, blocks[1][ends[1]:]) // the first two are gone
		reads(t, d, upTo(5, whole)...)
		put(2, blocks[2])
		must(0, os.Remove(blockPath(d.dir, 1)))(t)
		reads(t, d, upTo(whole+1, 15)...)
	})
	t.Run("it begins in the block that holds what comes next", func(t *testing.T) {
		t.Parallel()
		for _, after := range []uint64{0, 5, whole - 1, whole, whole + 1, 15} {
			d, put := tail(t, after)
			put(1, blocks[1])
			put(2, blocks[2])
			reads(t, d, upTo(after+1, 15)...)
			if d.number != 2 {
				t.Errorf("after %d it is in block %d", after, d.number)
			}
		}
	})
	t.Run("a record is damaged", func(t *testing.T) {
		t.Parallel()
		d, put := tail(t, 0)
		damaged := bytes.Clone(blocks[1])
		damaged[ends[4]-100] ^= 1
		put(1, damaged)
		reads(t, d, upTo(1, 4)...)
		d.stuck = d.stuck.Add(-tornFor)
		if _, err := d.read(); !errors.Is(err, ErrDamaged) {
			t.Errorf("a record that stays damaged reads %v", err)
		}
		d.stuck = time.Now()
		put(2, blocks[2])
		if entries, err := d.read(); !errors.Is(err, ErrDamaged) {
			t.Errorf("a damaged record in a block that is done reads %v, %v", entries, err)
		}
	})
}
