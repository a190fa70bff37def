package projections_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/projections"
)

// The marks of a model's tables stay as they are while the projection writes to
// them, and differ as soon as anybody else has, in whichever table.
func TestMarksTellOfForeignWrites(t *testing.T) {
	w := newWorld(t)
	defer w.run(t)()
	rebuilder := w.rebuilder(t)
	marks := map[string]projections.Marks{}
	for _, m := range projections.Models {
		marks[m.Name] = must(rebuilder.Marks(t.Context(), m))(t)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.fill(t)
	}()
	for growing := true; growing; {
		select {
		case <-ended:
			growing = false
			w.await(t)
		case <-time.After(time.Millisecond):
		}
		for _, m := range projections.Models {
			now, err := rebuilder.Marks(t.Context(), m)
			if err == nil && now != marks[m.Name] {
				t.Fatalf("%s was marked %v, and only the projection wrote: now it is %v", m.Name, marks[m.Name], now)
			}
		}
	}

	w.more(t)
	w.await(t)
	for _, m := range projections.Models {
		for _, table := range m.Tables {
			for _, statement := range []string{
				fmt.Sprintf("update %[1]s set %[2]s = %[2]s where ctid = (select min(ctid) from %[1]s)", table, firstColumn(table)),
				fmt.Sprintf("delete from %[1]s where ctid = (select min(ctid) from %[1]s)", table),
				"truncate " + table,
			} {
				before := must(rebuilder.Marks(t.Context(), m))(t)
				// A session's counts are there when it ends, and in long ones within seconds.
				somebody := must(pgx.Connect(t.Context(), w.db.Owner))(t)
				must(somebody.Exec(t.Context(), statement))(t)
				must(0, somebody.Close(t.Context()))(t)
				testenv.Eventually(t, 20*time.Second, func() error {
					now, err := rebuilder.Marks(t.Context(), m)
					if err == nil && now == before {
						err = fmt.Errorf("nothing tells of %q", statement)
					}
					return err
				})
			}
		}
	}
}

func firstColumn(table string) string {
	if table == "api_key_usage" {
		return "key_id"
	}
	return "id"
}
