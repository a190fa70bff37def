package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func entry(seq uint64, body string) Entry {
	return Entry{
		Log: "LEDGER", Seq: seq, Time: now.Add(time.Duration(seq) * time.Millisecond), Subject: "ledger.acme.account.acme",
		Header: []byte("Postbook-Id: acme\n"), Body: []byte(body),
	}
}

// The leaf is what outsiders build for themselves: it never changes.
func TestLeaf(t *testing.T) {
	want := `postbook.leaf/v1
LEDGER 7 ledger.acme.account.acme
2026-11-24T12:00:00.007Z
h:b84BME6erx6JS+Spz58mQIwGqsbv/4FF/cR19ObkIuU=
p:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=
`
	if got := string(entry(7, "hello").Leaf()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func keys(t testing.TB) *Keys {
	t.Helper()
	return must(OpenKeys(filepath.Join(t.TempDir(), "signing.keys"), now))(t)
}

func trusting(t testing.TB, k *Keys, witnesses ...string) Verifiers {
	t.Helper()
	return must(ParseVerifiers(k.Public(), witnesses))(t)
}

// At every size the tree has the head that RFC 6962 gives it, however often it
// was closed and opened in between, and whatever was not signed is taken back.
func TestTreeIsRFC6962(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "tree")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		var reference []tlog.Hash // all stored hashes, as the library lays them out
		read := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
			hashes := make([]tlog.Hash, len(indexes))
			for i, at := range indexes {
				hashes[i] = reference[at]
			}
			return hashes, nil
		})
		size := int64(0)
		for range rapid.IntRange(1, 5).Draw(t, "openings") {
			tree, err := OpenTree(dir, size)
			if err != nil {
				t.Fatal(err)
			}
			for range rapid.IntRange(0, 700).Draw(t, "leaves") {
				leaf := tlog.RecordHash(fmt.Appendf(nil, "leaf %d", size))
				stored, err := tlog.StoredHashesForRecordHash(size, leaf, read)
				if err != nil {
					t.Fatal(err)
				}
				reference = append(reference, stored...)
				if err := tree.Append(leaf); err != nil {
					t.Fatal(err)
				}
				size++
			}
			if err := tree.Flush(); err != nil {
				t.Fatal(err)
			}
			at := rapid.Int64Range(0, size).Draw(t, "at")
			for _, n := range []int64{at, size} {
				want, err := tlog.TreeHash(n, read)
				if err != nil {
					t.Fatal(err)
				}
				got, err := tree.Root(n)
				if err != nil || got != want {
					t.Fatalf("the head at %d of %d is %v, %v; want %v", n, size, got, err, want)
				}
			}
			for range rapid.IntRange(0, 300).Draw(t, "unsigned") {
				if err := tree.Append(tlog.Hash{1}); err != nil {
					t.Fatal(err)
				}
			}
			if rapid.Bool().Draw(t, "flushed") {
				if err := tree.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			if err := tree.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// sealed is a log of n entries, sealed.
func sealed(t testing.TB, dir string, k *Keys, n int) *Log {
	t.Helper()
	l := must(OpenLog(dir, "LEDGER", k))(t)
	for l.Next() <= uint64(n) {
		if err := l.Add(entry(l.Next(), fmt.Sprint("body ", l.Next()))); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Sign(now); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCheckpointsAreSigned(t *testing.T) {
	k, other := keys(t), keys(t)
	l := sealed(t, t.TempDir(), k, 3)
	c := l.Newest()
	got, err := trusting(t, k).Open(c.Origin, c.Note)
	if err != nil || got.Size != 3 || got.Root != c.Root || time.Since(got.At) > time.Minute {
		t.Errorf("opened %+v, %v", got, err)
	}
	if _, err := trusting(t, other).Open(c.Origin, c.Note); !errors.Is(err, errUnsigned) {
		t.Errorf("with another's key: %v", err)
	}
	if _, err := trusting(t, k).Open(Origin(k.Instance, "MAIL_00"), c.Note); err == nil {
		t.Error("it passes for one of another log")
	}
	for _, change := range []func(string) string{
		func(s string) string { return strings.Replace(s, "\n3\n", "\n4\n", 1) },
		func(s string) string { return strings.Replace(s, c.Root.String(), tlog.Hash{}.String(), 1) },
		func(s string) string { return s[:strings.Index(s, "—")] },
		func(string) string { return "" },
	} {
		if _, err := trusting(t, k).Open(c.Origin, []byte(change(string(c.Note)))); err == nil {
			t.Errorf("it passes although it was changed: %s", change(string(c.Note)))
		}
	}
}

// Whoever knows only the old key, or only the new, trusts what is signed meanwhile.
func TestKeysRotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "signing.keys")
	k := must(OpenKeys(path, now))(t)
	old := trusting(t, k)
	if err := k.Rotate(now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	k = must(OpenKeys(path, now))(t)
	if len(k.Public()) != 2 || k.Instance == "" {
		t.Fatalf("after the rotation there are %q", k.Public())
	}
	fresh := must(ParseVerifiers(k.Public()[:1], nil))(t)
	l := must(OpenLog(t.TempDir(), "LEDGER", k))(t)
	for _, c := range []struct {
		at   time.Time
		old  bool
		name string
	}{{now.Add(2 * time.Hour), true, "meanwhile"}, {now.Add(Overlap + 2*time.Hour), false, "afterwards"}} {
		if err := l.Sign(c.at); err != nil {
			t.Fatal(err)
		}
		_, err := old.Open(l.Newest().Origin, l.Newest().Note)
		if (err == nil) != c.old {
			t.Errorf("%s, with the old key: %v", c.name, err)
		}
		if _, err := fresh.Open(l.Newest().Origin, l.Newest().Note); err != nil {
			t.Errorf("%s, with the new key: %v", c.name, err)
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeys(path, now); err == nil {
		t.Error("keys that everybody may read are used")
	}
}

// A seal that does not hold is not repaired.
func TestABrokenSealIsLeftAlone(t *testing.T) {
	k := keys(t)
	for name, change := range map[string]func(t *testing.T, dir string){
		"a hash":        func(t *testing.T, dir string) { flip(t, filepath.Join(dir, levelFile(0)), 40) },
		"tiles cut off": func(t *testing.T, dir string) { must(0, os.Truncate(filepath.Join(dir, levelFile(0)), 32))(t) },
		"no checkpoint": func(t *testing.T, dir string) { must(0, os.Remove(filepath.Join(dir, checkpointFile)))(t) },
		"a checkpoint of somebody else": func(t *testing.T, dir string) {
			theirs := sealed(t, t.TempDir(), keys(t), 3)
			must(0, os.WriteFile(filepath.Join(dir, checkpointFile), theirs.Newest().Note, 0o600))(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := sealed(t, dir, k, 3).Close(); err != nil {
				t.Fatal(err)
			}
			change(t, dir)
			if _, err := OpenLog(dir, "LEDGER", k); !errors.Is(err, ErrBroken) {
				t.Errorf("it opens: %v", err)
			}
		})
	}
	t.Run("an entry that is gone", func(t *testing.T) {
		l := sealed(t, t.TempDir(), k, 3)
		if err := l.Add(entry(6, "x")); !errors.Is(err, ErrBroken) || l.Next() != 7 {
			t.Errorf("%v, next is %d", err, l.Next())
		}
		if err := l.Add(entry(6, "x")); !errors.Is(err, ErrBroken) {
			t.Errorf("one that comes again: %v", err)
		}
	})
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	data := must(os.ReadFile(path))(t)
	data[at] ^= 1
	must(0, os.WriteFile(path, data, 0o600))(t)
}

func TestProofs(t *testing.T) {
	k := keys(t)
	dir := t.TempDir()
	l := sealed(t, dir, k, 600)
	trusted := trusting(t, k)
	for _, seq := range []uint64{1, 2, 255, 256, 257, 512, 600} {
		proof := must(Prove(dir, l.Newest(), entry(seq, fmt.Sprint("body ", seq))))(t)
		if e, c, err := CheckProof(proof, k.Instance, trusted); err != nil || e.Seq != seq || c.Size != 600 || string(e.Body) != fmt.Sprint("body ", seq) {
			t.Errorf("%d: %+v, %v", seq, e, err)
		}
		if _, _, err := CheckProof(proof, "postbook/other", trusted); err == nil {
			t.Errorf("%d: the proof holds for another platform", seq)
		}
		if _, _, err := CheckProof(bytes.Replace(proof, fmt.Appendf(nil, "index %d\n", seq-1), fmt.Appendf(nil, "index %d\n", seq), 1), k.Instance, trusted); err == nil {
			t.Errorf("%d: the proof holds for another place", seq)
		}
		if _, _, err := CheckProof(must(Prove(dir, l.Newest(), entry(seq, "another body")))(t), k.Instance, trusted); err == nil {
			t.Errorf("%d: the proof holds for another entry", seq)
		}
	}
	if _, err := Prove(dir, l.Newest(), entry(601, "")); err == nil {
		t.Error("what is not sealed is proven")
	}
}

// A witness cosigns a log as it grows, and no other past of it.
func TestWitness(t *testing.T) {
	k, w := keys(t), keys(t)
	server := must(NewWitnessServer(t.TempDir(), w.Signing(now)[0], k.Public()))(t)
	web := httptest.NewServer(server)
	defer web.Close()
	witness := must(NewWitness(web.URL, w.Public()[0], web.Client()))(t)
	trusted := trusting(t, k, w.Public()[0])
	dir := t.TempDir()

	known := int64(0)
	for _, size := range []int{0, 3, 3, 700} {
		l := sealed(t, dir, k, size)
		signed, held, err := witness.Cosign(context.Background(), l.Dir(), l.Newest(), known)
		if err != nil || held != int64(size) {
			t.Fatalf("at %d: %v, %d", size, err, held)
		}
		c, err := trusted.Open(l.Newest().Origin, signed)
		if err != nil || len(c.Witnesses) != 1 || c.Witnesses[0] != w.Instance {
			t.Errorf("at %d it is cosigned by %v, %v", size, c.Witnesses, err)
		}
		known = held
		must(0, l.Close())(t)
	}
	// Somebody who has forgotten what the witness knows learns it.
	l := sealed(t, dir, k, 800)
	if _, held, err := witness.Cosign(context.Background(), l.Dir(), l.Newest(), 0); err != nil || held != 800 {
		t.Errorf("having forgotten: %d, %v", held, err)
	}
	must(0, l.Close())(t)

	for name, size := range map[string]int{"shorter": 500, "as long": 800, "longer": 900} {
		other := must(OpenLog(t.TempDir(), "LEDGER", k))(t)
		for other.Next() <= uint64(size) {
			must(0, other.Add(entry(other.Next(), "another past")))(t)
		}
		must(0, other.Sign(now))(t)
		if _, _, err := witness.Cosign(context.Background(), other.Dir(), other.Newest(), 800); !errors.Is(err, ErrRefused) {
			t.Errorf("another past that is %s: %v", name, err)
		}
	}
	stranger := sealed(t, t.TempDir(), keys(t), 3)
	if _, _, err := witness.Cosign(context.Background(), stranger.Dir(), stranger.Newest(), 0); err == nil {
		t.Error("it cosigns for a stranger")
	}
}

func TestWitnessRefusesWhatIsNoRequest(t *testing.T) {
	k, w := keys(t), keys(t)
	server := must(NewWitnessServer(t.TempDir(), w.Signing(now)[0], k.Public()))(t)
	l := sealed(t, t.TempDir(), k, 3)
	note := string(l.Newest().Note)
	for name, c := range map[string]struct {
		body string
		want int
	}{
		"nothing":                 {"", 400},
		"no size":                 {"old x\n\n" + note, 400},
		"a negative size":         {"old -1\n\n" + note, 400},
		"a size that is too much": {"old 4\n\n" + note, 400},
		"no checkpoint":           {"old 0\n\nhello\n", 404},
		"no base64":               {"old 2\n!!!\n\n" + note, 400},
		"too long a proof":        {"old 2\n" + strings.Repeat(tlog.Hash{}.String()+"\n", 64) + "\n" + note, 400},
		"an unknown log":          {"old 0\n\n" + strings.Replace(note, k.Instance, "postbook/other", 1), 404},
		"a signature that fails":  {"old 0\n\n" + strings.Replace(note, "\n3\n", "\n4\n", 1), 403},
		"too much":                {"old 0\n\n" + note + strings.Repeat("x", maxRequest), 413},
		"a size not seen":         {"old 2\n" + tlog.Hash{}.String() + "\n\n" + note, 409},
	} {
		rec := httptest.NewRecorder()
		server.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/add-checkpoint", strings.NewReader(c.body)))
		if rec.Code != c.want {
			t.Errorf("%s: %d %s, want %d", name, rec.Code, rec.Body, c.want)
		}
	}
}

func FuzzAddCheckpoint(f *testing.F) {
	f.Add([]byte("old 2\n" + tlog.Hash{}.String() + "\n\norigin\n3\n" + tlog.Hash{}.String() + "\n\n— a b\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		old, path, signed, err := parseAdd(body)
		if err == nil && (old < 0 || len(path) > 63 || len(signed) > len(body)) {
			t.Fatalf("%d, %d hashes, %q", old, len(path), signed)
		}
	})
}

func FuzzCheckProof(f *testing.F) {
	k := keys(f)
	dir := f.TempDir()
	l := sealed(f, dir, k, 3)
	trusted := trusting(f, k)
	f.Add(must(Prove(dir, l.Newest(), entry(2, "body 2")))(f))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, _, err := CheckProof(text, k.Instance, trusted)
		if err == nil && string(e.Body) != fmt.Sprint("body ", e.Seq) {
			t.Fatalf("an entry that is not in the log is proven: %+v", e)
		}
	})
}

func FuzzOpenCheckpoint(f *testing.F) {
	k := keys(f)
	l := sealed(f, f.TempDir(), k, 3)
	trusted := trusting(f, k)
	f.Add(l.Newest().Note)
	f.Fuzz(func(t *testing.T, signed []byte) {
		c, err := trusted.Open(l.Newest().Origin, signed)
		if err == nil && (c.Size != 3 && c.Size != 0 || c.Size == 3 && c.Root != l.Newest().Root) {
			t.Fatalf("a checkpoint that nobody signed is trusted: %q", signed)
		}
	})
}

// A log's own library reads what is signed here.
func TestNotesAreNotes(t *testing.T) {
	k := keys(t)
	l := sealed(t, t.TempDir(), k, 3)
	v := must(note.NewVerifier(k.Public()[0]))(t)
	n, err := note.Open(l.Newest().Note, note.VerifierList(v))
	if err != nil || len(n.Sigs) != 1 || len(n.UnverifiedSigs) != 1 {
		t.Errorf("%+v, %v", n, err)
	}
}

// Where sealing has stopped, what came since is found. It is not while sealing is
// only late, and nobody is blamed who was not asked to seal.
func TestWhatShouldHaveBeenSealed(t *testing.T) {
	k := keys(t)
	dir := t.TempDir()
	l := sealed(t, dir, k, 3)
	defer l.Close()
	at := must(trusting(t, k).Open(l.Newest().Origin, l.Newest().Note))(t).At
	for name, c := range map[string]struct {
		recorded, now time.Time
		stale         bool
	}{
		"sealing has stopped":        {at.Add(time.Minute), at.Add(time.Hour), true},
		"it came just now":           {at.Add(time.Hour), at.Add(time.Hour), false},
		"it is late, and a head new": {at.Add(-time.Hour), at.Add(time.Minute), false},
		"nobody is to be sealing":    {at.Add(time.Minute), time.Time{}, false},
	} {
		v := Verification{Log: "LEDGER", Dir: dir, Origin: l.Newest().Origin, Trusted: trusting(t, k), Now: c.now}
		report := must(v.Verify(t.Context(), sumsOf(4, c.recorded)))(t)
		if got := len(report.Findings) == 1 && report.Findings[0].Kind == Stale && report.Findings[0].Seq == 4; got != c.stale || !c.stale && !report.OK() {
			t.Errorf("%s: %v", name, report.Findings)
		}
	}
}

// A folder is called what its owner likes, also what a pattern would be called.
func TestSealedLogsAreFoundInAnyFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "seal [1]")
	must(0, sealed(t, filepath.Join(dir, "LEDGER"), keys(t), 3).Close())(t)
	must(0, os.Mkdir(filepath.Join(dir, "else"), 0o700))(t)
	if logs := must(Logs(dir))(t); !slices.Equal(logs, []string{"LEDGER"}) {
		t.Errorf("%v are sealed; want LEDGER", logs)
	}
}

// A head of another history that the processes share is found, also one that is no
// newer than the folder's: whoever signed it has signed two.
func TestASharedHeadOfAnotherHistoryIsFound(t *testing.T) {
	k, dir := keys(t), t.TempDir()
	l := sealed(t, dir, k, 5)
	defer l.Close()
	verify := func(shared []byte) *Report {
		t.Helper()
		v := Verification{Log: "LEDGER", Dir: dir, Origin: l.Newest().Origin, Trusted: trusting(t, k), Shared: shared}
		return must(v.Verify(t.Context(), sumsOf(5, now)))(t)
	}
	if r := verify(l.Newest().Note); !r.OK() || r.Copies != 0 {
		t.Errorf("its own head: %+v", r)
	}
	other := must(OpenLog(t.TempDir(), "LEDGER", k))(t)
	defer other.Close()
	for _, n := range []uint64{3, 5} {
		for other.Next() <= n {
			must(0, other.Add(entry(other.Next(), "another body")))(t)
		}
		must(0, other.Sign(now))(t)
		if r := verify(other.Newest().Note); len(r.Findings) != 1 || r.Findings[0].Kind != Rewritten {
			t.Errorf("another head of %d entries: %v", n, r.Findings)
		}
	}
}

// sumsOf hands over the first n entries, which were recorded at a time.
func sumsOf(n uint64, recorded time.Time) func(context.Context, func([]Sum) error) error {
	return func(_ context.Context, each func([]Sum) error) error {
		var sums []Sum
		for seq := uint64(1); seq <= n; seq++ {
			sums = append(sums, Sum{Seq: seq, Time: recorded, Hash: entry(seq, fmt.Sprint("body ", seq)).Hash()})
		}
		return each(sums)
	}
}
