package archive_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"postbook.dev/postbook/archive"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

// Whatever is done to the segments is found, and the first entry that it is about
// is named: where the stream has let go of the entries and where it has not, beside
// the server and while none runs, and by checking the segments alone.
func TestMeddlingWithSegmentsIsFound(t *testing.T) {
	t.Parallel()
	i := start(t)
	i.fill(t, 500)
	i.pass(t)
	i.pass(t, trimming) // up to 400: of the last segment there are two copies
	i.sealed(t, mail)
	live := i.live(t, mail)
	untouched := i.place
	for _, c := range []struct {
		name   string
		do     func(t *testing.T, segments []string)
		first  uint64 // the entry that is named
		atRest uint64 // the same at rest, if it differs: the block file still has what has left the stream
		held   bool   // at rest nothing is missing, for the same reason
		alone  uint64 // the same, where the segments are checked by themselves; 0 is not found
	}{
		{name: "a bit turned", first: 101, alone: 101, do: func(t *testing.T, s []string) { damage(t, s[1]) }},
		{name: "a bit turned in what the stream has too", first: 401, alone: 401, do: func(t *testing.T, s []string) { damage(t, s[4]) }},
		{name: "cut off", first: 101, alone: 101, do: func(t *testing.T, s []string) {
			must(0, os.Truncate(s[1], 10))(t)
		}},
		{name: "longer", first: 101, alone: 101, do: func(t *testing.T, s []string) {
			data := must(os.ReadFile(s[1]))(t)
			must(0, os.WriteFile(s[1], append(data, 0), 0o600))(t)
		}},
		{name: "removed", first: 201, alone: 201, do: func(t *testing.T, s []string) { must(0, os.Remove(s[2]))(t) }},
		{name: "removed with its manifest", first: 201, atRest: 301, alone: 301, do: func(t *testing.T, s []string) {
			must(0, os.Remove(s[2]))(t)
			must(0, os.Remove(manifestOf(s[2])))(t)
		}},
		{name: "the first removed", first: 1, atRest: 101, alone: 101, do: func(t *testing.T, s []string) {
			must(0, os.Remove(s[0]))(t)
			must(0, os.Remove(manifestOf(s[0])))(t)
		}},
		{name: "the last that left the stream removed, and all behind it", first: 301, held: true, alone: 0, do: func(t *testing.T, s []string) {
			for _, file := range s[3:] {
				must(0, os.Remove(file))(t)
				must(0, os.Remove(manifestOf(file)))(t)
			}
		}},
		{name: "two swapped", first: 1, alone: 1, do: func(t *testing.T, s []string) { swap(t, s[0], s[1]) }},
		{name: "two swapped with their manifests", first: 1, alone: 1, do: func(t *testing.T, s []string) {
			swap(t, s[0], s[1])
			swap(t, manifestOf(s[0]), manifestOf(s[1]))
		}},
		{name: "an entry changed, and all that the manifest says made to fit", first: 150, alone: 101, do: func(t *testing.T, s []string) { forge(t, s[1], 49) }},
		{name: "an entry changed that the stream has too", first: 450, alone: 401, do: func(t *testing.T, s []string) { forge(t, s[4], 49) }},
		{name: "a manifest that is none", first: 101, alone: 101, do: func(t *testing.T, s []string) {
			must(0, os.WriteFile(manifestOf(s[1]), []byte("{"), 0o600))(t)
		}},
		{name: "a manifest without its head", first: 0, alone: 101, do: func(t *testing.T, s []string) {
			change(t, manifestOf(s[1]), func(m *archive.Manifest) { m.Checkpoint, m.Proof = "", nil })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			i.place = filepath.Join(t.TempDir(), "copy")
			must(0, os.CopyFS(i.place, os.DirFS(untouched)))(t)
			c.do(t, i.files(t, mail, ".seg"))
			if c.atRest == 0 && !c.held {
				c.atRest = c.first
			}
			named(t, "live", c.first, i.verify(t, mail, live).Findings)
			named(t, "at rest", c.atRest, i.verify(t, mail, i.atRest(mail)).Findings)
			alone := must(archive.New(must(archive.Open(i.place))(t), i.keys.Instance).Check(t.Context(), mail, i.trusted(t)))(t)
			named(t, "by itself", c.alone, alone.Findings)
		})
	}
	i.place = untouched
	for where, stream := range map[string]notary.Sums{"live": live, "at rest": i.atRest(mail)} {
		named(t, where, 0, i.verify(t, mail, stream).Findings)
	}
}

// named checks that the first finding in the order of the log is about an entry.
func named(t *testing.T, where string, want uint64, found []seal.Finding) {
	t.Helper()
	var first uint64
	for _, f := range found {
		if f.Seq > 0 && (first == 0 || f.Seq < first) {
			first = f.Seq
		}
	}
	if first != want {
		t.Errorf("%s: the first entry that is named is %d, want %d: %v", where, first, want, found)
	}
}

func manifestOf(segment string) string { return strings.TrimSuffix(segment, ".seg") + ".json" }

func swap(t *testing.T, a, b string) {
	t.Helper()
	must(0, os.Rename(a, a+"~"))(t)
	must(0, os.Rename(b, a))(t)
	must(0, os.Rename(a+"~", b))(t)
}

func change(t *testing.T, file string, with func(*archive.Manifest)) {
	t.Helper()
	var m archive.Manifest
	must(0, json.Unmarshal(must(os.ReadFile(file))(t), &m))(t)
	with(&m)
	must(0, os.WriteFile(file, must(json.Marshal(m))(t), 0o600))(t)
}

// forge changes the nth entry of a segment as somebody does who knows the format,
// and makes the manifest fit: its sizes and its SHA-256.
func forge(t *testing.T, segment string, n int) {
	t.Helper()
	decoder := must(zstd.NewReader(nil))(t)
	defer decoder.Close()
	encoder := must(zstd.NewWriter(nil))(t)
	data := must(os.ReadFile(segment))(t)
	var made []byte
	change(t, manifestOf(segment), func(m *archive.Manifest) {
		for at, f := range m.Frames {
			raw := must(decoder.DecodeAll(data[f.Off:f.Off+f.Len], nil))(t)
			from, to := m.First+uint64(n), m.Last
			if at+1 < len(m.Frames) {
				to = m.Frames[at+1].First - 1
			}
			if f.First <= from && from <= to {
				// "email.accepted" of that entry, counted from the frame's first.
				place := 0
				for range from - f.First + 1 {
					place += bytes.Index(raw[place:], []byte(`"type":"email.accepted"`)) + 1
				}
				raw[place+10]++
			}
			start := len(made)
			made = encoder.EncodeAll(raw, made)
			m.Frames[at].Off, m.Frames[at].Len = int64(start), int64(len(made)-start)
		}
		m.Bytes = int64(len(made))
		m.SHA256 = sumOf(made)
	})
	must(0, os.WriteFile(segment, made, 0o600))(t)
}
