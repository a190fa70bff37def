package pgcluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("PGCLUSTER_TEST_DIR"); dir != "" {
		runUntilKilled(dir)
	}
	os.Exit(m.Run())
}

// runUntilKilled is a parent process for the test that kills it.
func runUntilKilled(dir string) {
	c, err := Start(context.Background(), Options{Dir: dir, Fsync: true})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("up", c.cmd.Process.Pid)
	select {}
}

// killed runs a command that ends in runUntilKilled, kills it as soon as it has said
// something, and returns that.
func killed(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	parent := exec.Command(name, args...)
	parent.Env = append(os.Environ(), "PGCLUSTER_TEST_DIR="+dir)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	_ = parent.Process.Kill()
	_ = parent.Wait()
	if err != nil {
		t.Fatalf("the parent said %q, %v", line, err)
	}
	return line
}

func start(t *testing.T, dir string) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), Options{Dir: dir, Fsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestDataIsThereAfterTheParentWasKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30), "cluster")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if line := killed(t, dir, os.Args[0]); !strings.HasPrefix(line, "up") {
		t.Fatalf("the parent said %q", line)
	}

	c := start(t, dir)
	if err := c.Provision(t.Context(), "postbook"); err != nil {
		t.Fatal(err)
	}
	if err := c.Provision(t.Context(), "postbook"); err != nil {
		t.Fatalf("a second time: %v", err)
	}
	conn, err := pgx.Connect(t.Context(), c.URL("postbook", "postbook"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var super bool
	if err := conn.QueryRow(t.Context(), `SELECT rolsuper FROM pg_roles WHERE rolname = current_user`).Scan(&super); err != nil || super {
		t.Fatalf("the owner is a superuser: %v, %v", super, err)
	}
}

func TestNobodyGetsInWithoutThePassword(t *testing.T) {
	c := start(t, t.TempDir())
	wrong := strings.Replace(c.URL("postgres", "postgres"), "postgres:", "postgres:x", 1)
	if conn, err := pgx.Connect(t.Context(), wrong); err == nil {
		_ = conn.Close(t.Context())
		t.Fatal("a wrong password was taken")
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := c.password("postgres")
	if strings.Contains(string(cmdline), password) {
		t.Fatal("the password is in the process's arguments")
	}
}

// Databases that are made at once share their roles: no call fails because
// another makes one, and each password lets in.
func TestDatabasesAreProvisionedAtOnce(t *testing.T) {
	c := start(t, t.TempDir())
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			name := fmt.Sprintf("at_once_%d", n)
			if err := c.Provision(t.Context(), name); err != nil {
				t.Error(err)
				return
			}
			for _, role := range []string{owner, projector, reader} {
				conn, err := pgx.Connect(t.Context(), c.URL(name, role))
				if err != nil {
					t.Error(err)
					continue
				}
				_ = conn.Close(t.Context())
			}
		})
	}
	all.Wait()
}

func TestStoppingIsQuickAndComplete(t *testing.T) {
	c, err := Start(t.Context(), Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the server still runs")
	}
}

// A cluster stays with the version that made it, whichever was installed since.
func TestTheVersionOfTheClusterIsTaken(t *testing.T) {
	data := t.TempDir()
	all := []server{{15, "/fifteen"}, {17, "/seventeen"}, {9, "/nine"}}
	for _, c := range []struct {
		made      string
		installed []server
		bin       string
		refused   string
	}{
		{"", all, "/seventeen", ""},
		{"15\n", all, "/fifteen", ""},
		{"16\n", all, "", "was made by PostgreSQL 16, and installed is 17"},
		{"", nil, "", "PostgreSQL's server is not installed"},
	} {
		version := filepath.Join(data, versionFile)
		if c.made == "" {
			_ = os.Remove(version)
		} else if err := os.WriteFile(version, []byte(c.made), 0o600); err != nil {
			t.Fatal(err)
		}
		bin, err := choose(c.installed, data)
		if bin != c.bin || (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("made by %q, with %v: %q, %v; want %q, %q", c.made, c.installed, bin, err, c.bin, c.refused)
		}
	}
}

// Root in a container mostly may not pass through directories that are closed to it,
// nor let others: the server runs all the same where its directory lies in one of ours,
// and says what it cannot enter where it lies below somebody else's.
func TestRootWithoutAllCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has capabilities to be without")
	}
	open, err := os.MkdirTemp("", "pgcluster") // a test's own is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(open) })
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{
		filepath.Join(open, "data", "postgres"):           "up ",
		filepath.Join(open, "closed", "data", "postgres"): "who may not enter " + filepath.Join(open, "closed") + ":",
	} {
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		line := killed(t, dir, "setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-dac_read_search", os.Args[0])
		if !strings.Contains(line, want) {
			t.Errorf("in %s it said %q; want %q", dir, line, want)
		}
	}
}
