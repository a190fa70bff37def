package eventstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postbook.dev/postbook/internal/testenv"
)

func TestSlateKeepsTheNewestValueAndWipesOffTheOthers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := t.TempDir()
	s := open(t, in(dir))
	l := must(s.Slate(ctx, Keysets))(t)
	if _, _, err := l.Get(ctx, "acme"); !errors.Is(err, ErrNoEntry) {
		t.Fatalf("an empty slate reads %v", err)
	}
	text := func(n int) []byte { return fmt.Appendf(nil, "a value that is to be wiped off, number %d;", n) }
	var rev uint64
	for n := range 5 {
		next := must(l.Update(ctx, "acme", text(n), rev))(t)
		if _, err := l.Update(ctx, "acme", []byte("late"), rev); !errors.Is(err, ErrConflict) {
			t.Fatalf("a late update gives %v, want ErrConflict", err)
		}
		rev = next
		must(l.Update(ctx, fmt.Sprint("other", n), []byte("bystander"), 0))(t)
	}
	if !bytes.Contains(onFile(t, s, Keysets), text(0)) {
		t.Fatal("the earlier value is not on disk: the test looks in the wrong place")
	}
	if err := l.Sweep(ctx, "acme", true); err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		if bytes.Contains(onFile(t, s, Keysets), text(n)) {
			t.Errorf("value %d is still in the block files", n)
		}
	}
	if v, at, err := l.Get(ctx, "acme"); err != nil || !bytes.Equal(v, text(4)) || at != rev {
		t.Errorf("reads %q at %d, %v", v, at, err)
	}
	if err := l.Delete(ctx, "acme", rev); err != nil {
		t.Fatal(err)
	}
	// The process ends before it has wiped the value off: the next one does.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, in(dir))
	l = must(s.Slate(ctx, Keysets))(t)
	if bytes.Contains(onFile(t, s, Keysets), text(4)) {
		t.Error("a deleted value is still in the block files after a restart")
	}
	if _, _, err := l.Get(ctx, "acme"); !errors.Is(err, ErrNoEntry) {
		t.Errorf("what was deleted reads %v", err)
	}
	if _, err := l.Update(ctx, "acme", text(9), 0); !errors.Is(err, ErrConflict) {
		t.Errorf("what was deleted is written again by somebody who does not know: %v", err)
	}
	for n := range 5 {
		if v, _, err := l.Get(ctx, fmt.Sprint("other", n)); err != nil || string(v) != "bystander" {
			t.Errorf("a bystander reads %q, %v", v, err)
		}
	}
	if keys := must(l.Keys(ctx))(t); len(keys) != 6 {
		t.Errorf("the keys are %v", keys)
	}
}

// A value may be larger than a message, and its parts are wiped off like it.
func TestSlateTakesLargeValues(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := open(t)
	l := must(s.Slate(ctx, Keysets))(t)
	large := func(fill string) []byte { return bytes.Repeat([]byte(fill), 2<<20/len(fill)) }
	rev := must(l.Update(ctx, "acme", large("to be wiped off "), 0))(t)
	rev = must(l.Update(ctx, "acme", large("the newest value"), rev))(t)
	if err := l.Sweep(ctx, "acme", true); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(onFile(t, s, Keysets), []byte("to be wiped off")) {
		t.Error("a part of the earlier value is still in the block files")
	}
	if v, at, err := l.Get(ctx, "acme"); err != nil || !bytes.Equal(v, large("the newest value")) || at != rev {
		t.Errorf("reads %d bytes at %d, %v", len(v), at, err)
	}
}

// Whatever is written, deleted and swept in whatever order, each key reads as it
// was left, and no earlier value is in any file after its sweep.
func TestSlateLaws(t *testing.T) {
	t.Parallel()
	s := open(t)
	l := must(s.Slate(t.Context(), Keysets))(t)
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		want := map[string]string{}
		revs := map[string]uint64{}
		var swept []string
		earlier := map[string][]string{}
		for n := range rapid.IntRange(1, 12).Draw(rt, "steps") {
			key := fmt.Sprint("k", round, rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "key"))
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0, 1:
				v := fmt.Sprintf("<value %d %d of %s>", round, n, key)
				rev, err := l.Update(t.Context(), key, []byte(v), revs[key])
				if err != nil {
					rt.Fatal(err)
				}
				if want[key] != "" {
					earlier[key] = append(earlier[key], want[key])
				}
				want[key], revs[key] = v, rev
			case 2:
				if revs[key] == 0 || want[key] == "" {
					continue
				}
				if err := l.Delete(t.Context(), key, revs[key]); err != nil {
					rt.Fatal(err)
				}
				earlier[key] = append(earlier[key], want[key])
				_, revs[key], _ = l.Get(t.Context(), key)
				want[key] = ""
			case 3:
				if err := l.Sweep(t.Context(), key, true); err != nil {
					rt.Fatal(err)
				}
				swept = append(swept, earlier[key]...)
			}
		}
		for key, v := range want {
			got, _, err := l.Get(t.Context(), key)
			if v == "" && !errors.Is(err, ErrNoEntry) || v != "" && (err != nil || string(got) != v) {
				rt.Fatalf("%s reads %q, %v; it was left as %q", key, got, err, v)
			}
		}
		files := onFile(t, s, Keysets)
		for _, v := range swept {
			if bytes.Contains(files, []byte(v)) {
				rt.Fatalf("%s is still in the block files", v)
			}
		}
	})
}

func TestSlateIsWatchedFromElsewhere(t *testing.T) {
	t.Parallel()
	host := open(t)
	elsewhere := open(t, func(c *Config) { c.URL = host.URL() })
	l, far := must(host.Slate(t.Context(), Keysets))(t), must(elsewhere.Slate(t.Context(), Keysets))(t)
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var heard []string
	ended := make(chan error, 1)
	go func() {
		ended <- far.Watch(ctx, func(key string) {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, key)
		})
	}()
	hears := func(key string) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return slices.Contains(heard, key)
		}
	}
	eventually(t, "the watch has begun, and says that anything may have changed", hears(""))
	rev := must(l.Update(t.Context(), "acme", []byte("one"), 0))(t)
	eventually(t, "the write is heard", hears("acme"))
	if err := l.Delete(t.Context(), "acme", rev); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := soon(t, "the watch ends", ended); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Who watches hears of each write, or that any may have been missed, also when the
// server is lost that told them of writes.
func TestSlateIsWatchedWhileServersAreLost(t *testing.T) {
	t.Parallel()
	c := testenv.StartNATSCluster(t)
	watching, writing := onCluster(t, c), onCluster(t, c)
	near, far := must(writing.Slate(t.Context(), Keysets))(t), must(watching.Slate(t.Context(), Keysets))(t)
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan string, 100)
	var ended sync.WaitGroup
	ended.Go(func() { _ = far.Watch(ctx, func(key string) { heard <- key }) })
	defer ended.Wait()
	defer cancel()
	if key := soon(t, "the watch begins", heard); key != "" {
		t.Fatalf("a watch begins with %q", key)
	}
	told := <-must(writing.stream(t.Context(), Keysets))(t).ListConsumers(t.Context()).Info()
	var node int
	if _, err := fmt.Sscanf(told.Cluster.Leader, "node-%d", &node); err != nil {
		t.Fatalf("the consumer is on %q: %v", told.Cluster.Leader, err)
	}
	c.Kill(node)
	testenv.Eventually(t, time.Minute, func() error {
		_, err := near.Update(t.Context(), "acme", []byte("one"), 0)
		if errors.Is(err, ErrUnavailable) {
			return err
		}
		return nil // an earlier try may have been written
	})
	soon(t, "the write is heard of", heard)
}

func TestSlateAdoptsABucket(t *testing.T) {
	t.Parallel()
	s := open(t)
	b := must(s.Bucket(t.Context(), "keysets"))(t)
	must(b.Put(t.Context(), "acme", []byte("kept")))(t)
	l := must(s.Slate(t.Context(), Keysets))(t)
	for range 2 { // the second time there is nothing to do
		if err := l.Adopt(t.Context(), "keysets"); err != nil {
			t.Fatal(err)
		}
	}
	if v, _, err := l.Get(t.Context(), "acme"); err != nil || string(v) != "kept" {
		t.Errorf("reads %q, %v", v, err)
	}
}
