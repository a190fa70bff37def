package notary_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

// BenchmarkAccept is how fast emails are accepted, each on disk, with a notary
// and without one.
func BenchmarkAccept(b *testing.B) {
	for _, sealing := range []bool{false, true} {
		b.Run(map[bool]string{false: "alone", true: "sealed"}[sealing], func(b *testing.B) {
			dir := b.TempDir()
			mark := []byte("the platform's mark")
			store := must(eventstore.Open(b.Context(), eventstore.Config{Dir: filepath.Join(dir, "log"), MarkKey: mark, Registry: catalogue.Registry(), Log: quiet}))(b)
			defer store.Close()
			ctx, stop := context.WithCancel(b.Context())
			ended := make(chan error, 1)
			if sealing {
				notes := notary.New(notary.Config{
					Store: store, Dir: filepath.Join(dir, "seal"), Keys: must(seal.OpenKeys(filepath.Join(dir, "signing.keys"), time.Now()))(b),
					MarkKey: mark, Now: time.Now, Log: quiet, Found: func(_ context.Context, f seal.Finding) { b.Error(f) },
				})
				go func() { ended <- notes.Run(ctx) }()
			} else {
				ended <- nil
			}
			body := strings.Repeat("x", 300)
			var failed atomic.Pointer[error]
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := store.Accept(ctx, []eventstore.Commit{accept(body)}); err != nil {
						failed.Store(&err)
					}
				}
			})
			if err := failed.Load(); err != nil {
				b.Fatal(*err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
			stop()
			<-ended
		})
	}
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
