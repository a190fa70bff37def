package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// The number of partitions is changed where no server runs: that is on record, once,
// and emails from before and after are both delivered.
func TestPartitionsAreChangedAtRest(t *testing.T) {
	t.Parallel()
	i := launch(t)
	before := i.ask("POST", "/emails", hello("ada@rcpt.test")).id(t)
	i.lastEvent(before, "delivered")
	i.stop()
	for range 2 { // the second time nothing changes
		if out, err := i.postbook("partitions", "7"); err != nil || !strings.Contains(out, "7") {
			t.Fatalf("change the number of partitions: %v\n%s", err, out)
		}
	}
	if out, err := i.postbook("verify", "--log"); err != nil {
		t.Errorf("before a server has run again: %v\n%s", err, out)
	}
	if out, err := i.postbook("backup", filepath.Join(t.TempDir(), "backup")); err != nil {
		t.Errorf("before a server has run again: %v\n%s", err, out)
	}
	i.start("--quiet")
	for n := range 7 {
		id := i.ask("POST", "/emails", hello(fmt.Sprintf("ada%d@rcpt.test", n))).id(t)
		i.lastEvent(id, "delivered")
	}
	i.lastEvent(before, "delivered")
	out, err := i.postbook("events", "show", "platform.partitioning.emails")
	if err != nil || strings.Count(out, "partitioning.changed") != 1 {
		t.Errorf("the change is on record %d times: %v\n%s", strings.Count(out, "partitioning.changed"), err, out)
	}
}
