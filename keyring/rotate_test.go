package keyring

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// rotate replaces the root key, as a process that does nothing else.
func rotate(t testing.TB, store Store, path string) {
	t.Helper()
	root, err := OpenRoot(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	_, to, err := root.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := root.Switch(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if _, err := New(store, root, Options{}).Rewrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := root.Retire(t.Context(), to); err != nil {
		t.Fatal(err)
	}
}

// While the root key is replaced again and again, other processes make accounts,
// forget people, seal and open, and nothing fails or is lost.
func TestTheRootKeyIsReplacedUnderLoad(t *testing.T) {
	store := newMemory()
	path := filepath.Join(t.TempDir(), "root.key")
	root, err := OpenRoot(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var boxes sync.Map
	var all sync.WaitGroup
	for w := range 3 {
		all.Go(func() {
			// Each works with what it has in memory, as a process of its own would.
			mine, err := OpenRoot(t.Context(), path)
			if err != nil {
				t.Error(err)
				return
			}
			for n := range 60 {
				k := New(store, mine, Options{})
				id := fmt.Sprintf("%d-%d", w, n)
				if err := k.Create(t.Context(), id); err != nil {
					t.Errorf("create %s: %v", id, err)
					return
				}
				a, err := k.Account(t.Context(), id)
				if err != nil {
					t.Errorf("open %s: %v", id, err)
					return
				}
				box, err := a.Seal(Recipient, "ada", []byte("x"), nil)
				if err != nil {
					t.Error(err)
					return
				}
				boxes.Store(id, box)
				if _, err := k.Forget(t.Context(), id, Secret, "old"); err != nil {
					t.Errorf("forget in %s: %v", id, err)
					return
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		all.Wait()
		close(ended)
	}()
	for working := true; working; {
		rotate(t, store, path)
		select {
		case <-ended:
			working = false
		default:
		}
	}
	k := New(store, root, Options{}) // opened before any of it
	count := 0
	boxes.Range(func(id, box any) bool {
		count++
		a, err := k.Account(t.Context(), id.(string))
		if err != nil {
			t.Errorf("the keys of %s are lost: %v", id, err)
			return true
		}
		if _, err := a.Open(t.Context(), Recipient, "ada", box.([]byte), nil); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		return true
	})
	if count != 3*60 {
		t.Errorf("%d accounts were made", count)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 1 {
		t.Errorf("beside the key there are %v", files)
	}
	if now, err := os.ReadFile(path); err != nil || bytes.Equal(now, first) {
		t.Errorf("the key is the first one still, %v", err)
	}
}

// The older key is overwritten where it lay: a name that still leads there finds
// noise.
func TestTheOlderRootKeyIsOverwritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if _, err := OpenRoot(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := path + "-by-another-name"
	if err := os.Link(path, other); err != nil {
		t.Fatal(err)
	}
	rotate(t, newMemory(), path)
	if now, err := os.ReadFile(other); err != nil || bytes.Equal(now, old) {
		t.Errorf("the older key is still on disk, %v", err)
	}
}

// What a process that was killed while it made a key has left can be a second name
// of the key that is in use. It is never written through, and goes with the key.
func TestAKeyThatIsInUseIsNotWrittenOver(t *testing.T) {
	store := newMemory()
	path := filepath.Join(t.TempDir(), "root.key")
	k := New(store, mustRoot(t, path), Options{})
	if err := k.Create(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{".next.part", ".next.123.part"} {
		if err := os.Link(path, path+left); err != nil {
			t.Fatal(err)
		}
	}
	r := mustRoot(t, path)
	if _, _, err := r.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := New(store, mustRoot(t, path), Options{}).Account(t.Context(), "acme"); err != nil {
		t.Errorf("the key that is in use was written over: %v", err)
	}
	rotate(t, store, path)
	if files, _ := filepath.Glob(path + "*"); len(files) != 1 {
		t.Errorf("beside the key there are %v", files)
	}
}

// Who reads the same file sees the next key from when it is made, and who has a copy
// does not.
func TestWhoSeesTheNextKey(t *testing.T) {
	path, elsewhere := filepath.Join(t.TempDir(), "root.key"), filepath.Join(t.TempDir(), "root.key")
	root := mustRoot(t, path)
	key, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(elsewhere, key, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	beside, copied := mustRoot(t, path), mustRoot(t, elsewhere)
	_, to, err := root.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []func() error{
		func() error { return nil },
		func() error { return root.Switch(t.Context(), to) },
		func() error { return root.Retire(t.Context(), to) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		if sees, err := beside.Sees(t.Context(), to); err != nil || !sees {
			t.Errorf("beside: %v, %v", sees, err)
		}
		if sees, err := copied.Sees(t.Context(), to); err != nil || sees {
			t.Errorf("with a copy: %v, %v", sees, err)
		}
	}
}

// Wherever a rotation is interrupted, it can be taken up again by somebody who knows
// which key was to be the newest, and every keyset opens meanwhile.
func TestAnInterruptedRotationIsTakenUpAgain(t *testing.T) {
	for stop := range 6 {
		store := newMemory()
		path := filepath.Join(t.TempDir(), "root.key")
		k := New(store, mustRoot(t, path), Options{})
		for n := range 3 {
			if err := k.Create(t.Context(), fmt.Sprint(n)); err != nil {
				t.Fatal(err)
			}
		}
		to := ""
		steps := []func(Root) error{
			func(r Root) (err error) { _, to, err = r.Next(t.Context()); return err },
			func(Root) error { return os.Link(path, path+".previous") }, // half of Switch
			func(r Root) error { return r.Switch(t.Context(), to) },
			func(r Root) error { _, err := New(store, r, Options{}).rewrap(t.Context(), "1"); return err }, // a third of Rewrap
			func(r Root) error { _, err := New(store, r, Options{}).Rewrap(t.Context()); return err },
			func(r Root) error { return r.Retire(t.Context(), to) },
		}
		for _, step := range steps[:stop+1] {
			if err := step(mustRoot(t, path)); err != nil {
				t.Fatal(err)
			}
		}
		opens := func(when string) {
			fresh := New(store, mustRoot(t, path), Options{})
			for n := range 3 {
				if _, err := fresh.Account(t.Context(), fmt.Sprint(n)); err != nil {
					t.Errorf("stopped after step %d, %s: %v", stop, when, err)
				}
			}
		}
		opens("before it is taken up")
		r := mustRoot(t, path)
		if err := r.Switch(t.Context(), to); err != nil {
			t.Fatalf("stopped after step %d: %v", stop, err)
		}
		if n, err := New(store, r, Options{}).Rewrap(t.Context()); n != 3 || err != nil {
			t.Fatalf("stopped after step %d: %d keysets, %v", stop, n, err)
		}
		if err := r.Retire(t.Context(), to); err != nil {
			t.Fatalf("stopped after step %d: %v", stop, err)
		}
		opens("after it was taken up")
		if files, _ := filepath.Glob(path + "*"); len(files) != 1 {
			t.Errorf("stopped after step %d: beside the key there are %v", stop, files)
		}
	}
}

func mustRoot(t testing.TB, path string) Root {
	t.Helper()
	root, err := OpenRoot(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	return root
}
