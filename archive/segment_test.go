package archive

import (
	"bytes"
	"encoding/json"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/eventstore"
)

// written makes a segment, and the manifest that is read back.
func written(t interface{ Fatal(...any) }, entries []eventstore.Entry) (*Manifest, []byte) {
	w := &writer{manifest: Manifest{Log: "MAIL_00", Origin: "postbook/test/MAIL_00"}}
	for _, e := range entries {
		w.add(e)
	}
	w.finish()
	text, err := json.Marshal(w.manifest)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseManifest(text)
	if err != nil {
		t.Fatal(err)
	}
	return m, w.data
}

// Whatever the entries are, they come back as they were, and each has a frame of
// its own to be found in.
func TestSegmentsKeepEntriesAsTheyAre(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint64Range(1, 1<<50).Draw(t, "first")
		large := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "body")
		var entries []eventstore.Entry
		for n := range rapid.IntRange(1, 40).Draw(t, "count") {
			entries = append(entries, eventstore.Entry{
				Position: domain.Position{Log: "MAIL_00", Seq: first + uint64(n)},
				Time:     time.Unix(0, rapid.Int64().Draw(t, "time")).UTC(),
				Subject:  rapid.String().Draw(t, "subject"),
				Header:   rapid.SliceOf(rapid.Byte()).Draw(t, "header"),
				Raw:      bytes.Repeat(large, rapid.IntRange(0, 2000).Draw(t, "times")),
			})
		}
		m, data := written(t, entries)
		for n, f := range m.Frames {
			read, err := m.readFrame(n, data[f.Off:f.Off+f.Len])
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range read {
				want := entries[e.Seq-first]
				if m.frameOf(e.Seq) != n {
					t.Fatalf("%d is looked for in frame %d, and lies in %d", e.Seq, m.frameOf(e.Seq), n)
				}
				if e.Position != want.Position || !e.Time.Equal(want.Time) || e.Subject != want.Subject || !bytes.Equal(e.Header, want.Header) || !bytes.Equal(e.Raw, want.Raw) {
					t.Fatalf("%d is not what it was", e.Seq)
				}
			}
		}
		if m.First != first || m.Last != first+uint64(len(entries))-1 {
			t.Fatalf("the manifest says %d to %d", m.First, m.Last)
		}
	})
}

// A frame that would unpack to far more than it says needs no memory for that.
func TestBombsDoNotUnpack(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := encoder.EncodeAll(make([]byte, 128<<20), nil)
	m := &Manifest{Log: "MAIL_00", First: 1, Last: 1, Frames: []Frame{{First: 1, Len: int64(len(bomb)), Raw: 1000}}}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := m.readFrame(0, bomb); err == nil {
		t.Error("128 MB were unpacked")
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
		t.Errorf("it took %d MB", used>>20)
	}
}

func FuzzRecords(f *testing.F) {
	good := appendRecord(nil, eventstore.Entry{Position: domain.Position{Seq: 5}, Subject: "mail.00.acme", Header: []byte("A: b\n"), Raw: []byte("[]")})
	f.Add(good)
	f.Add(append(bytes.Clone(good), good...))
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, raw []byte) {
		entries, err := parseRecords("MAIL_00", bytes.Clone(raw), 5)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			again = appendRecord(again, e)
		}
		if !bytes.Equal(again, raw) {
			t.Errorf("%q is read as %q", raw, again)
		}
	})
}

func FuzzManifest(f *testing.F) {
	m, data := written(f, []eventstore.Entry{{Position: domain.Position{Seq: 5}, Raw: []byte("a")}, {Position: domain.Position{Seq: 6}, Raw: bytes.Repeat([]byte("b"), frameSize)}, {Position: domain.Position{Seq: 7}}})
	text, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, data)
	f.Add([]byte(strings.Replace(string(text), `"off":0`, `"off":-4`, 1)), data)
	f.Fuzz(func(t *testing.T, text, data []byte) {
		m, err := parseManifest(text)
		if err != nil {
			return
		}
		last := m.First - 1
		for _, s := range m.sums(data, nil) { // reads nothing that is not there
			if s.Seq <= last || s.Seq > m.Last {
				t.Errorf("%d comes after %d, and %d is the last", s.Seq, last, m.Last)
			}
			last = s.Seq
		}
		if seq := m.First + (m.Last-m.First)/2; m.Frames[m.frameOf(seq)].First > seq {
			t.Errorf("%d is looked for in a frame that begins behind it", seq)
		}
	})
}
