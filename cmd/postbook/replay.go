package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/forensics"
)

type replayCommand struct {
	At          string `required:"" placeholder:"TIME|EVENT" help:"As of when: a time (2026-01-09T04:47:00Z), \"now\", LOG/SEQUENCE, or the id of an event. What was stored up to then has happened."`
	To          string `placeholder:"TIME|EVENT" help:"Tell what changed from --at to here."`
	Account     string `help:"Only this account."`
	Aggregate   string `placeholder:"ACCOUNT.KIND.ID" help:"Only this aggregate: what had happened to it, and its state."`
	Email       string `help:"Only this email, by its id."`
	Emails      int    `default:"0" help:"List so many emails, the newest first. With --to: of those that changed, 20 if nothing is said."`
	AllEmails   bool   `help:"List all emails."`
	NoSnapshots bool   `help:"Read the log alone, from its beginning."`
}

// replayFolder is where snapshots for the replay are, in the data directory.
const replayFolder = "replay"

// Run shows how things were, or what changed between two points.
func (c replayCommand) Run(ctx context.Context, cfg Config, out output) error {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	replay, err := c.open(cfg, store)
	if err != nil {
		return err
	}
	if c.AllEmails {
		c.Emails = -1
	}
	begun := time.Now()
	at, err := replay.Resolve(ctx, c.At)
	if err != nil {
		return err
	}
	if of, ok, err := c.aggregate(); ok || err != nil {
		if err != nil {
			return err
		}
		return c.history(ctx, replay, at, of, out)
	}
	state, err := replay.At(ctx, at, c.Account)
	if err != nil {
		return err
	}
	if c.To == "" {
		if printed, err := out.object(replayed{state, state.Emails(c.Emails)}); printed {
			return err
		}
		out.state(state, c.Emails, time.Since(begun))
		return nil
	}
	to, err := replay.Resolve(ctx, c.To)
	if err != nil {
		return err
	}
	later, err := replay.At(ctx, to, c.Account)
	if err != nil {
		return err
	}
	most := cmp.Or(c.Emails, 20)
	if most < 0 {
		most = later.Numbers.Emails
	}
	d, err := replay.Diff(ctx, state, later, most)
	if errors.Is(err, forensics.ErrOrder) {
		return errors.New("--to lies before --at")
	}
	if err != nil {
		return err
	}
	if printed, err := out.object(d); printed {
		return err
	}
	out.difference(d, time.Since(begun))
	return nil
}

// open makes ready to replay, with snapshots where there is a key to make them with.
func (c replayCommand) open(cfg Config, store *eventstore.Store) (*forensics.Replay, error) {
	if err := cfg.settle(false); err != nil {
		return nil, err
	}
	if _, err := os.Stat(cfg.sealPath(markKeyFile)); err != nil || c.NoSnapshots {
		return forensics.NewReplay(store, nil), nil //nolint:nilerr // without the key there are no snapshots
	}
	key, err := markKey(cfg)
	if err != nil {
		return nil, err
	}
	return forensics.NewReplay(store, forensics.OpenSnapshots(cfg.path(replayFolder), key)), nil
}

// snapshotPause is how long the server waits before it looks again for stretches of
// the log that have no snapshot.
const snapshotPause = time.Minute

// startSnapshots makes snapshots for the replay as the log grows.
func (s *server) startSnapshots(ctx context.Context, group *errgroup.Group) {
	replay := forensics.NewReplay(s.store, forensics.OpenSnapshots(s.cfg.path(replayFolder), s.markKey))
	group.Go(func() error { return replay.KeepSnapshots(ctx, snapshotPause, s.log) })
}

// aggregate is the one that is asked for, if one is.
func (c replayCommand) aggregate() (of domain.Stream, asked bool, err error) {
	switch {
	case c.Email == "" && c.Aggregate == "":
		return of, false, nil
	case c.Email != "" && c.Aggregate != "", c.To != "", c.Account != "":
		return of, false, errors.New("--email and --aggregate are asked for alone, without --to and --account")
	case c.Email != "":
		id, err := uuid.Parse(c.Email)
		if err != nil {
			return of, false, fmt.Errorf("%q is not the id of an email", c.Email)
		}
		return domain.Stream{Kind: "email", ID: id.String()}, true, nil
	}
	parts := strings.Split(c.Aggregate, ".")
	if len(parts) != 3 {
		return of, false, fmt.Errorf("%q is not an aggregate: name it as ACCOUNT.KIND.ID", c.Aggregate)
	}
	return domain.Stream{Account: parts[0], Kind: parts[1], ID: parts[2]}, true, nil
}

// replayed is a state as JSON has it.
type replayed struct {
	*forensics.State
	Emails []forensics.Email `json:"emails"`
}

type replayedHistory struct {
	Point  forensics.Point `json:"point"`
	Of     string          `json:"aggregate"`
	State  any             `json:"state"`
	Events []line          `json:"events"`
}

func (c replayCommand) history(ctx context.Context, replay *forensics.Replay, at forensics.Point, of domain.Stream, out output) error {
	h, err := replay.Aggregate(ctx, at, of)
	if err != nil {
		return err
	}
	if len(h.Events) == 0 {
		return fmt.Errorf("as of %s nothing had happened to %s", at, cmp.Or(c.Email, c.Aggregate))
	}
	if out.json {
		lines := make([]line, len(h.Events))
		for i, rec := range h.Events {
			lines[i] = lineOf(rec)
		}
		_, err := out.object(replayedHistory{at, h.Of.String(), h.State, lines})
		return err
	}
	fmt.Printf("%s as of %s\n", h.Of, at)
	for _, rec := range h.Events {
		if err := out.event(rec); err != nil {
			return err
		}
	}
	data, err := json.Marshal(h.State)
	if err != nil {
		return err
	}
	fmt.Printf("state %s\n", data)
	return nil
}

// state prints how things were.
func (o output) state(s *forensics.State, emails int, took time.Duration) {
	at := s.Point.Time
	fmt.Printf("As of %s%s\n", s.Point, o.places(s.Point))
	n := s.Numbers
	if s.Of == "" {
		fmt.Printf("accounts  %d, %d blocked\n", n.Accounts, n.Blocked)
	} else if len(s.Accounts) == 0 {
		fmt.Printf("account   there was no account %s\n", s.Of)
	}
	for _, a := range s.Accounts {
		if a.Blocked || s.Of != "" {
			o.account(a, at)
		}
	}
	fmt.Printf("api keys  %d, domains %d, members %d\n", n.Keys, n.Domains, n.Members)
	if s.Of != "" {
		o.rows(s)
	}
	fmt.Printf("emails    %d%s\n", n.Emails, shares(n.ByLast, n.Emails))
	var lately []string
	for _, l := range n.Lately {
		lately = append(lately, fmt.Sprintf("%d in %s (%.2f/s)", l.Emails, l.Within, l.Rate))
	}
	fmt.Printf("accepted  %s\n", strings.Join(lately, ", "))
	fmt.Printf("requests  %d, commands refused %d\n", n.Requests, n.Refusals)
	for _, e := range s.Emails(emails) {
		fmt.Printf("  %s  %s  %-16s %s/%d\n", e.Created.Format(clock), e.ID, e.Last, e.Log, e.LastSeq)
	}
	o.work(s.Work, took)
}

func (o output) account(a forensics.Account, at time.Time) {
	verdict := "may send"
	if a.Blocked {
		verdict = fmt.Sprintf("BLOCKED for %s", a.BlockedFor)
		if b := a.Blocking; b != nil {
			verdict += fmt.Sprintf(" since %s (%s before), by %s via %s", b.Time.Format(clock), at.Sub(b.Time).Round(time.Second), b.Actor, b.Via)
			if b.Reason != "" {
				verdict += fmt.Sprintf(", %q", b.Reason)
			}
			verdict += fmt.Sprintf(", %s/%d", b.Log, b.Seq)
		}
	}
	if e := a.Erasing; e != nil {
		verdict = fmt.Sprintf("ERASED at %s, by %s via %s, %q, %s/%d: its keys and members are out", e.Time.Format(clock), e.Actor, e.Via, e.Reason, e.Log, e.Seq)
	}
	fmt.Printf("account   %s %q, opened %s: %s\n", a.ID, a.Name, a.OpenedAt.Format(clock), verdict)
}

func (o output) rows(s *forensics.State) {
	for _, k := range s.Keys {
		used := "never used"
		if k.Used != nil {
			used = fmt.Sprintf("used %d times, last %s", k.Used.Uses, k.Used.Last.Format(clock))
		}
		fmt.Printf("  key     %s %q %s…, %s, made %s, %s\n", k.ID, k.Name, k.Hint, k.Permission, k.CreatedAt.Format(clock), used)
	}
	for _, d := range s.Domains {
		fmt.Printf("  domain  %s %s, %s, added %s\n", d.ID, d.Name, d.Status, d.CreatedAt.Format(clock))
	}
	for _, m := range s.Members {
		fmt.Printf("  member  %s, %s, joined %s\n", m.ID, m.Role, m.Joined.Time.Format(clock))
	}
}

// shares lists counts with their share of all, the largest first.
func shares(counts map[string]int, all int) string {
	words := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Or(counts[b]-counts[a], cmp.Compare(a, b)) })
	var parts []string
	for _, w := range words {
		parts = append(parts, fmt.Sprintf("%d %s (%.1f%%)", counts[w], w, 100*float64(counts[w])/float64(all)))
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, ", ")
}

// places are the sequences that a point lies at.
func (o output) places(p forensics.Point) string {
	var parts []string
	for _, log := range slices.Sorted(maps.Keys(p.Heads)) {
		if seq := p.Heads[log]; seq > 0 {
			parts = append(parts, fmt.Sprintf("%s/%d", log, seq))
		}
	}
	if len(parts) == 0 {
		return ": before everything"
	}
	return ": up to " + strings.Join(parts, " ")
}

// work prints what an answer was made of.
func (o output) work(w forensics.Work, took time.Duration) {
	rate := ""
	if w.Entries > 1000 {
		rate = fmt.Sprintf(", %.0f a second", float64(w.Entries)/took.Seconds())
	}
	fmt.Printf("From %d snapshots and %d entries of the log in %s%s", w.Snapshots, w.Entries, took.Round(time.Millisecond), rate)
	if w.Written > 0 {
		fmt.Printf("; %d snapshots were made", w.Written)
	}
	fmt.Println(".")
	if w.Discarded > 0 {
		fmt.Printf("%d snapshots were not as they were written, and were thrown away.\n", w.Discarded)
	}
	for _, t := range w.Unreadable {
		fmt.Printf("LEFT OUT: %s/%d cannot be read: %s\n", t.Log, t.Seq, t.Error)
	}
}

// difference prints what changed.
func (o output) difference(d *forensics.Difference, took time.Duration) {
	fmt.Printf("From %s\nto   %s, %s later\n", d.From, d.To, d.To.Time.Sub(d.From.Time).Round(time.Millisecond))
	for _, n := range d.Numbers {
		fmt.Printf("  %-24s %10d → %-10d %+d, %.2f/s\n", n.Name, n.From, n.To, n.To-n.From, n.Rate)
	}
	for _, m := range d.Moves {
		fmt.Printf("  emails  %s → %s: %d\n", cmp.Or(m.From, "new"), m.To, m.Emails)
	}
	for _, c := range d.Changes {
		fmt.Printf("%s %s %s\n", c.Table, c.Key, c.Kind)
		for _, f := range c.Fields {
			fmt.Printf("    %-14s %s → %s\n", f.Name, short(f.From), short(f.To))
		}
		for _, e := range c.Events {
			why := ""
			if e.Reason != "" {
				why = fmt.Sprintf("  %q", e.Reason)
			}
			fmt.Printf("    by %s  %s/%d  %s  %s via %s  %s%s\n", e.Type, e.Log, e.Seq, e.Time.Format(clock), e.Actor, e.Via, e.ID, why)
		}
	}
	if d.More > 0 {
		fmt.Printf("and %d more emails: --all-emails lists all\n", d.More)
	}
	o.work(d.Work, took)
}

// short is a value that fits a line.
func short(v json.RawMessage) string {
	const most = 60
	if v == nil {
		return "nothing"
	}
	if s := []rune(string(v)); len(s) > most {
		return string(s[:most]) + "…"
	}
	return string(v)
}
