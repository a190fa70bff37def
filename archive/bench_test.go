package archive_test

import (
	"context"
	"testing"

	"postbook.dev/postbook/archive"
	"postbook.dev/postbook/eventstore"
)

// BenchmarkFollow is how fast a log is read in order: from the stream, and from
// segments.
func BenchmarkFollow(b *testing.B) {
	const entries = 100_000
	i := start(b)
	i.fill(b, entries)
	read := func(b *testing.B, undecoded bool, upTo uint64) {
		for b.Loop() {
			seen := 0
			err := i.store.Follow(b.Context(), eventstore.Following{Log: mail, StopAt: upTo, MaxBatch: 4000, Undecoded: undecoded}, func(_ context.Context, entries []eventstore.Entry) error {
				seen += len(entries)
				return nil
			})
			if err != nil || uint64(seen) != upTo {
				b.Fatal(seen, err)
			}
		}
		b.ReportMetric(float64(upTo)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	}
	large := func(c *archive.Config) { c.SegmentEntries, c.SegmentBytes, c.Spare = 20_000, 32<<20, 1000 }
	b.Run("stream, undecoded", func(b *testing.B) { read(b, true, entries) })
	b.Run("stream, decoded", func(b *testing.B) { read(b, false, entries) })
	i.pass(b, large)
	b.Run("verify, stream and archive", func(b *testing.B) {
		for b.Loop() {
			if r := i.verify(b, mail, i.live(b, mail)); !r.OK() {
				b.Fatal(r.Findings)
			}
		}
		b.ReportMetric(entries*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	})
	i.pass(b, trimming, large)
	st := must(i.store.Stats(b.Context(), mail))(b)
	if st.Hot < entries/2 {
		b.Fatalf("%+v", st)
	}
	b.Run("segments, undecoded", func(b *testing.B) { read(b, true, st.Hot-1) })
	b.Run("segments, decoded", func(b *testing.B) { read(b, false, st.Hot-1) })
	b.Run("one entry, at random", func(b *testing.B) {
		for n := uint64(0); b.Loop(); n++ {
			must(i.store.Read(b.Context(), mail, 1+(n*7919)%(st.Hot-1)))(b)
		}
	})
	b.Run("one entry, of the stream", func(b *testing.B) {
		for b.Loop() {
			must(i.store.Read(b.Context(), mail, entries))(b)
		}
	})
}
