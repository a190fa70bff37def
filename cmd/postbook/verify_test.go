package main

import (
	"testing"
	"testing/synctest"
	"time"

	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

// A server of a cluster that was cut off misses what was written since, for some
// seconds. That is no alarm; what lasts is one, and what one's own log says is at once.
func TestWhatAClusterSaysHasToLast(t *testing.T) {
	missing := &seal.Report{Findings: []seal.Finding{{Log: "LEDGER", Seq: 7}}}
	for _, c := range []struct {
		name  string
		in    reading
		until time.Duration // from when on the log is as it was sealed; 0 is never
		sound bool
		took  time.Duration
	}{
		{"cut off for some seconds", reading{heads: &eventstore.Bucket{}}, 8 * time.Second, true, 10 * time.Second},
		{"rewritten", reading{heads: &eventstore.Bucket{}}, 0, false, believedAfter},
		{"one's own", reading{}, 8 * time.Second, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				report, err := c.in.believed(t.Context(), func() (*seal.Report, error) {
					if c.until > 0 && time.Since(begun) >= c.until {
						return &seal.Report{}, nil
					}
					return missing, nil
				})
				if err != nil || report.OK() != c.sound || time.Since(begun) != c.took {
					t.Errorf("sound is %v, %v, after %s", report.OK(), err, time.Since(begun))
				}
			})
		})
	}
}
