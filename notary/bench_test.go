package notary_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

// BenchmarkSealing is what sealing takes of the pace at which emails are accepted, each on
// disk: two logs take turns, one that a notary seals and one that nobody does. A disk's
// pace changes so much that only many turns say anything; with TMPDIR in memory there is
// none, and what is left is the processors' part.
func BenchmarkSealing(b *testing.B) {
	const settle, count = 500 * time.Millisecond, 3 * time.Second
	ctx, stop := context.WithCancel(b.Context())
	var stores [2]*eventstore.Store
	mark := []byte("the platform's mark")
	for i := range stores {
		stores[i] = must(eventstore.Open(ctx, eventstore.Config{Dir: b.TempDir(), MarkKey: mark, Registry: catalogue.Registry(), Log: quiet}))(b)
		defer stores[i].Close()
	}
	dir := b.TempDir()
	notes := notary.New(notary.Config{
		Store: stores[1], Dir: dir, Keys: must(seal.OpenKeys(filepath.Join(dir, "signing.keys"), time.Now()))(b),
		MarkKey: mark, Now: time.Now, Log: quiet, Found: func(_ context.Context, f seal.Finding) { b.Error(f) },
	})
	ended := make(chan error, 1)
	go func() { ended <- notes.Run(ctx) }()
	defer func() {
		stop()
		<-ended
	}()
	body := strings.Repeat("x", 300)
	accepts := func(store *eventstore.Store, during time.Duration) float64 {
		begun, accepted := time.Now(), atomic.Int64{}
		var writers sync.WaitGroup
		for range 64 {
			writers.Go(func() {
				for time.Since(begun) < during {
					if _, err := store.Accept(ctx, []eventstore.Commit{accept(body)}); err != nil {
						b.Error(err)
						return
					}
					accepted.Add(1)
				}
			})
		}
		writers.Wait()
		return float64(accepted.Load()) / time.Since(begun).Seconds()
	}
	var paces [2][]float64
	for n := 0; b.Loop(); n++ {
		for turn := range 2 {
			which := (n + turn) % 2
			accepts(stores[which], settle)
			paces[which] = append(paces[which], accepts(stores[which], count))
			for _, log := range stores[1].MailLogs() { // what is left to seal falls into nobody's turn
				for head := must(stores[1].Head(ctx, log))(b); ; time.Sleep(10 * time.Millisecond) {
					if sealedUpTo(notes, log) >= int64(head) {
						break
					}
				}
			}
		}
	}
	median := func(of []float64) float64 {
		slices.Sort(of)
		return of[len(of)/2]
	}
	ratios := make([]float64, len(paces[0]))
	for n, alone := range paces[0] {
		ratios[n] = paces[1][n] / alone
		b.Logf("%.0f/s alone, %.0f/s sealed", alone, paces[1][n])
	}
	b.ReportMetric(median(ratios), "sealed/alone")
	b.ReportMetric(median(paces[0]), "alone/s")
	b.ReportMetric(median(paces[1]), "sealed/s")
}

// sealedUpTo is the last entry of a log that a head covers.
func sealedUpTo(notes *notary.Notary, log string) int64 {
	for _, s := range notes.Status() {
		if s.Log == log {
			return s.Size
		}
	}
	return 0
}

// BenchmarkVerify is how fast a log at rest is held against its seal.
func BenchmarkVerify(b *testing.B) {
	i := sealed(b, b.TempDir(), must(seal.OpenKeys(filepath.Join(b.TempDir(), "signing.keys"), time.Now()))(b), 20_000)
	var size int64
	for _, e := range must(os.ReadDir(i.blocks()))(b) {
		size += must(e.Info())(b).Size()
	}
	b.SetBytes(size)
	for b.Loop() {
		if r := i.verify(b); !r.OK() {
			b.Fatal(r.Findings)
		}
	}
	b.ReportMetric(20_000*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
