package eventstore

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"postbook.dev/postbook/domain"
)

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// put stores blobs and waits until they are on disk.
func put(t testing.TB, s *Store, blobs ...[]byte) []domain.ContentRef {
	t.Helper()
	refs, wait, err := s.PutContent(t.Context(), "acme", blobs)
	if err != nil {
		t.Fatal(err)
	}
	if err := wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(refs) != len(blobs) {
		t.Fatalf("%d references to %d blobs", len(refs), len(blobs))
	}
	return refs
}

func TestContent(t *testing.T) {
	t.Parallel()
	s := open(t)
	// Around the edges of a message, larger than one, and nothing at all.
	blobs := [][]byte{
		noise(3 << 20), noise(1), {}, noise(maxContent), noise(maxContent - 1), noise(maxContent + 1), {}, noise(2 * maxContent),
	}
	for i, ref := range put(t, s, blobs...) {
		got, err := s.Content(t.Context(), ref)
		if err != nil || !bytes.Equal(got, blobs[i]) || ref.Size != len(blobs[i]) {
			t.Errorf("blob %d of %d bytes reads %d bytes, %v", i, len(blobs[i]), len(got), err)
		}
	}
	if refs := put(t, s); len(refs) != 0 {
		t.Errorf("no blobs have the references %v", refs)
	}
	// The empty blob alone has a place, too.
	if got, err := s.Content(t.Context(), put(t, s, nil)[0]); err != nil || len(got) != 0 {
		t.Errorf("nothing reads %v, %v", got, err)
	}
}

// A batch of usual emails costs one message, not a hundred.
func TestContentIsPacked(t *testing.T) {
	t.Parallel()
	s := open(t)
	blobs := make([][]byte, 100)
	for i := range blobs {
		blobs[i] = noise(3000)
	}
	refs := put(t, s, blobs...)
	if head := must(s.Head(t.Context(), Content))(t); head != 1 {
		t.Errorf("100 blobs of 3 kB lie in %d messages, want 1", head)
	}
	for i, ref := range refs {
		if got, err := s.Content(t.Context(), ref); err != nil || !bytes.Equal(got, blobs[i]) {
			t.Errorf("blob %d: %v", i, err)
		}
	}
	put(t, s, noise(3<<20))
	if head := must(s.Head(t.Context(), Content))(t); head != 1+4 {
		t.Errorf("3 MiB lie in %d messages, want 4", head-1)
	}
}

// Whatever in a reference is not as it was, the blob is not returned.
func TestTamperedContent(t *testing.T) {
	t.Parallel()
	s := open(t)
	refs := put(t, s, noise(1000), noise(1000))
	for name, change := range map[string]func(*domain.ContentRef){
		"another blob":     func(r *domain.ContentRef) { r.Parts[0].Off += 1000 },
		"shifted":          func(r *domain.ContentRef) { r.Parts[0].Off++ },
		"shorter":          func(r *domain.ContentRef) { r.Parts[0].Len-- },
		"shorter, and so":  func(r *domain.ContentRef) { r.Parts[0].Len--; r.Size-- },
		"past the end":     func(r *domain.ContentRef) { r.Parts[0].Len = 1 << 40 },
		"before the start": func(r *domain.ContentRef) { r.Parts[0].Off = -1 },
		"negative":         func(r *domain.ContentRef) { r.Parts[0].Len = -1 },
		"overflow":         func(r *domain.ContentRef) { r.Parts[0].Off, r.Parts[0].Len = 1, int(^uint(0)>>1) },
		"another size":     func(r *domain.ContentRef) { r.Size = 1 << 60 },
		"negative size":    func(r *domain.ContentRef) { r.Size = -1 },
		"another hash":     func(r *domain.ContentRef) { r.SHA256 = refs[1].SHA256 },
		"no parts":         func(r *domain.ContentRef) { r.Parts = nil },
		"twice":            func(r *domain.ContentRef) { r.Parts = append(r.Parts, r.Parts...) },
	} {
		ref := refs[0]
		ref.Parts = append([]domain.ContentPart(nil), ref.Parts...)
		change(&ref)
		if got, err := s.Content(t.Context(), ref); err == nil {
			t.Errorf("%s: returned %d bytes", name, len(got))
		}
	}
	gone := refs[0]
	gone.Parts = []domain.ContentPart{{Seq: 99, Len: 1000}}
	if _, err := s.Content(t.Context(), gone); !errors.Is(err, ErrNoEntry) {
		t.Errorf("a message that is not there: %v, want ErrNoEntry", err)
	}
	if _, _, err := s.PutContent(t.Context(), "a.b", nil); err == nil {
		t.Error("stored for an account that cannot be")
	}
}
