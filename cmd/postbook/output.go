package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"postbook.dev/postbook/domain"
)

// clock is how points in time are printed: in UTC, and as they can be asked for.
const clock = "2006-01-02T15:04:05.000Z07:00"

// output prints for people, or for programs.
type output struct{ json bool }

// object prints v as a line of JSON, and reports whether it did.
func (o output) object(v any) (bool, error) {
	if !o.json {
		return false, nil
	}
	return true, json.NewEncoder(os.Stdout).Encode(v)
}

// table prints rows under headings.
func (o output) table(headings []string, rows [][]string) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(headings, "\t"))
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// line is an event as the command line shows it.
type line struct {
	ID        string            `json:"id"`
	Log       string            `json:"log"`
	Seq       uint64            `json:"seq"`
	Time      time.Time         `json:"time"`
	Type      string            `json:"type"`
	Version   int               `json:"version"`
	Subject   string            `json:"subject"`
	Actor     string            `json:"actor"`
	Role      domain.Role       `json:"role,omitempty"`
	Via       domain.Via        `json:"via"`
	IP        string            `json:"ip,omitempty"`
	Auth      domain.Strength   `json:"auth"`
	Reason    string            `json:"reason,omitempty"`
	Approvals []domain.Approval `json:"approvals,omitempty"`
	Caused    string            `json:"causation,omitempty"`
	Data      domain.Event      `json:"data"`
}

func lineOf(rec domain.Recorded) line {
	return line{
		rec.ID.String(), rec.Log, rec.Seq, rec.Time, rec.Type, rec.Version, rec.Stream.String(), rec.By.Actor.String(),
		rec.By.Role, rec.By.Via, rec.By.IP, rec.By.Auth, rec.By.Reason, rec.By.Approvals, rec.By.Causation.String(), rec.Event,
	}
}

// event prints one event.
func (o output) event(rec domain.Recorded) error {
	if done, err := o.object(lineOf(rec)); done {
		return err
	}
	why := ""
	if rec.By.Reason != "" {
		why = fmt.Sprintf("  %q", rec.By.Reason)
	}
	from := ""
	if rec.By.IP != "" {
		from = " from " + rec.By.IP
	}
	_, err := fmt.Printf("%s  %-8s %8d  %-28s %s  by %s via %s%s (%s)%s\n", rec.Time.UTC().Format(clock), rec.Log, rec.Seq, rec.Type, rec.Stream, rec.By.Actor, rec.By.Via, from, rec.By.Auth, why)
	return err
}
