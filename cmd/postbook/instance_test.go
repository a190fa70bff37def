package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/seal"
)

// binary is the program as users run it, built once.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "postbook-binary-")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "postbook")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Printf("build the program: %v\n%s", err, out)
		os.Exit(1)
	}
	code := testenv.Main(m)
	os.RemoveAll(dir)
	os.Exit(code)
}

// instance is a running `postbook dev` on a data directory of a test's own.
type instance struct {
	t      testing.TB
	dir    string
	env    []string
	cmd    *exec.Cmd
	output *buffer
	client *http.Client
	facts  devFacts                 // of the newest start
	at     atomic.Pointer[devFacts] // the same, for goroutines that ask while it is started again

	sessions map[int]session // of staff
}

// buffer collects what a process says while a test may read it.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// launch starts an instance with some configuration, and waits until it is ready.
func launch(t testing.TB, env ...string) *instance {
	t.Helper()
	// The private database's own account has to pass through the directory, whose name
	// is one that a shell, a pattern or an address would take apart.
	dir, err := os.MkdirTemp("", "postbook e2e [1] %25 *")
	if err != nil {
		t.Fatal(err)
	}
	i := newInstance(t, dir, env...)
	i.start("--quiet")
	return i
}

// newInstance is one that does not run yet.
func newInstance(t testing.TB, dir string, env ...string) *instance {
	i := &instance{t: t, dir: dir, env: env, client: &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{MaxIdleConnsPerHost: 100},
	}}
	t.Cleanup(func() {
		if i.cmd != nil {
			i.stop()
		}
		if i.output != nil && strings.Contains(i.output.String(), "DATA RACE") { // with GOFLAGS=-race
			t.Errorf("the program races:\n%s", i.output)
		}
		os.RemoveAll(dir)
	})
	return i
}

// launchBeside starts another instance on the log and the database of the first,
// with the keys that an operator copies to it.
func launchBeside(t testing.TB, first *instance, env ...string) *instance {
	t.Helper()
	dir, err := os.MkdirTemp("", "postbook-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"root.key", "seal/mark.key", "seal/signing.keys", keptFile} {
		data, err := os.ReadFile(filepath.Join(first.dir, name))
		if err == nil {
			err = seal.WriteFile(filepath.Join(dir, name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	i := newInstance(t, dir, env...)
	i.start("--quiet")
	return i
}

func (i *instance) start(args ...string) {
	i.t.Helper()
	os.Remove(filepath.Join(i.dir, devFile))
	i.output = &buffer{}
	i.cmd = exec.Command(binary, append([]string{"dev"}, args...)...)
	i.cmd.Env = append(os.Environ(), "POSTBOOK_DATA_DIR="+i.dir, "POSTBOOK_HTTP_ADDR=127.0.0.1:0", "POSTBOOK_SMTP_ADDR=127.0.0.1:0")
	i.cmd.Env = append(i.cmd.Env, i.env...)
	i.cmd.Stdout, i.cmd.Stderr = i.output, i.output
	i.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := i.cmd.Start(); err != nil {
		i.t.Fatal(err)
	}
	ended := make(chan error, 1)
	cmd := i.cmd
	go func() { ended <- cmd.Wait() }()
	deadline := time.Now().Add(electing + time.Minute)
	for {
		if i.learn() == nil {
			break
		}
		select {
		case err := <-ended:
			i.t.Fatalf("postbook ended: %v\n%s", err, i.output)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			i.t.Fatalf("postbook is not ready after minutes\n%s", i.output)
		}
	}
	go func() { <-ended }()
}

// learn reads what the program has written for whoever drives it.
func (i *instance) learn() error {
	data, err := os.ReadFile(filepath.Join(i.dir, devFile))
	if err != nil {
		return err
	}
	var facts devFacts
	if err := json.Unmarshal(data, &facts); err != nil {
		return err
	}
	i.facts = facts
	i.at.Store(&facts)
	return nil
}

// kill ends the process as a power cut would.
func (i *instance) kill() {
	_ = i.cmd.Process.Kill()
	i.waitForEnd()
}

// stop ends the process as an operator would.
func (i *instance) stop() {
	_ = i.cmd.Process.Signal(syscall.SIGTERM)
	i.waitForEnd()
}

func (i *instance) waitForEnd() {
	i.t.Helper()
	testenv.Eventually(i.t, 90*time.Second, func() error {
		if err := i.cmd.Process.Signal(syscall.Signal(0)); err == nil {
			return errors.New("the process is still there")
		}
		return nil
	})
	i.client.CloseIdleConnections()
}

// postbook runs a command beside the instance.
func (i *instance) postbook(args ...string) (string, error) {
	cmd := exec.Command(binary, args...)
	cmd.Env = append(append(os.Environ(), "POSTBOOK_DATA_DIR="+i.dir), i.env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// reply is an answer of the API.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r reply) decode(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal(r.body, v); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
}

func (r reply) String() string { return fmt.Sprintf("%d %s", r.status, r.body) }

// id is the id of what was made.
func (r reply) id(t testing.TB) string {
	t.Helper()
	var b struct{ ID string }
	r.decode(t, &b)
	if r.status/100 != 2 || b.ID == "" {
		t.Fatalf("no id: %s", r)
	}
	return b.ID
}

// name is the stable name of an error.
func (r reply) name(t testing.TB) string {
	t.Helper()
	var e struct {
		StatusCode int    `json:"statusCode"`
		Name       string `json:"name"`
		Message    string `json:"message"`
	}
	r.decode(t, &e)
	if e.StatusCode != r.status || e.Name == "" || e.Message == "" {
		t.Fatalf("the error has not the contract's shape: %s", r)
	}
	return e.Name
}

// ask makes a request with the account's key. body is bytes, or becomes JSON.
func (i *instance) ask(method, path string, body any, headers ...string) reply {
	i.t.Helper()
	r, err := i.try(context.Background(), method, path, body, headers...)
	if err != nil {
		i.t.Fatalf("%s %s: %v\n%s", method, path, err, i.output)
	}
	return r
}

func (i *instance) try(ctx context.Context, method, path string, body any, headers ...string) (reply, error) {
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		reader = bytes.NewReader(b)
	case string:
		reader = strings.NewReader(b)
	case io.Reader:
		reader = b
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return reply{}, err
		}
		reader = bytes.NewReader(data)
	}
	at := i.at.Load()
	req, err := http.NewRequestWithContext(ctx, method, at.BaseURL+path, reader)
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Authorization", "Bearer "+at.APIKey)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "postbook-test")
	for n := 0; n < len(headers); n += 2 {
		if headers[n+1] == "" {
			req.Header.Del(headers[n])
		} else {
			req.Header.Set(headers[n], headers[n+1])
		}
	}
	res, err := i.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, data}, err
}

// session is one of staff.
type session struct {
	token string
	at    time.Time
}

// staff signs a member of staff in, and returns their session: the one from before if
// it is still fresh, since a code is good once.
func (i *instance) staff(n int) string {
	i.t.Helper()
	if s := i.sessions[n]; time.Since(s.at) < 3*time.Minute {
		return s.token
	}
	who := i.facts.Staff[n]
	code, err := totp.GenerateCode(who.TOTPSecret, time.Now())
	if err != nil {
		i.t.Fatal(err)
	}
	r := i.ask("POST", "/staff/sessions", map[string]string{"email": who.Email, "password": who.Password, "totp": code})
	var s struct{ Token string }
	r.decode(i.t, &s)
	if s.Token == "" {
		i.t.Fatalf("no session: %s", r)
	}
	if i.sessions == nil {
		i.sessions = map[int]session{}
	}
	i.sessions[n] = session{s.Token, time.Now()}
	return s.Token
}

// lastEvent waits until the last thing that happened to an email is the one.
func (i *instance) lastEvent(id, want string) {
	i.t.Helper()
	testenv.Eventually(i.t, 30*time.Second, func() error {
		var e struct {
			LastEvent string `json:"last_event"`
		}
		r := i.ask("GET", "/emails/"+id, nil)
		r.decode(i.t, &e)
		if e.LastEvent != want {
			return fmt.Errorf("the last event is %q, and %q is awaited: %s", e.LastEvent, want, r)
		}
		return nil
	})
}

// hello is a small mail.
func hello(to string) map[string]any {
	return map[string]any{"from": "Ada <ada@" + devDomain + ">", "to": to, "subject": "Hello", "text": "Hello."}
}
