package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

type benchScale struct {
	Events   []int  `default:"1000000,10000000" help:"How many events; a size is held against the one before it."`
	Seed     uint64 `default:"1" help:"Of the events."`
	KeepData bool   `help:"Leave the data directories."`
}

// Run measures what grows with the log: disk, memory, starting, building read
// models again, verifying. Each step is the program as an operator runs it, a
// process of its own on a data directory that nothing else uses.
func (c benchScale) Run(ctx context.Context, out output) error {
	dir, err := benchDir()
	if err != nil {
		return err
	}
	if !c.KeepData {
		defer os.RemoveAll(dir)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d cores, data in %s\n", runtime.NumCPU(), dir)
	var runs []*scaleRun
	for _, events := range c.Events {
		r := &scaleRun{self: self, dir: filepath.Join(dir, strconv.Itoa(events)), events: events, seed: c.Seed, out: out}
		if len(runs) > 0 {
			r.smaller = runs[len(runs)-1]
		}
		runs = append(runs, r)
		if !out.json {
			fmt.Printf("\n%d events\n", events)
		}
		if err := r.run(ctx); err != nil {
			return fmt.Errorf("measure %d events: %w", events, err)
		}
		if !c.KeepData {
			if err := os.RemoveAll(r.dir); err != nil {
				return err
			}
		}
	}
	_, err = out.object(measuredOf(runs))
	return err
}

func measuredOf(runs []*scaleRun) []measured {
	var all []measured
	for _, r := range runs {
		all = append(all, r.measured...)
	}
	return all
}

// measured is what one step took at one size.
type measured struct {
	Events  int     `json:"events"`
	Step    string  `json:"step"`
	Seconds float64 `json:"seconds,omitempty"`
	Rate    float64 `json:"rate,omitempty"` // of Of, a second
	Of      string  `json:"of,omitempty"`
	MB      float64 `json:"mb,omitempty"`     // of disk, or of resident memory at its peak
	Growth  float64 `json:"growth,omitempty"` // how much more it is than of the size before
	Note    string  `json:"note,omitempty"`
}

// scaleRun measures one size.
type scaleRun struct {
	self, dir string
	events    int
	seed      uint64
	smaller   *scaleRun // the size before, or nil
	out       output

	entries  float64 // messages of the log; one holds the events of one command
	measured []measured
}

func (r *scaleRun) tell(m measured) {
	m.Events = r.events
	if r.smaller != nil {
		for _, before := range r.smaller.measured {
			switch {
			case before.Step != m.Step:
			case before.Seconds > 0:
				m.Growth = m.Seconds / before.Seconds
			case before.MB > 0:
				m.Growth = m.MB / before.MB
			}
		}
	}
	r.measured = append(r.measured, m)
	if r.out.json {
		return
	}
	line := fmt.Sprintf("  %-44s", m.Step)
	if m.Seconds > 0 {
		line += fmt.Sprintf(" %9.2f s", m.Seconds)
	} else {
		line += strings.Repeat(" ", 12)
	}
	if m.Rate > 0 {
		line += fmt.Sprintf(" %9.0f %s/s", m.Rate, m.Of)
	}
	if m.MB > 0 {
		line += fmt.Sprintf(" %7.0f MB", m.MB)
	}
	if m.Growth > 0 {
		line += fmt.Sprintf("   %.2f × that of %d", m.Growth, r.smaller.events)
	}
	if m.Note != "" {
		line += "   " + m.Note
	}
	fmt.Println(line)
}

func (r *scaleRun) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		r.load, r.rawWrite, r.verifyLog, r.rebuild, r.verifyTables, r.copyTables, r.fold, r.starts, r.disk,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// ended is a command that has ended.
type ended struct {
	out     []byte
	seconds float64
	peakMB  float64
}

// command runs the program to its end. Whoever starts PostgreSQL does so as a
// process of its own, which is not part of the memory.
func (r *scaleRun) command(ctx context.Context, args ...string) (ended, error) {
	cmd := exec.CommandContext(ctx, r.self, append(args, "--json")...)
	cmd.Env = r.env()
	var said, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &complaint
	begun := time.Now()
	err := cmd.Run()
	done := ended{out: said.Bytes(), seconds: time.Since(begun).Seconds()}
	if err != nil {
		return done, fmt.Errorf("%s: %w: %s%s", strings.Join(args, " "), err, said.Bytes(), complaint.Bytes())
	}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		done.peakMB = float64(usage.Maxrss) / 1024
	}
	return done, nil
}

func (r *scaleRun) env() []string {
	return append(os.Environ(), "POSTBOOK_DATA_DIR="+r.dir, "POSTBOOK_HTTP_ADDR=127.0.0.1:0", "POSTBOOK_SMTP_ADDR=127.0.0.1:0",
		"POSTBOOK_NATS_URL=", "POSTBOOK_DATABASE_URL=", "POSTBOOK_LOG_LEVEL=warn", "POSTBOOK_DELIVERY=sandbox")
}

// lines reads the JSON objects that a command has printed.
func lines[T any](out []byte) ([]T, error) {
	var all []T
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var v T
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("read what a command has printed: %w", err)
		}
		all = append(all, v)
	}
	return all, nil
}

func (r *scaleRun) load(ctx context.Context) error {
	done, err := r.command(ctx, "bench", "load", "--events", strconv.Itoa(r.events), "--seed", strconv.FormatUint(r.seed, 10))
	if err != nil {
		return err
	}
	said, err := lines[struct {
		Seconds        float64 `json:"seconds"`
		SealingSeconds float64 `json:"sealing_seconds"`
	}](done.out)
	if err != nil {
		return err
	}
	r.tell(measured{Step: "append", Seconds: said[0].Seconds, Rate: float64(r.events) / said[0].Seconds, Of: "events", MB: done.peakMB})
	r.tell(measured{Step: "seal", Seconds: said[0].SealingSeconds, Rate: float64(r.events) / said[0].SealingSeconds, Of: "events"})
	return nil
}

// rawWrite writes as many bytes as the log has to a file. What fits into the
// system's cache is written at another speed than what does not.
func (r *scaleRun) rawWrite(context.Context) error {
	left, err := sizeOf(filepath.Join(r.dir, "log"))
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(r.dir, "raw-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 1<<20)
	begun := time.Now()
	for written := int64(0); written < left; written += int64(len(block)) {
		if _, err := f.Write(block); err != nil {
			return err
		}
	}
	r.tell(measured{Step: "limit: as many bytes written to a file", Seconds: time.Since(begun).Seconds(), MB: float64(left) / (1 << 20)})
	return nil
}

func (r *scaleRun) verifyLog(ctx context.Context) error {
	done, err := r.command(ctx, "verify", "--log")
	if err != nil {
		return err
	}
	reports, err := lines[struct{ Entries float64 }](done.out)
	if err != nil {
		return err
	}
	for _, l := range reports {
		r.entries += l.Entries
	}
	r.tell(measured{Step: "verify --log", Seconds: done.seconds, Rate: r.entries / done.seconds, Of: "entries", MB: done.peakMB, Note: fmt.Sprintf("%.0f entries, %.0f events/s", r.entries, float64(r.events)/done.seconds)})
	return nil
}

func (r *scaleRun) rebuild(ctx context.Context) error {
	// The first one fills empty tables and makes the cluster; what is measured is
	// building again.
	for range 2 {
		if done, err := r.command(ctx, "projections", "rebuild", "accounts"); err != nil {
			return fmt.Errorf("%w: %s", err, done.out)
		}
	}
	done, err := r.command(ctx, "projections", "rebuild", "--all")
	if err != nil {
		return err
	}
	models, err := lines[struct {
		Model   string
		Seconds float64
	}](done.out)
	if err != nil {
		return err
	}
	all := 0.0
	for _, m := range models {
		all += m.Seconds
	}
	r.tell(measured{Step: rebuildStep, Seconds: all, Rate: float64(r.events) / all, Of: "events", MB: done.peakMB})
	return nil
}

const rebuildStep = "projections rebuild --all"

// verifyTables verifies twice: the first time makes the copy that is kept.
func (r *scaleRun) verifyTables(ctx context.Context) error {
	for _, step := range []string{"verify --read-models, the first time", "verify --read-models, later"} {
		done, err := r.command(ctx, "verify", "--read-models")
		if err != nil {
			return err
		}
		r.tell(measured{Step: step, Seconds: done.seconds, Rate: float64(r.events) / done.seconds, Of: "events", MB: done.peakMB})
	}
	return nil
}

// copyTables copies the rows of the emails into a table of the same shape by COPY,
// from a file that it was written to by COPY: as fast as PostgreSQL takes rows in.
func (r *scaleRun) copyTables(ctx context.Context) error {
	cfg := Config{DataDir: r.dir}
	pool, done, err := openTables(ctx, cfg)
	if err != nil {
		return err
	}
	defer done()
	file, err := os.CreateTemp(r.dir, "rows-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	return pool.AcquireFunc(ctx, func(c *pgxpool.Conn) error {
		conn := c.Conn()
		written, err := conn.PgConn().CopyTo(ctx, file, "copy emails to stdout (format binary)")
		if err != nil {
			return err
		}
		if _, err := file.Seek(0, 0); err != nil {
			return err
		}
		// As when a read model is built: nobody waits for the disk, and the
		// secondary index comes when the rows are there.
		shape := "set synchronous_commit = off; create table bench_copy (like emails including all excluding indexes, primary key (id)) with (fillfactor = 80)"
		if _, err := conn.Exec(ctx, shape); err != nil {
			return err
		}
		begun := time.Now()
		if _, err := conn.PgConn().CopyFrom(ctx, file, "copy bench_copy from stdin (format binary)"); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "create index on bench_copy (account_id, created_at desc, id desc); analyze bench_copy"); err != nil {
			return err
		}
		took := time.Since(begun).Seconds()
		rows := float64(written.RowsAffected())
		note := ""
		for _, m := range r.measured {
			if m.Step == rebuildStep {
				note = fmt.Sprintf("the rebuild is %.2f × this in events a second, %.2f × in rows", m.Rate/(rows/took), took/m.Seconds)
			}
		}
		r.tell(measured{Step: "limit: COPY of the emails' rows", Seconds: took, Rate: rows / took, Of: "rows", Note: note})
		_, err = conn.Exec(ctx, "drop table bench_copy")
		return err
	})
}

// fold reads every event and folds every email, as a replay does.
func (r *scaleRun) fold(ctx context.Context) error {
	done, err := r.command(ctx, "events", "check")
	if err != nil {
		return err
	}
	r.tell(measured{Step: "events check: every event read and folded", Seconds: done.seconds, Rate: float64(r.events) / done.seconds, Of: "events", MB: done.peakMB})
	return nil
}

// starts runs the server: for the first time, after it was stopped, and after it
// was killed, when the log is read through to make its index again.
func (r *scaleRun) starts(ctx context.Context) error {
	for _, s := range []struct {
		step string
		end  syscall.Signal
	}{
		{"start, the first time", syscall.SIGTERM},
		{"start after it was stopped", syscall.SIGKILL},
		{"start after kill -9", syscall.SIGTERM},
	} {
		if err := r.start(ctx, s.step, s.end); err != nil {
			return fmt.Errorf("%s: %w", s.step, err)
		}
	}
	return nil
}

// settled is how long a server is given before its memory at rest is looked at. By
// then it has noted which emails are open, so that the next start need not read the
// whole log, and has given back what starting used.
const settled = 100 * time.Second

func (r *scaleRun) start(ctx context.Context, step string, end syscall.Signal) error {
	if err := os.Remove(filepath.Join(r.dir, runningFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	cmd := exec.CommandContext(ctx, r.self, "serve")
	cmd.Env = r.env()
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	serving, err := r.awaitHealth(ctx, over)
	if err != nil {
		return fmt.Errorf("%w: %s", err, complaint.Bytes())
	}
	m := measured{Step: step, Seconds: serving.Sub(begun).Seconds()}
	select {
	case <-time.After(settled):
	case err := <-over:
		return fmt.Errorf("it has ended: %w: %s", err, complaint.Bytes())
	case <-ctx.Done():
		return ctx.Err()
	}
	m.MB = peakMB(cmd.Process.Pid)
	m.Note = fmt.Sprintf("%.0f MB at rest", residentMB(cmd.Process.Pid))
	r.tell(m)
	if err := cmd.Process.Signal(end); err != nil {
		return err
	}
	if err := <-over; err != nil && end == syscall.SIGTERM {
		return fmt.Errorf("stop it: %w: %s", err, complaint.Bytes())
	}
	return nil
}

// awaitHealth says when the server answers that all is well.
func (r *scaleRun) awaitHealth(ctx context.Context, over <-chan error) (time.Time, error) {
	var facts running
	for {
		select {
		case err := <-over:
			return time.Time{}, fmt.Errorf("it has ended: %w", err)
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
		data, err := os.ReadFile(filepath.Join(r.dir, runningFile))
		if err != nil || json.Unmarshal(data, &facts) != nil {
			continue
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, facts.BaseURL+"/health", nil)
		if err != nil {
			return time.Time{}, err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			continue
		}
		if err := res.Body.Close(); err == nil && res.StatusCode == http.StatusOK {
			return time.Now(), nil
		}
	}
}

// peakMB is the most memory that a process had.
func peakMB(pid int) float64 { return memoryMB(pid, "VmHWM:") }

// disk says what lies on the disk in the end.
func (r *scaleRun) disk(context.Context) error {
	for _, part := range []struct{ folder, what string }{
		{"log", "disk: log"}, {sealFolder, "disk: seal"}, {"postgres", "disk: PostgreSQL, with what was replaced and the verifier's copy"},
	} {
		bytes, err := sizeOf(filepath.Join(r.dir, part.folder))
		if err != nil {
			return err
		}
		r.tell(measured{Step: part.what, MB: float64(bytes) / (1 << 20)})
	}
	return nil
}

// sizeOf is how many bytes the files in a folder have.
func sizeOf(folder string) (bytes int64, err error) {
	err = filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		bytes += info.Size()
		return nil
	})
	return bytes, err
}
