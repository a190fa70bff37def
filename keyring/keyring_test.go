package keyring

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// memory keeps keysets in a map, with revisions.
type memory struct {
	mu    sync.Mutex
	blobs map[string][]byte
	revs  map[string]uint64
}

func newMemory() *memory { return &memory{blobs: map[string][]byte{}, revs: map[string]uint64{}} }

func (m *memory) Load(_ context.Context, account string) ([]byte, uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	blob, ok := m.blobs[account]
	if !ok {
		return nil, m.revs[account], ErrNotFound
	}
	return bytes.Clone(blob), m.revs[account], nil
}

func (m *memory) Save(_ context.Context, account string, blob []byte, revision uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.revs[account] != revision {
		return 0, ErrConflict
	}
	m.blobs[account], m.revs[account] = bytes.Clone(blob), revision+1
	return revision + 1, nil
}

func (m *memory) Delete(_ context.Context, account string, revision uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.revs[account] != revision {
		return ErrConflict
	}
	delete(m.blobs, account)
	m.revs[account]++ // as a tombstone has one
	return nil
}

func (m *memory) Sweep(context.Context, string, bool) error { return nil }

func (m *memory) Accounts(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Keys(m.revs)), nil
}

func (m *memory) Watch(ctx context.Context, _ func(string)) error {
	<-ctx.Done()
	return ctx.Err()
}

func open(t testing.TB, store Store) *Keyring {
	t.Helper()
	root, err := OpenRoot(t.Context(), filepath.Join(t.TempDir(), "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	return New(store, root, Options{})
}

func TestWhatIsSealedOpensOnlyWhereItBelongs(t *testing.T) {
	k := open(t, newMemory())
	for _, id := range []string{"a", "b"} {
		if err := k.Create(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	a, _ := k.Account(t.Context(), "a")
	b, _ := k.Account(t.Context(), "b")
	box, err := a.Seal(Body, "mail-1", []byte("dear you"), []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Open(t.Context(), Body, "mail-1", box, []byte("aad")); err != nil || string(got) != "dear you" {
		t.Fatalf("opened as %q, %v", got, err)
	}
	for name, try := range map[string]func() ([]byte, error){
		"other account": func() ([]byte, error) { return b.Open(t.Context(), Body, "mail-1", box, []byte("aad")) },
		"other class":   func() ([]byte, error) { return a.Open(t.Context(), Envelope, "mail-1", box, []byte("aad")) },
		"other subject": func() ([]byte, error) { return a.Open(t.Context(), Body, "mail-2", box, []byte("aad")) },
		"other place":   func() ([]byte, error) { return a.Open(t.Context(), Body, "mail-1", box, []byte("else")) },
	} {
		if got, err := try(); err == nil {
			t.Errorf("%s: opened as %q", name, got)
		}
	}
	for i := range box {
		changed := bytes.Clone(box)
		changed[i] ^= 1
		if _, err := a.Open(t.Context(), Body, "mail-1", changed, []byte("aad")); err == nil {
			t.Errorf("a box with byte %d changed was opened", i)
		}
	}
}

func TestForgettingDestroysExactlyTheKeysThatWereNamed(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		store := newMemory()
		k := open(t, store)
		keys := newKeyset()
		keys.step = rapid.SampledFrom([]uint8{narrowStep, wideStep}).Draw(rt, "step")
		if err := k.save(t.Context(), "a", keys, 0); err != nil {
			rt.Fatal(err)
		}
		a, _ := k.Account(t.Context(), "a")
		n := rapid.IntRange(1, 12).Draw(rt, "subjects")
		boxes := make([][]byte, n)
		leaves := make([][]byte, n)
		for i := range n {
			boxes[i], _ = a.Seal(Recipient, fmt.Sprint(i), []byte("x"), nil)
			leaves[i], _ = a.keys.key(Recipient, fmt.Sprint(i))
		}
		forgotten := rapid.SliceOfDistinct(rapid.IntRange(0, n-1), func(i int) int { return i }).Draw(rt, "forgotten")
		gone := map[int]bool{}
		for _, i := range forgotten {
			gone[i] = true
			if n, err := k.Forget(t.Context(), "a", Recipient, fmt.Sprint(i)); n != 1 || err != nil {
				rt.Fatal(err)
			}
		}
		after, err := k.Account(t.Context(), "a")
		if err != nil {
			rt.Fatal(err)
		}
		raw := after.keys.marshal()
		for i := range n {
			_, err := after.Open(t.Context(), Recipient, fmt.Sprint(i), boxes[i], nil)
			if gone[i] != errors.Is(err, ErrErased) || !gone[i] && err != nil {
				rt.Fatalf("subject %d, forgotten %v: %v", i, gone[i], err)
			}
			if !gone[i] {
				continue
			}
			// No seed on the path from the root to the leaf may be left.
			if bytes.Contains(raw, leaves[i]) {
				rt.Fatalf("the key of subject %d is still in the keyset", i)
			}
			path := leaf(fmt.Sprint(i))
			for _, node := range after.keys.trees[Recipient] {
				if node.covers(path) {
					rt.Fatalf("a seed above subject %d is still in the keyset", i)
				}
			}
		}
	})
}

// What was sealed before a change of the derivation opens after it: these are the
// keys that the first keysets made, and those that they make now.
func TestKeysStayAsTheyWere(t *testing.T) {
	for step, want := range map[uint8]string{
		narrowStep: "e441908ccc69b30a9d75764957b7d95920120a67dda0edcfacf9c5f6db837c5d",
		wideStep:   "da6c847758b59673047264beaa421d5b2e4634e3e4d8d6b79f415a58dc745918",
	} {
		k := newKeyset()
		k.step = step
		k.trees[Body][0].seed = [seedSize]byte{7}
		for _, forgotten := range []string{"", "another", "a third"} {
			k.forget(Body, forgotten)
			read, err := unmarshal(k.marshal())
			if err != nil {
				t.Fatal(err)
			}
			if key, err := read.key(Body, "mail"); err != nil || hex.EncodeToString(key) != want {
				t.Errorf("of step %d, without %q: %x, %v; want %s", step, forgotten, key, err, want)
			}
		}
	}
}

func TestTwoProcessesForgetAtTheSameTime(t *testing.T) {
	store := newMemory()
	one := open(t, store)
	two := New(store, one.root, Options{})
	if err := one.Create(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			k := one
			if i%2 == 1 {
				k = two
			}
			if _, err := k.Forget(context.Background(), "a", Body, fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	fresh := New(store, one.root, Options{})
	a, err := fresh.Account(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := a.Seal(Body, fmt.Sprint(i), nil, nil); !errors.Is(err, ErrErased) {
			t.Errorf("subject %d: %v, want ErrErased", i, err)
		}
	}
}

// What another process has destroyed is not left in the memory of one that is asked
// to destroy it too.
func TestWhatElsewhereWasForgottenIsForgottenHere(t *testing.T) {
	store := newMemory()
	here := open(t, store)
	there := New(store, here.root, Options{})
	for _, id := range []string{"a", "b"} {
		if err := here.Create(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if _, err := here.Account(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range []*Keyring{there, here} {
		if _, err := k.ForgetRecipient(t.Context(), "a", "ada", 0); err != nil {
			t.Fatal(err)
		}
		if _, err := k.ForgetAccount(t.Context(), "b"); err != nil {
			t.Fatal(err)
		}
	}
	a, err := here.Account(t.Context(), "a")
	if err != nil || a.Generation("ada") != 1 {
		t.Errorf("the recipient's key is in memory still, %v", err)
	}
	if _, err := here.Account(t.Context(), "b"); !errors.Is(err, ErrErased) {
		t.Errorf("the account's keys are in memory still: %v", err)
	}
}

func TestAKeysetCannotBePutInThePlaceOfAnother(t *testing.T) {
	store := newMemory()
	k := open(t, store)
	for _, id := range []string{"a", "b"} {
		if err := k.Create(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	store.blobs["a"] = store.blobs["b"]
	if _, err := k.Account(t.Context(), "a"); err == nil {
		t.Fatal("the keyset of another account was taken")
	}
}

func TestAnErasedAccountHasNoKeys(t *testing.T) {
	k := open(t, newMemory())
	if err := k.Create(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if had, err := k.ForgetAccount(t.Context(), "a"); !had || err != nil {
		t.Fatal(err)
	}
	if had, err := k.ForgetAccount(t.Context(), "a"); had || err != nil {
		t.Fatalf("again: %v, %v", had, err)
	}
	if err := k.Create(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Account(t.Context(), "a"); !errors.Is(err, ErrErased) {
		t.Fatalf("got %v, want ErrErased", err)
	}
}

func TestARootKeyThatOthersMayReadIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if _, err := OpenRoot(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("made with mode %v, %v", info.Mode(), err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenRoot(t.Context(), path); err == nil {
			t.Errorf("mode %o was taken", mode)
		}
	}
}

// A file is where its path says, also where an address would end or be decoded.
func TestARootKeyIsInTheFolderThatWasNamed(t *testing.T) {
	for _, prefix := range []string{"", "file:", "file://"} {
		path := filepath.Join(t.TempDir(), "mail #1:2 %25?", "root.key")
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenRoot(t.Context(), prefix+path); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestUnknownLocationsOfTheRootKeyAreRefused(t *testing.T) {
	for _, location := range []string{"aws-kms://key", "aws-kms:key", "vault+http://vault.example/v1/transit/k", "vault+https://host"} {
		if _, err := OpenRoot(t.Context(), location); err == nil {
			t.Errorf("%s was taken", location)
		}
	}
}

func FuzzKeyset(f *testing.F) {
	for _, step := range []uint8{narrowStep, wideStep} {
		k := newKeyset()
		k.step = step
		k.forget(Body, "x")
		f.Add(k.marshal())
		f.Add([]byte{step})
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := unmarshal(b)
		if err == nil && !bytes.Equal(k.marshal(), b) {
			t.Fatal("a keyset that was read is written differently")
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	k := open(b, newMemory())
	_ = k.Create(b.Context(), "a")
	a, _ := k.Account(b.Context(), "a")
	plain := make([]byte, 300)
	for b.Loop() {
		if _, err := a.Seal(Body, "mail", plain, nil); err != nil {
			b.Fatal(err)
		}
	}
}
