package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postbook.dev/postbook/archive"
	"postbook.dev/postbook/internal/testenv"
)

// archived is what `archive list` says of each log.
func (i *instance) archived(t *testing.T) map[string]archive.Status {
	t.Helper()
	out, err := i.postbook("archive", "list", "--json")
	var all []archive.Status
	if err != nil || json.Unmarshal([]byte(out), &all) != nil {
		t.Fatalf("archive list: %v\n%s", err, out)
	}
	logs := map[string]archive.Status{}
	for _, st := range all {
		logs[st.Log] = st
	}
	return logs
}

// The process is killed at random moments while it takes in mail, archives and
// trims. Each segment is finished or written again, nothing is lost, and nothing is
// half: all that was accepted is in the log once, the seal holds, and the read
// models are what the log makes of them.
func TestKilledWhileArchiving(t *testing.T) {
	rounds := 3
	if os.Getenv("POSTBOOK_TEST_LONG") != "" {
		rounds = 50
	} else {
		t.Parallel()
	}
	place := t.TempDir()
	i := launch(t, "POSTBOOK_ARCHIVE="+place, "POSTBOOK_HOT_AGE=200ms", "POSTBOOK_HOT_SPARE=20")
	accepted := map[string]bool{}
	unanswered := 0
	for round := range rounds {
		ids, lost := i.loadUntilKilled(round, time.Duration(rand.IntN(2500))*time.Millisecond)
		for _, id := range ids {
			accepted[id] = true
		}
		unanswered += lost
		if round%3 == 0 {
			i.verified(t) // as it lies there after the kill
		}
		i.start("--quiet")
	}
	// The claims of the last start allow what came before it to go.
	testenv.Eventually(t, time.Minute, func() error {
		for log, st := range i.archived(t) {
			if strings.HasPrefix(log, "MAIL_") && (st.Hot == 1 || st.Segments == 0) {
				return fmt.Errorf("%+v", st)
			}
		}
		return nil
	})
	i.verified(t)
	out, err := i.postbook("events", "check", "--json")
	if err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"projections", "rebuild", "emails"}, {"verify", "--read-models"}} {
		if out, err := i.postbook(args...); err != nil {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
	i.stop()
	i.verified(t)
	held := outcomes(t, filepath.Join(i.dir, "log"))
	for id := range accepted {
		if _, ok := held[id]; !ok {
			t.Errorf("%s was accepted, and is neither in the stream nor in the archive", id)
		}
	}
	segments, err := filepath.Glob(filepath.Join(place, "*", "*", "MAIL_*", "*.json"))
	if err != nil || len(segments) < 4 {
		t.Errorf("there are %d segments of mail: %v", len(segments), err)
	}
	t.Logf("%d kills: %d mails accepted, %d requests without an answer, %d emails in the log, %d segments of mail", rounds, len(accepted), unanswered, len(held), len(segments))
}

// verified holds the log and the archive against the seal.
func (i *instance) verified(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"verify", "--log"}, {"archive", "verify"}} {
		if out, err := i.postbook(args...); err != nil {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
}
