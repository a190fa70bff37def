package main

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/internal/testenv"
)

// A row that somebody edits, of a small table or of a large one, is found by the
// server itself within a minute, is an event, and can be put back.
func TestAnEditedRowIsFoundByItself(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.lastEvent(i.ask("POST", "/emails", hello("old@rcpt.test")).id(t), "delivered")
	i.lastEvent(i.ask("POST", "/emails", hello("new@rcpt.test")).id(t), "delivered")
	if out, err := i.postbook("verify"); err != nil || strings.Contains(out, "NOT") {
		t.Fatalf("before anything was changed: %v\n%s", err, out)
	}
	db, err := pgx.Connect(t.Context(), i.facts.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	if _, err := db.Exec(t.Context(), "update accounts set blocked = true, name = 'Mallory'; update emails set last_event = 'bounced' where created_at = (select min(created_at) from emails)"); err != nil {
		t.Fatal(err)
	}
	for model, field := range map[string]string{"accounts": `"blocked"`, "emails": `"last_event"`} {
		testenv.Eventually(t, time.Minute, func() error {
			out, err := i.postbook("events", "show", "platform.readmodel."+model)
			if err != nil || !strings.Contains(out, "readmodel.drifted") || !strings.Contains(out, field) || strings.Contains(out, "Mallory") {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	// Whoever puts the row back, and edits it in the same way once more, is found once more.
	for _, step := range []struct {
		sql  string
		want []string
	}{
		{"update accounts set blocked = false, name = 'Development'", []string{"drifted", "cleared"}},
		{"update accounts set blocked = true, name = 'Mallory'", []string{"drifted", "cleared", "drifted"}},
	} {
		if _, err := db.Exec(t.Context(), step.sql); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, time.Minute, func() error {
			out, err := i.postbook("events", "show", "platform.readmodel.accounts")
			var got []string
			for _, m := range regexp.MustCompile(`readmodel\.(drifted|cleared|repaired)`).FindAllStringSubmatch(out, -1) {
				got = append(got, m[1])
			}
			if err != nil || !slices.Equal(got, step.want) {
				return fmt.Errorf("after %q there is %v: %v", step.sql, got, err)
			}
			return nil
		})
	}
	out, err := i.postbook("verify", "--read-models", "--repair")
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || !strings.Contains(out, `name is "Mallory", and the log says "Development"`) || !strings.Contains(out, "put back") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	if out, err := i.postbook("verify", "--read-models"); err != nil {
		t.Errorf("after the repair: %v\n%s", err, out)
	}
	i.stop()
	if out, err := i.postbook("verify", "--fresh"); err != nil {
		t.Errorf("without a server: %v\n%s", err, out)
	}
}

// A read model that stands still may be as the log makes it up to there: it is not
// said to be right.
func TestAReadModelThatStandsStillIsNotSound(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.lastEvent(i.ask("POST", "/emails", hello("one@rcpt.test")).id(t), "delivered")
	db := i.database(t)
	defer db.Close()
	if out, err := i.postbook("verify", "--read-models", "--model", "emails"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := db.Exec(t.Context(), "update checkpoints set error = 'it cannot be read' where model = 'emails' and log = 'MAIL_03'"); err != nil {
		t.Fatal(err)
	}
	out, err := i.postbook("verify", "--read-models", "--model", "emails")
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out, "it stands still after MAIL_03") {
		t.Errorf("%v\n%s", err, out)
	}
}
