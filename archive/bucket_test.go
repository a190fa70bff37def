package archive_test

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postbook.dev/postbook/archive"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
)

// The same holds in a directory and in a bucket.
func TestPlaces(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) string{
		"directory": func(t *testing.T) string { return "file://" + filepath.Join(t.TempDir(), "not", "there", "yet") },
		"bucket":    testenv.S3,
	} {
		t.Run(name, func(t *testing.T) {
			p := must(archive.Open(open(t)))(t)
			ctx := t.Context()
			if all, err := p.List(ctx, ""); err != nil || len(all) != 0 {
				t.Errorf("a new place has %v: %v", all, err)
			}
			data := bytes.Repeat([]byte("0123456789"), 700_000)
			for _, name := range []string{"a/b/2.seg", "a/b/1.seg", "a/bc/3.seg"} {
				must(0, p.Put(ctx, name, []byte("first")))(t)
				must(0, p.Put(ctx, name, data))(t)
			}
			for _, c := range []struct {
				off, n int64
				want   []byte
			}{{0, 7_000_000, data}, {0, 7_000_001, data}, {3, 4, []byte("3456")}, {6_999_998, 100, []byte("89")}} {
				if got := must(p.Get(ctx, "a/b/1.seg", c.off, c.n))(t); !bytes.Equal(got, c.want) {
					t.Errorf("%d bytes from %d on are %d bytes, and others", c.n, c.off, len(got))
				}
			}
			if _, err := p.Get(ctx, "a/b/4.seg", 0, 1); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what is not there is answered with %v", err)
			}
			all := must(p.List(ctx, "a/b/"))(t)
			if want := []archive.Object{{Name: "a/b/1.seg", Size: 7_000_000}, {Name: "a/b/2.seg", Size: 7_000_000}}; !slices.Equal(all, want) {
				t.Errorf("it lists %v", all)
			}
		})
	}
	for _, wrong := range []string{"http://place", "s3://", "s3://key:secret@bucket", "s3://bucket?secret=1"} {
		if _, err := archive.Open(wrong); err == nil {
			t.Errorf("%s is opened", wrong)
		}
	}
}

// Archiving, trimming, reading and verifying work with a bucket.
func TestArchiveInABucket(t *testing.T) {
	place := testenv.S3(t)
	i := start(t)
	i.close(t)
	i.place = place
	i.open(t)
	i.fill(t, 800)
	before := i.everything(t, eventstore.Following{Log: mail, Undecoded: true})
	i.pass(t, trimming)
	if st := must(i.store.Stats(t.Context(), mail))(t); st.Hot <= 500 {
		t.Errorf("the stream begins at %d", st.Hot)
	}
	if got := i.everything(t, eventstore.Following{Log: mail, Undecoded: true}); !slices.EqualFunc(got, before, same) {
		t.Errorf("%d entries, and they are not the %d there were", len(got), len(before))
	}
	if e := must(i.store.Read(t.Context(), mail, 17))(t); !strings.Contains(string(e.Raw), "email.accepted") {
		t.Errorf("17 is %s", e.Raw)
	}
	if r := i.verify(t, mail, i.live(t, mail)); !r.OK() {
		t.Error(r.Findings)
	}
	if r := must(i.held.Check(t.Context(), mail, i.trusted(t)))(t); !r.OK() || r.Sealed != r.Segments {
		t.Errorf("%+v", r)
	}
}
