package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

type verifyCommand struct {
	Log         bool     `help:"Hold every entry of the logs against the seal."`
	ReadModels  bool     `help:"Hold every row of the read models against what the log makes of them."`
	Model       []string `help:"Only these read models."`
	Fresh       bool     `help:"Replay the whole log for the read models, instead of keeping what an earlier look has replayed, which lies in the same database."`
	Repair      bool     `help:"Put rows of read models back, after what was found is on record. Replays the whole log, as --fresh does."`
	Key         []string `sep:"none" help:"Public key that signs the seal; give those that you keep. Without any, the data directory's own are used, which whoever could change the log could change too."`
	Copy        []string `help:"Folder or bucket of checkpoints that were kept elsewhere."`
	WitnessKeys []string `sep:"none" name:"witness-key" help:"Public key of a witness whose cosignatures count."`
}

// Run verifies what is asked for, or everything: beside a running server, or
// without one.
func (c verifyCommand) Run(ctx context.Context, cfg Config, out output) error {
	if err := cfg.settle(false); err != nil {
		return err
	}
	both := !c.Log && !c.ReadModels
	sound := true
	for _, part := range []struct {
		asked bool
		do    func(context.Context, Config, output) (bool, error)
	}{{c.Log, c.verifyLog}, {c.ReadModels, c.verifyReadModels}} {
		if !part.asked && !both {
			continue
		}
		ok, err := part.do(ctx, cfg, out)
		if err != nil {
			return err
		}
		sound = sound && ok
	}
	if !sound {
		return errUnsound
	}
	return nil
}

// verifyLog holds the logs against the seal, and reports whether they fit. It opens
// nothing for writing.
func (c verifyCommand) verifyLog(ctx context.Context, cfg Config, out output) (bool, error) {
	begun := time.Now()
	v, instance, err := c.against(cfg)
	if err != nil {
		return false, err
	}
	reading, done, err := c.reading(ctx, cfg)
	if err != nil {
		return false, err
	}
	defer done()
	older, err := openArchive(cfg)
	if err != nil {
		return false, err
	}
	if err := c.copiesThere(ctx, cfg, reading.logs, out); err != nil {
		return false, err
	}
	v.Now = reading.now
	sound := true
	var entries uint64
	for _, log := range reading.logs {
		v.Log, v.Dir, v.Origin = log, cfg.sealPath(log), seal.Origin(instance, log)
		sums := reading.sums(log)
		if older != nil {
			sums = older.Sums(log, sums, reading.mark)
		}
		report, err := reading.believed(ctx, func() (report *seal.Report, err error) {
			if v.Copies, err = c.copies(ctx, cfg, log); err != nil {
				return nil, err
			}
			if v.Shared, err = reading.shared(ctx, log); err != nil {
				return nil, err
			}
			return v.Verify(ctx, sums)
		})
		if err != nil {
			return false, fmt.Errorf("verify %s: %w", log, err)
		}
		sound = sound && report.OK()
		entries += report.Entries
		if err := out.report(report); err != nil {
			return false, err
		}
	}
	if older != nil {
		// Content is not sealed: events hold its hashes. Its segments are held together.
		for _, log := range []string{eventstore.Content, eventstore.Dead} {
			ok, err := out.checked(ctx, older, log, v.Trusted)
			if err != nil {
				return false, err
			}
			sound = sound && ok
		}
		whole, err := out.whole(ctx, cfg, older)
		if err != nil {
			return false, err
		}
		sound = sound && whole
	}
	if !out.json {
		took := time.Since(begun)
		fmt.Printf("%d entries in %s, %.0f a second.\n", entries, took.Round(time.Millisecond), float64(entries)/took.Seconds())
		if len(c.Key) == 0 {
			fmt.Println("Checked with the keys of this data directory: give --key to use one that you keep.")
		}
	}
	return sound, nil
}

// against is what the logs are held against, and the name of the instance.
func (c verifyCommand) against(cfg Config) (seal.Verification, string, error) {
	keys := c.Key
	if keys == nil {
		text, err := os.ReadFile(cfg.sealPath(publicKeys))
		if err != nil {
			return seal.Verification{}, "", fmt.Errorf("find the public keys of the seal: %w", err)
		}
		keys = strings.Fields(string(text))
	}
	trusted, err := seal.ParseVerifiers(keys, c.WitnessKeys)
	if err != nil {
		return seal.Verification{}, "", err
	}
	v := seal.Verification{Trusted: trusted}
	if v.Ask, err = cfg.witnesses(); err != nil {
		return seal.Verification{}, "", err
	}
	for _, w := range v.Ask {
		v.Trusted.Witnesses = append(v.Trusted.Witnesses, w.Key)
	}
	return v, trusted.Log[0].Name(), nil
}

// sealsWithin is how long a server that has started may take to seal what came before.
const sealsWithin = 10 * time.Minute

// reading is the logs, and how each is read.
type reading struct {
	logs  []string
	sums  func(log string) notary.Sums // of what the streams hold
	mark  []byte
	heads *eventstore.Bucket // that several processes share; nil if the log is one process's own
	now   time.Time          // zero where nobody is to be sealing
}

// How long what a cluster says of a rewritten past has to last before it is believed. A
// server that is cut off from the others, and led them before, answers for some seconds
// as if it still did, and misses what was written since.
const (
	believedAfter = time.Minute
	lookedAtEvery = 5 * time.Second
)

// believed looks at a log until nothing is wrong with it, or what is wrong has lasted.
func (r reading) believed(ctx context.Context, look func() (*seal.Report, error)) (*seal.Report, error) {
	begun := time.Now()
	for said := false; ; said = true {
		report, err := look()
		if err != nil || report.OK() || r.heads == nil || time.Since(begun) >= believedAfter {
			return report, err
		}
		if !said {
			fmt.Fprintf(os.Stderr, "%s is not as it was sealed. A server that was just cut off says so too: it is looked at for a minute.\n", report.Log)
		}
		select {
		case <-time.After(lookedAtEvery):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// shared is the newest head of a log that any process has signed, or nil.
func (r reading) shared(ctx context.Context, log string) ([]byte, error) {
	if r.heads == nil {
		return nil, nil
	}
	signed, _, err := r.heads.Get(ctx, log)
	if errors.Is(err, eventstore.ErrNoEntry) {
		return nil, nil
	}
	return signed, err
}

func (c verifyCommand) reading(ctx context.Context, cfg Config) (reading, func(), error) {
	var mark []byte
	if _, err := os.Stat(cfg.sealPath(markKeyFile)); err == nil {
		if mark, err = markKey(cfg); err != nil {
			return reading{}, nil, err
		}
	}
	url, external := cfg.NATSURL, cfg.NATSURL != ""
	now := time.Now()
	if r, ok := found(cfg); ok {
		url, external = r.NATSURL, r.External
		if info, err := os.Stat(cfg.path(runningFile)); err == nil && now.Sub(info.ModTime()) < sealsWithin {
			now = time.Time{} // it has just started, and seals what it has found
		}
	}
	if url == "" {
		read, err := atRest(cfg, mark)
		return read, func() {}, err
	}
	store, err := eventstore.Open(ctx, eventstore.Config{URL: url, Registry: catalogue.Registry()})
	if err != nil {
		return reading{}, nil, err
	}
	read := reading{logs: store.Logs(), sums: func(log string) notary.Sums { return notary.Live(store, log, mark) }, mark: mark, now: now}
	if external {
		if read.heads, err = store.Bucket(ctx, headsBucket); err != nil {
			return reading{}, nil, errors.Join(err, store.Close())
		}
	}
	return read, func() { _ = store.Close() }, nil
}

// atRest reads the files of an embedded server: the logs that are there, and those
// that were sealed and are not.
func atRest(cfg Config, mark []byte) (reading, error) {
	dir := cfg.path("log")
	there, err := eventstore.LogsAtRest(dir)
	if err != nil {
		return reading{}, err
	}
	logs, err := seal.Logs(cfg.path(sealFolder))
	if err != nil {
		return reading{}, err
	}
	logs = append(logs, there...)
	slices.Sort(logs)
	if len(logs) == 0 {
		return reading{}, fmt.Errorf("there is no log in %s", dir)
	}
	sums := func(log string) notary.Sums {
		if !slices.Contains(there, log) {
			return func(context.Context, func([]seal.Sum) error) error { return nil } // all of it is missing
		}
		return notary.AtRest(dir, log, mark)
	}
	return reading{logs: slices.Compact(logs), sums: sums, mark: mark}, nil
}

// copiesThere makes sure that each place that was given holds something: one that is
// mistyped would make a verification that looks at less than was asked for. Of one
// that is configured it is said: a server may not have come to it yet.
func (c verifyCommand) copiesThere(ctx context.Context, cfg Config, logs []string, out output) error {
	for n, text := range append(slices.Clone(c.Copy), cfg.SealCopies...) {
		place, err := parsePlace(text)
		if err != nil {
			return err
		}
		held := false
		for _, log := range logs {
			head, err := place.Get(ctx, log)
			if err != nil {
				return fmt.Errorf("read the copy in %s: %w", place, err)
			}
			held = held || head != nil
		}
		switch {
		case held:
		case n < len(c.Copy):
			return fmt.Errorf("--copy: %s holds no checkpoint of any log", place)
		case !out.json:
			fmt.Printf("%s, of POSTBOOK_SEAL_COPIES, gives no checkpoint of any log back.\n", place)
		}
	}
	return nil
}

// copies finds what was kept of a log elsewhere: by witnesses, and in the places
// that are configured or given.
func (c verifyCommand) copies(ctx context.Context, cfg Config, log string) ([]seal.Copy, error) {
	var all []seal.Copy
	witnessed, err := seal.ReadWitnessed(cfg.sealPath(log))
	if err != nil {
		return nil, err
	}
	if witnessed != nil {
		all = append(all, seal.Copy{Place: "the newest head that was cosigned", Note: witnessed, Here: true})
	}
	for _, text := range append(c.Copy, cfg.SealCopies...) {
		place, err := parsePlace(text)
		if err != nil {
			return nil, err
		}
		head, err := place.Get(ctx, log)
		if err != nil {
			return nil, fmt.Errorf("read the copy in %s: %w", place, err)
		}
		if head != nil {
			all = append(all, seal.Copy{Place: place.String(), Note: head})
		}
	}
	return all, nil
}

func (o output) report(r *seal.Report) error {
	if printed, err := o.object(r); printed {
		return err
	}
	verdict := "as it was sealed"
	if !r.OK() {
		verdict = "NOT as it was sealed"
	}
	outside := "not witnessed"
	if len(r.Witnesses) > 0 {
		outside = "witnessed by " + strings.Join(r.Witnesses, ", ")
	}
	if r.Copies > 0 {
		outside += fmt.Sprintf(", fits %d kept elsewhere", r.Copies)
	}
	fmt.Printf("%-8s  %s: %d entries, %d sealed at %s, %d since; %s\n", r.Log, verdict, r.Entries, r.Sealed, r.SealedAt.Format(time.RFC3339), r.Unsealed, outside)
	for _, f := range r.Findings {
		fmt.Println("  " + f.String())
	}
	if r.More > 0 {
		fmt.Printf("  and %d more\n", r.More)
	}
	return nil
}
