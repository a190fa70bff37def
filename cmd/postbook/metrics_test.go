package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"postbook.dev/postbook/internal/testenv"
)

// metrics are the values that GET /metrics answers, by name and labels.
func (i *instance) metrics(t *testing.T) map[string]float64 {
	t.Helper()
	token, err := os.ReadFile(filepath.Join(i.dir, metricsToken))
	if err != nil {
		t.Fatal(err)
	}
	r := i.ask("GET", "/metrics", nil, "Authorization", "Bearer "+strings.TrimSpace(string(token)))
	if r.status != 200 {
		t.Fatalf("metrics: %s", r)
	}
	values := map[string]float64{}
	for line := range strings.Lines(string(r.body)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if name += "}"; !ok {
			name, value, _ = strings.Cut(strings.TrimSpace(line), " ")
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	return values
}

// Metrics say what happens and whether anything is behind, to whoever has the
// token, and name no customer.
func TestMetrics(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.lastEvent(i.ask("POST", "/emails", hello("ada@rcpt.test")).id(t), "delivered")
	for _, token := range []string{"", "Bearer ", "Bearer " + i.facts.APIKey, "Bearer " + i.staff(0)} {
		if r := i.ask("GET", "/metrics", nil, "Authorization", token); r.status != 401 || strings.Contains(string(r.body), "postbook_") {
			t.Errorf("metrics with %.12q: %s", token, r)
		}
	}
	if info, err := os.Stat(filepath.Join(i.dir, metricsToken)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the token: %v, %v", info, err)
	}
	var values map[string]float64
	testenv.Eventually(t, 20*time.Second, func() error {
		values = i.metrics(t)
		for name, least := range map[string]float64{
			`postbook_events_total{type="email.accepted"}`:         1,
			`postbook_events_total{type="email.delivered"}`:        1,
			`postbook_append_seconds_count{log="MAIL"}`:            2,
			`postbook_append_seconds_count{log="LEDGER"}`:          1,
			`postbook_append_seconds_count{log="ACCESS"}`:          1,
			`postbook_log_entries{log="LEDGER"}`:                   3,
			`postbook_seal_entries{log="LEDGER"}`:                  3,
			`postbook_database_up`:                                 1,
			`process_resident_memory_bytes`:                        1 << 20,
			`postbook_append_seconds_bucket{log="MAIL",le="+Inf"}`: 2,
		} {
			if values[name] < least {
				return fmt.Errorf("%s is %v", name, values[name])
			}
		}
		for _, name := range []string{
			`postbook_projection_lag_entries{log="LEDGER",model="accounts"}`, `postbook_projection_lag_seconds{log="MAIL_00",model="emails"}`,
			`postbook_projection_stopped{log="MAIL_00",model="emails"}`, `postbook_seal_broken{log="MAIL_00"}`, `postbook_seal_witnessed_entries{log="MAIL_00"}`,
		} {
			if v, ok := values[name]; !ok || v != 0 {
				return fmt.Errorf("%s is %v, %v", name, v, ok)
			}
		}
		if age, ok := values[`postbook_seal_age_seconds{log="LEDGER"}`]; !ok || age < 0 || age > 90 {
			return fmt.Errorf("the seal's age is %v, %v", age, ok)
		}
		return nil
	})
	for name := range values {
		if strings.Contains(name, i.facts.AccountID) || strings.Contains(name, "rcpt.test") {
			t.Errorf("a metric names a customer: %s", name)
		}
	}
	if out, err := i.postbook("projections", "lag"); err != nil || !strings.Contains(out, "No read model is behind.") {
		t.Errorf("projections lag: %v\n%s", err, out)
	}

	// An entry that nobody can read stops one model on one log, and every surface
	// says so.
	nc, err := nats.Connect(i.facts.NATSURL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Request("mail.01."+i.facts.AccountID, []byte("no event"), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		values := i.metrics(t)
		if values[`postbook_projection_stopped{log="MAIL_01",model="emails"}`] != 1 || values[`postbook_projection_lag_entries{log="MAIL_01",model="emails"}`] != 1 {
			return fmt.Errorf("%v", values)
		}
		if values[`postbook_projection_stopped{log="MAIL_00",model="emails"}`] != 0 {
			return errors.New("another log's has stopped as well")
		}
		return nil
	})
	for _, command := range []string{"list", "lag"} {
		out, err := i.postbook("projections", command)
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out, "stopped") || !strings.Contains(out, "MAIL_01 ") {
			t.Errorf("projections %s: %v\n%s", command, err, out)
		}
	}
}
