package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
)

type benchCommand struct {
	Run      benchRun      `cmd:"" default:"withargs" help:"Measure everything but what grows with the log."`
	Load     benchLoad     `cmd:"" help:"Fill the log of a data directory with events that a seed decides, and seal them."`
	Baseline benchBaseline `cmd:"" help:"Measure appends, and the same appends to a table of PostgreSQL."`
	Scale    benchScale    `cmd:"" help:"Measure what grows with the log, at several sizes."`
	Replay   benchReplay   `cmd:"" help:"Measure the replay and time travel on a data directory."`
}

type benchRun struct {
	Mails    int           `default:"20000" help:"Mails that are sent in each part."`
	For      time.Duration `default:"5s" help:"How long each limit is measured."`
	Clients  int           `default:"64" help:"Clients that send at once."`
	Postfix  bool          `default:"true" negatable:"" help:"Also measure Postfix, if it is installed and this is root."`
	Parts    []string      `default:"limits,intake,delivery" enum:"limits,intake,delivery" help:"What is measured: ${enum}. Without the limits there are no ratios."`
	KeepData bool          `help:"Leave the data directories."`
}

// Run measures the program as its users would, and in the same run the limits
// that it could reach at best: what counts are the ratios, because machines
// differ. The clients and the receiving end run on the same cores.
func (c benchRun) Run(ctx context.Context, out output) error {
	dir, err := benchDir()
	if err != nil {
		return err
	}
	if !c.KeepData {
		defer os.RemoveAll(dir)
	}
	b := &bench{benchRun: c, dir: dir, json: out.json}
	fmt.Fprintf(os.Stderr, "%d cores, GOMAXPROCS %d, data in %s\n\n", runtime.NumCPU(), runtime.GOMAXPROCS(0), dir)
	if err := b.run(ctx); err != nil {
		return err
	}
	if _, err := out.object(b.results); err != nil {
		return err
	}
	return nil
}

// benchDir makes a folder for what is measured: here, where the disk is that counts.
func benchDir() (string, error) {
	dir, err := os.MkdirTemp(".", ".bench-")
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

type bench struct {
	benchRun
	dir     string
	json    bool
	results []figure
}

// figure is what was measured, and what it is held against.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Of    string  `json:"of,omitempty"`
	Ratio float64 `json:"ratio,omitempty"`
}

func (b *bench) tell(name string, value float64, unit, of string, limit float64) {
	f := figure{Name: name, Value: value, Unit: unit}
	if limit > 0 {
		f.Of, f.Ratio = of, value/limit
	}
	b.results = append(b.results, f)
	if b.json {
		return
	}
	fmt.Printf("%-46s %12.0f %-8s", name, value, unit)
	if limit > 0 {
		fmt.Printf("  %6.2f × %s (%.0f)", f.Ratio, of, limit)
	}
	fmt.Println()
}

// limits are what the machine and a rival reach in this run; 0 is not known.
type limits struct {
	appends, signs, postfix float64
	signsOne                float64 // on one core, with the others idle
}

// run measures the program as a process of its own: first taking mail in while none
// can leave, then handing mail over, and reading back what became of it.
func (b *bench) run(ctx context.Context) (err error) {
	var of limits
	if slices.Contains(b.Parts, "limits") {
		if of, err = b.limits(ctx); err != nil {
			return err
		}
	}
	if slices.Contains(b.Parts, "intake") {
		if err := b.takingIn(ctx, of); err != nil {
			return err
		}
	}
	if slices.Contains(b.Parts, "delivery") {
		return b.handingOver(ctx, of)
	}
	return nil
}

func (b *bench) limits(ctx context.Context) (of limits, err error) {
	if of.appends, err = b.rawAppends(); err != nil {
		return of, err
	}
	b.tell("limit: append and fdatasync of 1.5 kB, alone", of.appends, "/s", "", 0)
	if of.signsOne, err = b.signatures(1); err != nil {
		return of, err
	}
	b.tell("limit: RSA-2048 signatures, one core", of.signsOne, "/s", "", 0)
	if of.signs, err = b.signatures(runtime.GOMAXPROCS(0)); err != nil {
		return of, err
	}
	b.tell("limit: RSA-2048 signatures, all cores", of.signs, "/s", "", 0)
	if b.Postfix {
		if of.postfix, err = b.postfix(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "Postfix is not measured:", err)
		} else {
			b.tell("limit: Postfix, mails taken in and delivered", of.postfix, "/s", "", 0)
		}
	}
	return of, b.baseline(ctx)
}

// rawAppends is how often a file of this disk can be appended to durably, by one
// writer.
func (b *bench) rawAppends() (float64, error) {
	f, err := os.Create(filepath.Join(b.dir, "raw"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	entry := make([]byte, 1500)
	n := 0
	begun := time.Now()
	for time.Since(begun) < b.For {
		if _, err := f.Write(entry); err != nil {
			return 0, err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
		n++
	}
	return float64(n) / time.Since(begun).Seconds(), nil
}

// signatures is how many some cores make, with nothing else to do.
func (b *bench) signatures(cores int) (float64, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return 0, err
	}
	digest := sha256.Sum256([]byte("postbook"))
	var n atomic.Int64
	var all sync.WaitGroup
	begun := time.Now()
	for range cores {
		all.Go(func() {
			for time.Since(begun) < b.For {
				if _, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:]); err == nil {
					n.Add(1)
				}
			}
		})
	}
	all.Wait()
	return float64(n.Load()) / time.Since(begun).Seconds(), nil
}

func (b *bench) takingIn(ctx context.Context, of limits) error {
	sink, err := startSink()
	if err != nil {
		return err
	}
	defer sink.close()
	sink.hold()
	facts, stop, err := b.launch(ctx, "intake", sink.addr())
	if err != nil {
		return err
	}
	defer stop()
	time.Sleep(5 * time.Second) // what starting up has used is given back
	b.tell("memory of the server at rest", residentMB(int(benchPID.Load())), "MB", "", 0)

	client := b.client(facts)
	for _, load := range []struct {
		name                 string
		mails, clients, each int
	}{
		{"accepted, one client", 500, 1, 1},
		{"accepted, one a request", b.Mails, b.Clients, 1},
		{"accepted, 100 a request", 5 * b.Mails, b.Clients / 4, 100},
	} {
		got, err := client.send(ctx, load.mails, load.clients, load.each)
		if err != nil {
			return err
		}
		b.tell(load.name, got.rate, "/s", "one writer's appends", of.appends)
		b.tell("  p50", float64(got.p50.Microseconds()), "µs", "", 0)
		b.tell("  p99", float64(got.p99.Microseconds()), "µs", "", 0)
		if of.postfix > 0 && load.clients > 1 {
			b.tell("  against Postfix", got.rate, "/s", "Postfix", of.postfix)
		}
	}
	select {
	case <-time.After(2*trimEvery + 5*time.Second): // what it does not need is given back by then
	case <-ctx.Done():
		return ctx.Err()
	}
	b.tell("memory of the server at rest after all this", residentMB(int(benchPID.Load())), "MB", "", 0)
	return nil
}

func (b *bench) handingOver(ctx context.Context, of limits) error {
	sink, err := startSink()
	if err != nil {
		return err
	}
	defer sink.close()
	sink.hold()
	facts, stop, err := b.launch(ctx, "delivery", sink.addr())
	if err != nil {
		return err
	}
	defer stop()
	if _, err := b.client(facts).send(ctx, b.Mails, b.Clients/4, 100); err != nil {
		return err
	}
	time.Sleep(2 * time.Second) // the read models have caught up
	delivered, err := sink.measure(ctx, b.Mails/100*100)
	if err != nil {
		return err
	}
	b.tell("delivered to a sink, signed", delivered, "/s", "one core's signatures", of.signsOne)
	if of.signs > 0 {
		b.tell("  against all cores", delivered, "/s", "signatures", of.signs)
	}
	if of.postfix > 0 {
		b.tell("  against Postfix", delivered, "/s", "Postfix", of.postfix)
	}
	return b.projections(ctx, facts, "delivery")
}

func (b *bench) client(facts devFacts) *benchClient {
	return &benchClient{base: facts.BaseURL, key: facts.APIKey, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: b.Clients}}}
}

// launch runs the program on a data directory of its own, with its mail going to
// the sink.
func (b *bench) launch(ctx context.Context, name, relay string) (facts devFacts, stop func(), err error) {
	dir := filepath.Join(b.dir, name)
	self, err := os.Executable()
	if err != nil {
		return facts, nil, err
	}
	cmd := exec.CommandContext(ctx, self, "dev", "--quiet")
	cmd.Env = append(os.Environ(), "POSTBOOK_DATA_DIR="+dir, "POSTBOOK_HTTP_ADDR=127.0.0.1:0", "POSTBOOK_SMTP_ADDR=127.0.0.1:0", "POSTBOOK_LOG_LEVEL=warn")
	cmd.Env = append(cmd.Env, "POSTBOOK_DELIVERY=relay", "POSTBOOK_RELAY_URL=smtp://"+relay)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Start(); err != nil {
		return facts, nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	for range 600 {
		data, err := os.ReadFile(filepath.Join(dir, devFile))
		if err == nil && json.Unmarshal(data, &facts) == nil {
			b.pid(cmd.Process.Pid)
			return facts, stop, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	stop()
	return facts, nil, errors.New("the server is not ready after a minute")
}

var benchPID atomic.Int64

func (b *bench) pid(pid int) { benchPID.Store(int64(pid)) }

// projections measures building the read model of the emails again, from a log in which
// they have gone their whole way, against copying as many rows of the same width.
func (b *bench) projections(ctx context.Context, facts devFacts, name string) error {
	pool, err := pgxpool.New(ctx, facts.DatabaseURL)
	if err != nil {
		return err
	}
	defer pool.Close()
	store, err := eventstore.Open(ctx, eventstore.Config{URL: facts.NATSURL, Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer store.Close()
	events := 0
	for _, log := range store.MailLogs() {
		head, err := store.Head(ctx, log)
		if err != nil {
			return err
		}
		err = store.Follow(ctx, eventstore.Following{Log: log, StopAt: head, MaxBatch: 5000}, func(_ context.Context, entries []eventstore.Entry) error {
			for _, e := range entries {
				events += len(e.Events)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	rows, err := pool.Query(ctx, "select id, account_id, created_at, sender_id, message_id, envelope, content, last_event, log, last_seq from emails")
	if err != nil {
		return err
	}
	var copied [][]any
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return err
		}
		copied = append(copied, values)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if _, err := pool.Exec(ctx, "create table bench_copy (like emails including indexes)"); err != nil {
		return err
	}
	begun := time.Now()
	columns := []string{"id", "account_id", "created_at", "sender_id", "message_id", "envelope", "content", "last_event", "log", "last_seq"}
	if _, err := pool.CopyFrom(ctx, pgx.Identifier{"bench_copy"}, columns, pgx.CopyFromRows(copied)); err != nil {
		return err
	}
	copyRate := float64(len(copied)) / time.Since(begun).Seconds()
	b.tell("limit: COPY of the emails' rows", copyRate, "rows/s", "", 0)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, "projections", "rebuild", "emails", "--json")
	cmd.Env = append(os.Environ(), "POSTBOOK_DATA_DIR="+filepath.Join(b.dir, name))
	said, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("rebuild: %w", err)
	}
	var done struct{ Seconds float64 }
	if err := json.Unmarshal(said, &done); err != nil {
		return err
	}
	b.tell("events projected, rebuilding", float64(events)/done.Seconds, "/s", "COPY", copyRate)
	return nil
}

// residentMB is a process's resident memory.
func residentMB(pid int) float64 { return memoryMB(pid, "VmRSS:") }

// memoryMB is a line of what proc(5) says of a process's memory.
func memoryMB(pid int, name string) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024
		}
	}
	return 0
}
