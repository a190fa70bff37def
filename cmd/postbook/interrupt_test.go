package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"postbook.dev/postbook/internal/testenv"
)

// Whoever reads the exit status of a command that was stopped, such as a timer's, is
// not told that it was done. A server that was told to stop has done what it should.
func TestACommandThatIsStoppedIsNotDone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args   []string
		status int
	}{
		{[]string{"bench", "load", "--events", "100000000"}, 130},
		{[]string{"dev", "--quiet"}, 0},
	} {
		dir, err := os.MkdirTemp("", "postbook-e2e-") // which the database's own account can pass through
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		cmd := exec.Command(binary, c.args...)
		var said bytes.Buffer
		cmd.Stderr = &said
		cmd.Env = append(os.Environ(), "POSTBOOK_DATA_DIR="+dir, "POSTBOOK_HTTP_ADDR=127.0.0.1:0", "POSTBOOK_SMTP_ADDR=127.0.0.1:0")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, 30*time.Second, func() error {
			_, err := os.Stat(filepath.Join(dir, "log", "lock"))
			return err
		})
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		err = cmd.Wait()
		var exit *exec.ExitError
		status := 0
		if errors.As(err, &exit) {
			status = exit.ExitCode()
		}
		if status != c.status || strings.Contains(said.String(), "interrupted") != (c.status != 0) {
			t.Errorf("%v: exit status %d, want %d: %s", c.args, status, c.status, said.String())
		}
	}
}

// What a server has left behind that was killed is not taken for a server, whoever
// has its number now; and one that is running loses nothing to a second one.
func TestWhoeverRunsIsKnownByTheLock(t *testing.T) {
	t.Parallel()
	i := launch(t)
	if said, err := i.postbook("dev", "--quiet"); err == nil || !strings.Contains(said, "in use by another process") {
		t.Fatalf("a second server: %v\n%s", err, said)
	}
	if err := i.learn(); err != nil {
		t.Errorf("the first one's facts are gone: %v", err)
	}
	if said, err := i.postbook("rotate", "seal"); err == nil || !strings.Contains(said, "stop the server first") {
		t.Errorf("beside a server: %v\n%s", err, said)
	}
	i.kill()
	path := filepath.Join(i.dir, runningFile)
	left, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	number := regexp.MustCompile(`"pid":\d+`)
	if err := os.WriteFile(path, number.ReplaceAll(left, fmt.Appendf(nil, `"pid":%d`, os.Getpid())), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"events", "stats"}, {"verify", "--log"}, {"staff", "join", "grace@acme.test"}} {
		if said, err := i.postbook(args...); err != nil {
			t.Errorf("%v: %v\n%s", args, err, said)
		}
	}
}
