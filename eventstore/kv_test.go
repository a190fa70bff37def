package eventstore

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

func TestBucket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, in(dir))
	ctx := t.Context()
	b := must(s.Bucket(ctx, "keysets"))(t)

	if _, _, err := b.Get(ctx, "acme"); !errors.Is(err, ErrNoEntry) {
		t.Errorf("nothing reads %v, want ErrNoEntry", err)
	}
	if keys := must(b.Keys(ctx))(t); len(keys) != 0 {
		t.Errorf("an empty bucket has the keys %v", keys)
	}
	one := must(b.Update(ctx, "acme", []byte("one"), 0))(t)
	if _, err := b.Update(ctx, "acme", []byte("mine"), 0); !errors.Is(err, ErrConflict) {
		t.Errorf("created a second time: %v, want ErrConflict", err)
	}
	two := must(b.Update(ctx, "acme", []byte("two"), one))(t)
	if _, err := b.Update(ctx, "acme", []byte("mine"), one); !errors.Is(err, ErrConflict) {
		t.Errorf("updated from an old revision: %v, want ErrConflict", err)
	}
	three := must(b.Put(ctx, "acme", []byte("three")))(t)
	if three <= two || two <= one {
		t.Errorf("the revisions are %d, %d, %d", one, two, three)
	}
	must(b.Put(ctx, "globex", []byte("other")))(t)
	if v, rev, err := b.Get(ctx, "acme"); err != nil || string(v) != "three" || rev != three {
		t.Errorf("reads %q at %d, %v", v, rev, err)
	}
	keys := must(b.Keys(ctx))(t)
	if slices.Sort(keys); !reflect.DeepEqual(keys, []string{"acme", "globex"}) {
		t.Errorf("the keys are %v", keys)
	}

	if err := b.Delete(ctx, "acme", two); !errors.Is(err, ErrConflict) {
		t.Errorf("an old revision was deleted: %v, want ErrConflict", err)
	}
	if err := b.Delete(ctx, "acme", three); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Get(ctx, "acme"); !errors.Is(err, ErrNoEntry) {
		t.Errorf("what was deleted reads %v, want ErrNoEntry", err)
	}
	if keys := must(b.Keys(ctx))(t); !reflect.DeepEqual(keys, []string{"globex"}) {
		t.Errorf("the keys are %v", keys)
	}
	// No call of the server's returns an old value either.
	stream := must(s.stream(ctx, "KV_keysets"))(t)
	last := must(stream.Info(ctx))(t).State.LastSeq
	for seq := uint64(1); seq <= last; seq++ {
		m, err := stream.GetMsg(ctx, seq)
		if err == nil && m.Subject == "$KV.keysets.acme" && len(m.Data) > 0 {
			t.Errorf("%d still holds %q", seq, m.Data)
		} else if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			t.Error(err)
		}
	}
	// A forgotten key can be used again.
	again := must(b.Update(ctx, "acme", []byte("new"), 0))(t)

	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b = must(open(t, in(dir)).Bucket(ctx, "keysets"))(t)
	if v, rev, err := b.Get(ctx, "acme"); err != nil || string(v) != "new" || rev != again {
		t.Errorf("after a restart reads %q at %d, %v", v, rev, err)
	}
	large := bytes.Repeat([]byte{7}, maxMessage/2)
	must(b.Put(ctx, "large", large))(t)
	if v, _, err := b.Get(ctx, "large"); err != nil || !bytes.Equal(v, large) {
		t.Errorf("512 KiB read %d bytes, %v", len(v), err)
	}
}

// Many count up one number: none of the counts is lost.
func TestBucketUpdatesAreNotLost(t *testing.T) {
	t.Parallel()
	s := open(t)
	b := must(s.Bucket(t.Context(), "counts"))(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for done := 0; done < 10; {
				v, rev, err := b.Get(t.Context(), "n")
				if err != nil && !errors.Is(err, ErrNoEntry) {
					t.Error(err)
					return
				}
				n, _ := strconv.Atoi(string(v)) // nothing is 0
				_, err = b.Update(t.Context(), "n", []byte(strconv.Itoa(n+1)), rev)
				if err == nil {
					done++
				} else if !errors.Is(err, ErrConflict) {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if v, _, err := b.Get(t.Context(), "n"); err != nil || string(v) != "80" {
		t.Errorf("80 counts make %q, %v", v, err)
	}
}
