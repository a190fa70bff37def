package notary_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

// childDir tells a process that runs this test binary to write and seal in a
// folder until it is killed.
const childDir = "POSTBOOK_TEST_SEAL_IN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := writeUntilKilled(dir); err != nil {
			fmt.Println("error:", err)
		}
		return
	}
	os.Exit(m.Run())
}

func writeUntilKilled(dir string) error {
	ctx := context.Background()
	keys, err := seal.OpenKeys(filepath.Join(dir, "signing.keys"), time.Now())
	if err != nil {
		return err
	}
	mark := []byte("the platform's mark")
	store, err := eventstore.Open(ctx, eventstore.Config{Dir: filepath.Join(dir, "log"), Partitions: 1, MarkKey: mark, Registry: catalogue.Registry(), Log: quiet})
	if err != nil {
		return err
	}
	notes := notary.New(notary.Config{
		Store: store, Dir: filepath.Join(dir, "seal"), Keys: keys, MarkKey: mark, Now: time.Now, Log: quiet, SignEvery: 5 * time.Millisecond,
		Found: func(_ context.Context, f seal.Finding) { fmt.Println("found:", f) },
	})
	if err := notes.Begin(); err != nil {
		return err
	}
	go func() { fmt.Println("error:", notes.Run(ctx)) }()
	fmt.Println("ready")
	for {
		if _, err := store.Accept(ctx, []eventstore.Commit{accept("hello"), accept("world")}); err != nil {
			return err
		}
	}
}

// A process that is killed at any moment leaves a log and a seal that fit.
func TestNoFalseAlarmAfterCrashes(t *testing.T) {
	t.Parallel()
	rounds := 25
	if os.Getenv("POSTBOOK_TEST_LONG") != "" {
		rounds = 1000
	}
	var i *instance
	sealedLast := int64(0)
	for n := range rounds {
		if n%50 == 0 {
			dir := t.TempDir()
			keys := must(seal.OpenKeys(filepath.Join(dir, "signing.keys"), time.Now()))(t)
			i = &instance{dir: dir, keys: keys, mark: []byte("the platform's mark")}
			sealedLast = 0
		}
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+i.dir)
		out := must(child.StdoutPipe())(t)
		must(0, child.Start())(t)
		lines := bufio.NewReader(out)
		if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("round %d: the process says %q, %v", n, line, err)
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		must(0, child.Process.Kill())(t)
		said := must(io.ReadAll(lines))(t)
		_ = child.Wait() // it was killed
		if len(said) > 0 {
			t.Errorf("round %d: the process says %s", n, strings.TrimSpace(string(said)))
		}
		r := i.verify(t)
		if !r.OK() {
			t.Fatalf("round %d: %v", n, r.Findings)
		}
		if r.Sealed < sealedLast {
			t.Fatalf("round %d: %d entries are sealed, and before it were %d", n, r.Sealed, sealedLast)
		}
		sealedLast = r.Sealed
	}
	if sealedLast == 0 {
		t.Error("nothing was ever sealed")
	}
	t.Logf("%d crashes", rounds)
}
