package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/internal/testenv"
)

// loaded is an instance on a data directory that holds events of emails already.
func loaded(t *testing.T, events int) *instance {
	t.Helper()
	dir, err := os.MkdirTemp("", "postbook-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	i := newInstance(t, dir)
	if out, err := i.postbook("bench", "load", "--events", fmt.Sprint(events), "--accounts", "5"); err != nil {
		t.Fatalf("load: %v\n%s", err, out)
	}
	i.start("--quiet")
	return i
}

// Building read models again is killed at random moments, and so is the server
// meanwhile. What is read is whole at any moment, and each time the next try goes on
// and ends well.
func TestKilledWhileBuilding(t *testing.T) {
	rounds := 4
	if os.Getenv("POSTBOOK_TEST_LONG") != "" {
		rounds = 50
	} else {
		t.Parallel()
	}
	const emails = 2500 // each has four events
	i := loaded(t, 4*emails)
	pool := i.database(t)
	testenv.Eventually(t, 30*time.Second, func() error { return whole(t.Context(), pool, emails) })
	rebuild := func() *exec.Cmd {
		cmd := exec.Command(binary, "projections", "rebuild", "emails")
		cmd.Env = append(os.Environ(), "POSTBOOK_DATA_DIR="+i.dir)
		return cmd
	}
	begun := time.Now()
	if out, err := rebuild().CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	usual := time.Since(begun)

	var reads atomic.Int64
	killed, ended := 0, 0
	for round := range rounds {
		reading, stop := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() {
			for {
				err := whole(reading, pool, emails)
				if reading.Err() != nil {
					err = nil
				}
				if err != nil || reading.Err() != nil {
					over <- err
					return
				}
				reads.Add(1)
			}
		}()
		cmd := rebuild()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(usual)) // at any moment of its work: no state is waited for
		_ = cmd.Process.Kill()
		if cmd.Wait() == nil {
			ended++ // it was faster
		} else {
			killed++
		}
		stop()
		if err := <-over; err != nil {
			t.Fatalf("round %d: a reader saw %v", round, err)
		}
		if round%4 == 3 {
			// Now the server goes in the middle, and with it the log and the database.
			cmd := rebuild()
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(rand.N(usual))
			i.kill()
			_ = cmd.Wait() // with an error, unless it was faster
			i.start("--quiet")
			pool.Close()
			pool = i.database(t)
			if err := whole(t.Context(), pool, emails); err != nil {
				t.Fatalf("round %d, after the server was killed: %v", round, err)
			}
		}
	}
	defer pool.Close()
	if reads.Load() < int64(rounds) {
		t.Errorf("there were %d reads in %d rounds", reads.Load(), rounds)
	}
	// The session of one that was killed may end a moment later, and its lock with it.
	testenv.Eventually(t, 20*time.Second, func() error {
		if out, err := rebuild().CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err := whole(t.Context(), pool, emails); err != nil {
		t.Error(err)
	}
	var left int
	if err := pool.QueryRow(t.Context(), "select count(*) from pg_namespace where nspname like 'building%'").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d unfinished models are left, %v", left, err)
	}
	if out, err := i.postbook("verify"); err != nil {
		t.Errorf("verify: %v\n%s", err, out)
	}
	t.Logf("%d rounds: %d killed, %d were faster, %d reads", rounds, killed, ended, reads.Load())
}

func (i *instance) database(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), i.facts.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// whole reads the emails as somebody does who lists them: all are there, and each
// has come to its end.
func whole(ctx context.Context, pool *pgxpool.Pool, want int) error {
	var all, ended int
	err := pool.QueryRow(ctx, "select count(*), count(*) filter (where last_event in ('delivered', 'bounced')) from emails").Scan(&all, &ended)
	if err == nil && (all != want || ended != want) {
		err = fmt.Errorf("%d emails, %d of them ended, of %d", all, ended, want)
	}
	return err
}
