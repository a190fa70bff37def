package eventstore

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// The bound of the disk: the same bytes, written and synced by nobody's
// leave.
func BenchmarkRawWrite(b *testing.B) {
	msg, _, err := encoder().encode("ledger.x", accepted(newEmail()))
	if err != nil {
		b.Fatal(err)
	}
	f := must(os.Create(filepath.Join(b.TempDir(), "raw")))(b)
	defer f.Close()
	for b.Loop() {
		must(f.Write(msg.Data))(b)
		if err := fdatasync(f); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	s := open(b)
	for b.Loop() {
		of := newEmail()
		must(s.Append(b.Context(), accepted(of), 0))(b)
	}
}

func benchmarkAppends(b *testing.B, goroutines int) {
	s := open(b)
	var left atomic.Int64
	left.Store(int64(b.N))
	ended := make(chan error, goroutines)
	b.ResetTimer()
	for range goroutines {
		go func() {
			for left.Add(-1) >= 0 {
				if _, err := s.Append(b.Context(), accepted(newEmail()), 0); err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
	}
	for range goroutines {
		if err := <-ended; err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
}

func BenchmarkAppend64(b *testing.B)  { benchmarkAppends(b, 64) }
func BenchmarkAppend256(b *testing.B) { benchmarkAppends(b, 256) }

func BenchmarkAccept100(b *testing.B) {
	s := open(b)
	for b.Loop() {
		commits := make([]Commit, 100)
		for i := range commits {
			commits[i] = accepted(newEmail())
		}
		must(s.Accept(b.Context(), commits))(b)
	}
}

func BenchmarkFollow(b *testing.B) {
	s := open(b, func(c *Config) { c.Durability = Interval; c.Partitions = 1 })
	const n = 100_000
	for range n / 1000 {
		commits := make([]Commit, 1000)
		for i := range commits {
			commits[i] = accepted(newEmail())
		}
		must(s.Accept(b.Context(), commits))(b)
	}
	for b.Loop() {
		err := s.Follow(b.Context(), Following{Log: MailLog(0), StopAt: n, MaxBatch: 5000}, func(context.Context, []Entry) error { return nil })
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
}
