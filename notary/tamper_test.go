package notary_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/minio/highwayhash"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

const (
	log     = "MAIL_00"
	entries = 2500 // over three block files
)

var quiet = slog.New(slog.DiscardHandler)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// instance is a log and its seal on disk, while no server runs.
type instance struct {
	dir  string
	keys *seal.Keys
	mark []byte
	copy []byte // of the newest head, kept elsewhere; nil if there is none
}

func (i *instance) log() string  { return filepath.Join(i.dir, "log") }
func (i *instance) seal() string { return filepath.Join(i.dir, "seal") }

// blocks is where the block files of the log lie.
func (i *instance) blocks() string {
	return filepath.Join(i.log(), "jetstream", "$G", "streams", log, "msgs")
}

func (i *instance) open(t testing.TB) *eventstore.Store {
	t.Helper()
	return must(eventstore.Open(t.Context(), eventstore.Config{
		Dir: i.log(), Partitions: 1, MarkKey: i.mark, Durability: eventstore.Interval, Registry: catalogue.Registry(), Log: quiet,
	}))(t)
}

// accept is the beginning of an email, as large as a mail with a long subject and
// many headers.
func accept(body string) eventstore.Commit {
	id := uuid.Must(uuid.NewV7())
	return eventstore.Commit{
		Stream: email.Stream("acme", id),
		By: domain.Authority{
			Actor: domain.Actor{Kind: domain.APIKey, ID: "key"}, Account: "acme", Via: domain.ViaAPI, Auth: domain.KeyAuth, At: time.Now(), Command: id,
		},
		Events: []domain.Event{email.Accepted{Sender: "s", MessageID: id.String(), Envelope: domain.Sealed(body)}},
	}
}

// sealed makes an instance with n sealed entries in a folder.
func sealed(t testing.TB, dir string, keys *seal.Keys, n int) *instance {
	t.Helper()
	i := &instance{dir: dir, keys: keys, mark: []byte("the platform's mark")}
	store := i.open(t)
	body := strings.Repeat("x", 7000)
	for at := 0; at < n; at += 100 {
		var commits []eventstore.Commit
		for range min(100, n-at) {
			commits = append(commits, accept(body))
		}
		must(store.Accept(t.Context(), commits))(t)
	}
	i.run(t, store, uint64(n))
	must(0, store.Close())(t)
	return i
}

// run seals until n entries are, and stops.
func (i *instance) run(t testing.TB, store *eventstore.Store, n uint64, change ...func(*notary.Config)) {
	t.Helper()
	c := notary.Config{
		Store: store, Dir: i.seal(), Keys: i.keys, MarkKey: i.mark, Now: time.Now, Log: quiet,
		Found: func(_ context.Context, f seal.Finding) { t.Errorf("found: %s", f) },
	}
	for _, with := range change {
		with(&c)
	}
	notes := notary.New(c)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- notes.Run(ctx) }()
	for {
		done := false
		for _, st := range notes.Status() {
			done = done || st.Log == log && (st.Size >= int64(n) || st.Broken)
		}
		if done {
			break
		}
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop()
	<-ended
}

func (i *instance) verify(t testing.TB) *seal.Report {
	t.Helper()
	v := seal.Verification{
		Log: log, Dir: filepath.Join(i.seal(), log), Origin: seal.Origin(i.keys.Instance, log),
		Trusted: must(seal.ParseVerifiers(i.keys.Public(), nil))(t),
	}
	if i.copy != nil {
		v.Copies = []seal.Copy{{Place: "elsewhere", Note: i.copy}}
	}
	return must(v.Verify(t.Context(), notary.AtRest(i.log(), log, i.mark)))(t)
}

// overlay is a folder that looks like the instance's, in which files can be
// replaced without changing them.
func (i *instance) overlay(t testing.TB) *instance {
	t.Helper()
	o := *i
	o.dir = must(os.MkdirTemp(t.TempDir(), "tampered"))(t)
	for _, dir := range []string{i.blocks(), filepath.Join(i.seal(), log)} {
		rel := must(filepath.Rel(i.dir, dir))(t)
		must(0, os.MkdirAll(filepath.Join(o.dir, rel), 0o700))(t)
		for _, e := range must(os.ReadDir(dir))(t) {
			must(0, os.Symlink(filepath.Join(dir, e.Name()), filepath.Join(o.dir, rel, e.Name())))(t)
		}
	}
	return &o
}

// replace puts other bytes in a file's place.
func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	must(0, os.Remove(path))(t)
	must(0, os.WriteFile(path, data, 0o600))(t)
}

// block is a block file taken apart by somebody who knows the format.
type block struct {
	path    string
	number  int
	records [][]byte
}

func (i *instance) block(t testing.TB, number int) *block {
	t.Helper()
	b := &block{path: filepath.Join(i.blocks(), fmt.Sprintf("%d.blk", number)), number: number}
	data := must(os.ReadFile(b.path))(t)
	for len(data) > 0 {
		n := binary.LittleEndian.Uint32(data) &^ (1 << 31)
		b.records = append(b.records, bytes.Clone(data[:n]))
		data = data[n:]
	}
	return b
}

func (b *block) write(t testing.TB) { replace(t, b.path, bytes.Join(b.records, nil)) }

// sign gives a record the checksum that fits it.
func (b *block) sign(t testing.TB, at int) {
	r := b.records[at]
	key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", log, b.number))
	h := must(highwayhash.New64(key[:]))(t)
	subject := 22 + int(binary.LittleEndian.Uint16(r[20:]))
	h.Write(r[4:20])
	h.Write(r[22:subject])
	h.Write(r[subject+4 : len(r)-8])
	copy(r[len(r)-8:], h.Sum(nil))
}

func (b *block) seq(at int) uint64         { return binary.LittleEndian.Uint64(b.records[at][4:]) }
func (b *block) renumber(at int, n uint64) { binary.LittleEndian.PutUint64(b.records[at][4:], n) }

// ways are the ways in which somebody changes a log behind the platform's back.
// Each returns the sequence of the first entry that it is about, or 0 if it is
// about none, and the words in which it was done.
var ways = map[string]func(t testing.TB, r *rand.Rand, i *instance) uint64{
	"a bit of a block": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 1+r.IntN(3))
		at := r.IntN(len(b.records))
		// A length that cannot be true hides what comes after it, not what is before.
		b.records[at][r.IntN(len(b.records[at]))] ^= 1 << r.IntN(8)
		seq := uint64(0)
		if at > 0 {
			seq = b.seq(at-1) + 1
		}
		b.write(t)
		return seq
	},
	"an entry edited, with its checksum": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 1+r.IntN(3))
		at := r.IntN(len(b.records))
		rec := b.records[at]
		rec[len(rec)-8-1-r.IntN(6000)] ^= 1 << r.IntN(7)
		b.sign(t, at)
		b.write(t)
		return b.seq(at)
	},
	"an entry's time": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 1+r.IntN(3))
		at := r.IntN(len(b.records))
		b.records[at][12+r.IntN(6)] ^= 1 << r.IntN(8)
		b.sign(t, at)
		b.write(t)
		return b.seq(at)
	},
	"an entry removed": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 1+r.IntN(3))
		at := r.IntN(len(b.records))
		seq := b.seq(at)
		b.records = slices.Delete(b.records, at, at+1)
		b.write(t)
		return seq
	},
	"an entry marked as removed": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		last := i.block(t, 3)
		seq := 1 + r.Uint64N(last.seq(len(last.records)-1))
		b := i.block(t, 1+r.IntN(3))
		tombstone := make([]byte, 22+8)
		binary.LittleEndian.PutUint32(tombstone, uint32(len(tombstone)))
		binary.LittleEndian.PutUint64(tombstone[4:], seq|1<<62)
		key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", log, b.number))
		h := must(highwayhash.New64(key[:]))(t)
		h.Write(tombstone[4:20])
		copy(tombstone[22:], h.Sum(nil))
		b.records = slices.Insert(b.records, r.IntN(len(b.records)+1), tombstone)
		b.write(t)
		return seq
	},
	"an entry removed, and the rest moved up": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 3)
		at := r.IntN(len(b.records) - 1)
		seq := b.seq(at)
		b.records = slices.Delete(b.records, at, at+1)
		for n := at; n < len(b.records); n++ {
			b.renumber(n, b.seq(n)-1)
			b.sign(t, n)
		}
		b.write(t)
		return seq
	},
	"two entries swapped": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 1+r.IntN(3))
		at := r.IntN(len(b.records) - 1)
		seq := b.seq(at)
		b.records[at], b.records[at+1] = b.records[at+1], b.records[at]
		b.write(t)
		return seq
	},
	"two entries swapped, with their places": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 1+r.IntN(3))
		at := r.IntN(len(b.records) - 1)
		seq := b.seq(at)
		b.records[at], b.records[at+1] = b.records[at+1], b.records[at]
		b.renumber(at, seq)
		b.renumber(at+1, seq+1)
		b.sign(t, at)
		b.sign(t, at+1)
		b.write(t)
		return seq
	},
	"an entry put in, and the rest moved down": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 3)
		at := r.IntN(len(b.records))
		seq := b.seq(at)
		other := (at + 1 + r.IntN(len(b.records)-1)) % len(b.records) // a copy of its own would change nothing here
		b.records = slices.Insert(b.records, at, bytes.Clone(b.records[other]))
		b.renumber(at, seq)
		b.sign(t, at)
		for n := at + 1; n < len(b.records); n++ {
			b.renumber(n, seq+uint64(n-at))
			b.sign(t, n)
		}
		b.write(t)
		return seq
	},
	"a block's end cut off": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 1+r.IntN(3))
		at := r.IntN(len(b.records))
		seq := b.seq(at)
		b.records = b.records[:at]
		b.write(t)
		return seq
	},
	"a block removed": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 1+r.IntN(3))
		must(0, os.Remove(b.path))(t)
		return b.seq(0)
	},
	"a hash of the tiles": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		path := filepath.Join(i.seal(), log, []string{"tiles.0", "tiles.1"}[r.IntN(2)])
		data := must(os.ReadFile(path))(t)
		data[r.IntN(len(data))] ^= 1 << r.IntN(8)
		replace(t, path, data)
		return 0
	},
	"an entry and its hash": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		b := i.block(t, 1)
		at := r.IntN(len(b.records))
		rec := b.records[at]
		rec[len(rec)-100] ^= 1
		b.sign(t, at)
		b.write(t)
		var hash [32]byte
		must(0, eachSum(t, i, b.seq(at), func(s seal.Sum) { hash = s.Hash }))(t)
		path := filepath.Join(i.seal(), log, "tiles.0")
		data := must(os.ReadFile(path))(t)
		copy(data[32*(b.seq(at)-1):], hash[:])
		replace(t, path, data)
		return b.seq(at) // which the mark tells; the seal alone narrows it down to a tile
	},
	"a checkpoint's text": func(t testing.TB, r *rand.Rand, i *instance) uint64 {
		path := filepath.Join(i.seal(), log, "checkpoint")
		data := must(os.ReadFile(path))(t)
		text := bytes.Index(data, []byte("\n\n"))
		data[r.IntN(text)] ^= 1 << r.IntN(7)
		replace(t, path, data)
		return 0
	},
	"a checkpoint signed by another": func(t testing.TB, _ *rand.Rand, i *instance) uint64 {
		dir := t.TempDir()
		keys := must(seal.OpenKeys(filepath.Join(dir, "keys"), time.Now()))(t)
		keys.Instance = i.keys.Instance
		l := must(seal.OpenLog(filepath.Join(dir, "seal"), log, keys))(t)
		replace(t, filepath.Join(i.seal(), log, "checkpoint"), l.Newest().Note)
		return 0
	},
	"no checkpoint": func(t testing.TB, _ *rand.Rand, i *instance) uint64 {
		must(0, os.Remove(filepath.Join(i.seal(), log, "checkpoint")))(t)
		return 0
	},
}

func eachSum(t testing.TB, i *instance, seq uint64, do func(seal.Sum)) error {
	return notary.AtRest(i.log(), log, nil)(t.Context(), func(sums []seal.Sum) error {
		for _, s := range sums {
			if s.Seq == seq {
				do(s)
			}
		}
		return nil
	})
}

// Whatever is changed on the disk while no server runs is found, and named.
func TestTampering(t *testing.T) {
	t.Parallel()
	rounds := 90
	if os.Getenv("POSTBOOK_TEST_LONG") != "" {
		rounds = 1000
	}
	keys := must(seal.OpenKeys(filepath.Join(t.TempDir(), "signing.keys"), time.Now()))(t)
	whole := sealed(t, t.TempDir(), keys, entries)
	if r := whole.verify(t); !r.OK() || r.Entries != entries || r.Sealed != entries {
		t.Fatalf("before anything was changed: %+v", r)
	}
	if files := must(os.ReadDir(whole.blocks()))(t); len(files) < 3 {
		t.Fatalf("there are only %d blocks", len(files))
	}
	names := make([]string, 0, len(ways))
	for name := range ways {
		names = append(names, name)
	}
	slices.Sort(names)
	for n := range rounds {
		seed := uint64(n)
		if n >= rounds/2 {
			seed = rand.Uint64()
		}
		name := names[n%len(names)]
		changed := whole.overlay(t)
		want := ways[name](t, rand.New(rand.NewPCG(seed, 1)), changed)
		r := changed.verify(t)
		switch {
		case r.OK():
			t.Errorf("%s (seed %d): it is not found", name, seed)
		case want > 0 && !slices.ContainsFunc(r.Findings[:min(2, len(r.Findings))], func(f seal.Finding) bool { return f.Seq == want }):
			t.Errorf("%s (seed %d): the first entry that it is about is %d; found %v", name, seed, want, r.Findings[:min(3, len(r.Findings))])
		}
		must(0, os.RemoveAll(changed.dir))(t)
	}
	t.Logf("%d changes were found", rounds)
}

// Whoever holds every key can write another history and seal it. A head that was
// kept elsewhere does not fit it, nor one that is put back from a backup.
func TestAnotherHistoryWithAllKeys(t *testing.T) {
	t.Parallel()
	keys := must(seal.OpenKeys(filepath.Join(t.TempDir(), "signing.keys"), time.Now()))(t)
	dir := t.TempDir()
	backup := sealed(t, filepath.Join(dir, "backup"), keys, 300)
	must(0, os.CopyFS(filepath.Join(dir, "true"), os.DirFS(backup.dir)))(t)
	real := *backup
	real.dir = filepath.Join(dir, "true")
	store := real.open(t)
	must(store.Accept(t.Context(), []eventstore.Commit{accept("one more")}))(t)
	place := must(notary.ParsePlace(filepath.Join(dir, "elsewhere")))(t)
	real.run(t, store, 301)
	must(0, store.Close())(t)
	head := must(os.ReadFile(filepath.Join(real.seal(), log, "checkpoint")))(t)
	must(0, place.Put(t.Context(), log, head))(t)
	kept := must(place.Get(t.Context(), log))(t)

	rewritten := sealed(t, filepath.Join(dir, "rewritten"), keys, 301)
	longer := sealed(t, filepath.Join(dir, "longer"), keys, 400)
	for name, c := range map[string]struct {
		i     *instance
		found bool
	}{
		"the true one":       {&real, false},
		"an old backup":      {backup, true},
		"one written anew":   {rewritten, true},
		"one that is longer": {longer, true},
	} {
		if r := c.i.verify(t); !r.OK() {
			t.Errorf("%s, by itself: %v", name, r.Findings)
		}
		c.i.copy = kept
		if r := c.i.verify(t); r.OK() == c.found {
			t.Errorf("%s, held against the head that was kept elsewhere: %v", name, r.Findings)
		}
	}
}

// An entry that somebody publishes with the log's own credentials is not marked,
// and the notary says so at once.
func TestForgedEntries(t *testing.T) {
	t.Parallel()
	keys := must(seal.OpenKeys(filepath.Join(t.TempDir(), "signing.keys"), time.Now()))(t)
	i := sealed(t, t.TempDir(), keys, 10)
	ours := i.mark
	i.mark = []byte("somebody else's mark")
	store := i.open(t)
	must(store.Accept(t.Context(), []eventstore.Commit{accept("forged")}))(t)
	i.mark = ours
	found := make(chan seal.Finding, 1)
	i.run(t, store, 11, func(c *notary.Config) {
		c.Found = func(_ context.Context, f seal.Finding) { found <- f }
	})
	if f := <-found; f.Kind != seal.Forged || f.Seq != 11 {
		t.Errorf("found %+v", f)
	}
	must(0, store.Close())(t)
	if r := i.verify(t); len(r.Findings) != 1 || r.Findings[0].Kind != seal.Forged || r.Findings[0].Seq != 11 {
		t.Errorf("verify finds %v", r.Findings)
	}
}

// An entry that was damaged on the disk before it could be sealed is not passed over: the
// notary says so, and seals nothing more.
func TestDamagedBeforeItIsSealed(t *testing.T) {
	t.Parallel()
	keys := must(seal.OpenKeys(filepath.Join(t.TempDir(), "signing.keys"), time.Now()))(t)
	i := sealed(t, t.TempDir(), keys, 10)
	store := i.open(t)
	defer store.Close()
	newest := must(os.OpenFile(filepath.Join(i.blocks(), "1.blk"), os.O_RDWR, 0))(t)
	defer newest.Close()
	before := must(newest.Stat())(t).Size()
	for range 3 {
		must(store.Accept(t.Context(), []eventstore.Commit{accept("one more")}))(t)
	}
	var b [1]byte
	must(newest.ReadAt(b[:], before+100))(t)
	must(newest.WriteAt([]byte{b[0] ^ 1}, before+100))(t)
	found := make(chan seal.Finding, 1)
	i.run(t, store, 11, func(c *notary.Config) {
		c.Found = func(_ context.Context, f seal.Finding) { found <- f }
	})
	if f := <-found; f.Kind != seal.Unsealed || f.Log != log {
		t.Errorf("found %+v", f)
	}
	if r := i.verify(t); r.OK() || r.Sealed != 10 {
		t.Errorf("verify finds %v, of %d sealed entries", r.Findings, r.Sealed)
	}
}
