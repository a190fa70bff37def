package main

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/keyring"
)

// kills is how often something is killed.
func kills(t *testing.T) int {
	if os.Getenv("POSTBOOK_TEST_LONG") != "" {
		return 50
	}
	t.Parallel()
	return 3
}

// killed runs a command beside the instance, and kills it after a while.
func (i *instance) killed(after time.Duration, args ...string) {
	i.t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "POSTBOOK_DATA_DIR="+i.dir)
	if err := cmd.Start(); err != nil {
		i.t.Fatal(err)
	}
	time.Sleep(after) // at any moment of its work: no state is waited for
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed, or was done before
}

// Whoever erases is killed at random moments, the command or the server that works for
// it: said again, or by itself, it is finished, once, and nothing else is touched.
func TestErasureIsKilled(t *testing.T) {
	rounds := kills(t)
	i := launch(t)
	control := i.ask("POST", "/emails", hello("grace@rcpt.test")).id(t)
	var took time.Duration
	for round := range rounds {
		who := fmt.Sprintf("person-%d@rcpt.test", round)
		id := i.ask("POST", "/emails", hello(who)).id(t)
		i.lastEvent(id, "delivered")
		erase := []string{"erase", "--account", i.facts.AccountID, "--recipient", who, "--reason", "they asked"}
		if round%3 == 2 {
			// The server is asked, and killed while it works. The next one finishes.
			ada := "Bearer " + i.staffSession(round)
			asked := make(chan struct{})
			go func() {
				defer close(asked)
				_, _ = i.try(context.Background(), "POST", "/staff/accounts/"+i.facts.AccountID+"/erasures", map[string]string{"recipient": who, "reason": "they asked"}, "Authorization", ada)
			}()
			time.Sleep(rand.N(150 * time.Millisecond)) // as above
			i.kill()
			<-asked
			i.start("--quiet")
		} else {
			i.killed(rand.N(max(2*took, 200*time.Millisecond)), erase...)
		}
		begun := time.Now()
		if out, err := i.postbook(erase...); err != nil || !strings.Contains(out, "1 emails that nobody can read") {
			t.Fatalf("round %d: erase again: %v\n%s", round, err, out)
		}
		took = time.Since(begun)
		testenv.Eventually(t, 10*time.Second, func() error {
			if r := i.ask("GET", "/emails/"+id, nil); r.status != 200 || !strings.Contains(string(r.body), `"erased":true`) {
				return fmt.Errorf("round %d: %s", round, r)
			}
			return nil
		})
	}
	if r := i.ask("GET", "/emails/"+control, nil); !strings.Contains(string(r.body), "Hello.") {
		t.Errorf("what was written to somebody else: %s", r)
	}
	out, err := i.postbook("events", "show", i.facts.AccountID+".retention."+i.facts.AccountID)
	requested, finished := strings.Count(out, "retention.erasure_requested"), strings.Count(out, "retention.erased")
	if err != nil || requested != rounds || finished != rounds {
		t.Errorf("%d erasures were requested and %d finished, of %d people: %v", requested, finished, rounds, err)
	}
	i.stop()
	i.sound()
	for account, blobs := range keysetsIn(t, filepath.Join(i.dir, "log")) {
		if len(blobs) != 1 {
			t.Errorf("%d keysets of %s are in the files", len(blobs), account)
		}
	}
}

// staffSession signs in the one of the two whose code was not used lately.
func (i *instance) staffSession(round int) string { return i.staff(round / 3 % 2) }

// sound verifies what is at rest.
func (i *instance) sound() {
	i.t.Helper()
	for _, args := range [][]string{{"events", "check"}, {"verify", "--log"}} {
		if out, err := i.postbook(args...); err != nil {
			i.t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

// keys is the keyring of the instance, as another process has it.
func (i *instance) keys() *keyring.Keyring {
	i.t.Helper()
	store, err := eventstore.Open(i.t.Context(), eventstore.Config{URL: i.facts.NATSURL, Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { _ = store.Close() })
	ring, _, err := openRing(i.t.Context(), store, filepath.Join(i.dir, "root.key"))
	if err != nil {
		i.t.Fatal(err)
	}
	return ring
}

// The root key is replaced while mail is sent and accounts are made, and the command
// is killed at random moments: no request fails, every keyset opens, and no file
// holds an older key.
func TestRotationOfTheRootKeyIsKilled(t *testing.T) {
	rounds := kills(t)
	i := launch(t)
	ring := i.keys()
	var made atomic.Int32
	create := func() {
		if err := ring.Create(t.Context(), fmt.Sprintf("account-%d", made.Add(1))); err != nil {
			t.Errorf("an account cannot be made: %v", err)
		}
	}
	for range 100 {
		create()
	}
	var clients sync.WaitGroup
	var sent atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	for c := range 2 {
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if r, err := i.try(t.Context(), "POST", "/emails", hello(fmt.Sprintf("c%d-n%d@rcpt.test", c, n))); err != nil || r.status != 200 {
					t.Errorf("a request failed during the rotation: %v %s", err, r)
					return
				}
				sent.Add(1)
				if n%20 == 0 {
					create()
				}
				time.Sleep(5 * time.Millisecond) // the load of a small customer
			}
		})
	}
	rotate := func(round int) time.Duration {
		begun := time.Now()
		testenv.Eventually(t, 30*time.Second, func() error {
			// The server may be finishing it at this moment.
			if out, err := i.postbook("rotate", "kek"); err != nil {
				return fmt.Errorf("round %d: %w\n%s", round, err, out)
			}
			return nil
		})
		return time.Since(begun)
	}
	took := rotate(-1)
	for round := range rounds {
		i.killed(rand.N(took), "rotate", "kek")
		if r := i.ask("GET", "/emails", nil); r.status != 200 || strings.Contains(string(r.body), "erased") {
			t.Fatalf("round %d: %s", round, r)
		}
		rotate(round)
	}
	cancel()
	clients.Wait()
	t.Logf("%d mails were sent and %d accounts made during %d rotations of %s", sent.Load(), made.Load(), rounds+1, took.Round(time.Millisecond))

	// One is killed together with the server, which then takes it up by itself.
	i.killed(took/2, "rotate", "kek")
	i.kill()
	i.start("--quiet")
	testenv.Eventually(t, 60*time.Second, func() error {
		out, err := i.postbook("events", "show", "platform.kek.root")
		if started, finished := strings.Count(out, "kek.rotation_started"), strings.Count(out, "kek.rotation_finished"); err != nil || started == 0 || started != finished {
			return fmt.Errorf("%d rotations were started and %d finished: %w", started, finished, err)
		}
		return nil
	})
	i.stop()
	i.sound()
	root, err := keyring.OpenRoot(t.Context(), filepath.Join(i.dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	all := keysetsIn(t, filepath.Join(i.dir, "log"))
	if len(all) != int(made.Load())+2 {
		t.Errorf("%d keysets are there, of %d", len(all), made.Load()+2)
	}
	for account, blobs := range all {
		if _, err := root.Unwrap(t.Context(), blobs[len(blobs)-1], []byte(account)); err != nil {
			t.Errorf("the keyset of %s: %v", account, err)
		}
	}
	if left, err := fs.Glob(os.DirFS(i.dir), "root.key*"); err != nil || len(left) > 2 || len(left) == 2 && left[1] != "root.key.next" {
		t.Errorf("beside the root key there are %v, %v", left, err) // a next one that no event names yet is used the next time
	}
}
