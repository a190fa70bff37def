package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"

	"postbook.dev/postbook/internal/testenv"
)

// Whatever is wrong with a request, it is told in the contract's shape, and
// nothing is half-done.
func TestBadInput(t *testing.T) {
	t.Parallel()
	i := launch(t)
	good := hello("a@rcpt.test")
	many := func(n int) []string {
		list := make([]string, n)
		for k := range list {
			list[k] = fmt.Sprintf("n%d@rcpt.test", k)
		}
		return list
	}
	var revoked struct{ ID, Token string }
	i.ask("POST", "/api-keys", map[string]any{"name": "Revoked"}).decode(t, &revoked)
	if r := i.ask("DELETE", "/api-keys/"+revoked.ID, nil); r.status != 200 {
		t.Fatal(r)
	}
	var sending struct{ Token string }
	i.ask("POST", "/api-keys", map[string]any{"name": "Sending", "permission": "sending_access"}).decode(t, &sending)

	cases := []struct {
		name    string
		path    string // empty is POST /emails
		body    any
		headers []string
		status  int
		error   string
		says    string // part of the message
	}{
		{name: "no JSON", body: `{"from":`, status: 422, error: "validation_error", says: "JSON"},
		{name: "an array for an object", body: `[]`, status: 422, error: "validation_error", says: "object"},
		{name: "a number for a text", body: with(good, "subject", 7), status: 422, error: "validation_error", says: "subject"},
		{name: "an object for addresses", body: with(good, "to", map[string]any{}), status: 422, error: "validation_error", says: "to"},
		{name: "no from", body: with(good, "from", nil), status: 422, error: "missing_required_field", says: "from"},
		{name: "no to", body: with(good, "to", nil), status: 422, error: "missing_required_field", says: "to"},
		{name: "no subject", body: with(good, "subject", nil), status: 422, error: "missing_required_field", says: "subject"},
		{name: "no content", body: with(good, "text", nil), status: 422, error: "missing_required_field", says: "html"},
		{name: "an address without a domain", body: with(good, "to", "ada"), status: 422, error: "validation_error", says: "to"},
		{name: "an address with a line end", body: with(good, "to", "ada@rcpt.test\r\nBcc: eve@rcpt.test"), status: 422, error: "validation_error", says: "to"},
		{name: "a from with a line end", body: with(good, "from", "Ada\r\nBcc: eve@rcpt.test <ada@"+devDomain+">"), status: 422, error: "validation_error", says: "from"},
		{name: "a subject with a line end", body: with(good, "subject", "Hello\r\nBcc: eve@rcpt.test"), status: 422, error: "validation_error", says: "subject"},
		{name: "a header with a line end", body: with(good, "headers", map[string]string{"X-A": "1\r\nBcc: eve@rcpt.test"}), status: 422, error: "validation_error", says: "X-A"},
		{name: "a header that is written here", body: with(good, "headers", map[string]string{"DKIM-Signature": "v=1"}), status: 422, error: "validation_error", says: "DKIM-Signature"},
		{name: "a header with a blind copy", body: with(good, "headers", map[string]string{"Bcc": "eve@rcpt.test"}), status: 422, error: "validation_error", says: "Bcc"},
		{name: "51 recipients", body: with(good, "to", many(51)), status: 422, error: "validation_error", says: "50"},
		{name: "1,000 recipients", body: with(good, "to", many(1000)), status: 422, error: "validation_error", says: "50"},
		{name: "a domain that is not verified", body: with(good, "from", "ada@example.com"), status: 403, error: "validation_error", says: "example.com"},
		{name: "a tag with a blank", body: with(good, "tags", []map[string]string{{"name": "a b", "value": "c"}}), status: 422, error: "validation_error", says: "Tags"},
		{name: "a time that is none", body: with(good, "scheduled_at", "when pigs fly"), status: 422, error: "validation_error", says: "scheduled_at"},
		{name: "a time too far ahead", body: with(good, "scheduled_at", time.Now().Add(31*24*time.Hour)), status: 422, error: "validation_error", says: "30 days"},
		{name: "an attachment that is not base64", body: with(good, "attachments", []map[string]string{{"filename": "a.txt", "content": "!!"}}), status: 422, error: "invalid_attachment"},
		{name: "an attachment from this host's network", body: with(good, "attachments", []map[string]string{{"filename": "a.txt", "path": "http://169.254.169.254/latest/meta-data"}}), status: 422, error: "invalid_attachment"},
		{name: "50 MB", body: func() io.Reader {
			return io.MultiReader(strings.NewReader(`{"text":"`), io.LimitReader(letters{}, 60<<20), strings.NewReader(`"}`))
		}(), status: 422, error: "validation_error", says: "larger"},
		{name: "no token", body: good, headers: []string{"Authorization", "Bearer "}, status: 401, error: "missing_api_key"},
		{name: "another scheme", body: good, headers: []string{"Authorization", "Basic cmU6cmU="}, status: 401, error: "missing_api_key"},
		{name: "no key", body: good, headers: []string{"Authorization", ""}, status: 401, error: "missing_api_key"},
		{name: "a key that nobody issued", body: good, headers: []string{"Authorization", "Bearer re_12345678_123456789012345678901234"}, status: 400, error: "validation_error", says: "API key"},
		{name: "a key that was revoked", body: good, headers: []string{"Authorization", "Bearer " + revoked.Token}, status: 400, error: "validation_error", says: "API key"},
		{name: "a sending key that reads", path: "GET /emails", headers: []string{"Authorization", "Bearer " + sending.Token}, status: 401, error: "restricted_api_key"},
		{name: "an idempotency key of 257 characters", body: good, headers: []string{"Idempotency-Key", strings.Repeat("k", 257)}, status: 400, error: "invalid_idempotency_key"},
		{name: "an empty batch", path: "POST /emails/batch", body: []any{}, status: 422, error: "validation_error", says: "100"},
		{name: "a batch of 101", path: "POST /emails/batch", body: repeat(good, 101), status: 422, error: "validation_error", says: "100"},
		{name: "a batch with one that is wrong", path: "POST /emails/batch", body: []any{good, with(good, "to", "nobody")}, status: 422, error: "validation_error"},
		{name: "an id that is none", path: "GET /emails/1", status: 422, error: "invalid_parameter"},
		{name: "an id that nobody has", path: "GET /emails/01a20b56-92f5-78c1-9239-7fb7d357dd60", status: 404, error: "not_found"},
		{name: "a path that climbs", path: "GET /emails/..%2f..%2fetc%2fpasswd", status: 422, error: "invalid_parameter"},
		{name: "a limit that is none", path: "GET /emails?limit=1000", status: 422, error: "validation_error", says: "limit"},
		{name: "a method that is none", path: "PUT /emails", body: good, status: 405, error: "method_not_allowed"},
		{name: "a path that is none", path: "GET /nowhere", status: 404, error: "not_found"},
		{name: "a domain that is none", path: "POST /domains", body: map[string]any{"name": "not a domain"}, status: 422, error: "validation_error", says: "name"},
		{name: "an address for a domain", path: "POST /domains", body: map[string]any{"name": "127.0.0.1"}, status: 422, error: "validation_error"},
		{name: "a region that is none", path: "POST /domains", body: map[string]any{"name": "acme.test", "region": "moon"}, status: 422, error: "validation_error", says: "Region"},
		{name: "a name of 51 characters", path: "POST /api-keys", body: map[string]any{"name": strings.Repeat("n", 51)}, status: 422, error: "validation_error", says: "50"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			method, path := "POST", "/emails"
			if c.path != "" {
				method, path, _ = strings.Cut(c.path, " ")
			}
			r, err := i.try(t.Context(), method, path, c.body, c.headers...)
			if err != nil {
				t.Fatal(err)
			}
			if r.status != c.status || r.name(t) != c.error || !strings.Contains(string(r.body), c.says) {
				t.Errorf("got %s, want %d %s that says %q", r, c.status, c.error, c.says)
			}
		})
	}
	if r := i.ask("GET", "/emails", nil); !strings.Contains(string(r.body), `"data":[]`) {
		t.Errorf("something was accepted: %s", r)
	}
	// Fields that the contract does not know are ignored, as it says.
	i.lastEvent(i.ask("POST", "/emails", with(good, "colour", "blue")).id(t), "delivered")
}

type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for n := range p {
		p[n] = 'a'
	}
	return len(p), nil
}

func repeat(mail map[string]any, n int) []any {
	all := make([]any, n)
	for k := range all {
		all[k] = mail
	}
	return all
}

// Without the log nothing is accepted, and the caller is told; when it is back,
// all goes on.
func TestNothingIsAcceptedWithoutTheLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cluster := startNATS(t, dir, natsserver.RANDOM_PORT)
	port := cluster.Addr().(*net.TCPAddr).Port
	sink := testenv.StartSink(t)
	i := launch(t, "POSTBOOK_NATS_URL=nats://"+cluster.Addr().String(), "POSTBOOK_DELIVERY=relay", "POSTBOOK_RELAY_URL=smtp://"+sink.Addr)
	i.lastEvent(i.ask("POST", "/emails", hello("a@rcpt.test")).id(t), "delivered")

	cluster.Shutdown()
	cluster.WaitForShutdown()
	r := i.ask("POST", "/emails", hello("b@rcpt.test"))
	if r.status != http.StatusServiceUnavailable || r.name(t) == "" {
		t.Errorf("without the log: %s", r)
	}
	if r := i.ask("GET", "/health", nil, "Authorization", ""); r.status != http.StatusServiceUnavailable {
		t.Errorf("health without the log: %s", r)
	}
	again := startNATS(t, dir, port)
	defer again.Shutdown()
	var id string
	testenv.Eventually(t, 60*time.Second, func() error {
		r := i.ask("POST", "/emails", hello("c@rcpt.test"))
		if r.status != 200 {
			return fmt.Errorf("%s", r)
		}
		id = r.id(t)
		return nil
	})
	i.lastEvent(id, "delivered")
}

func startNATS(t *testing.T, dir string, port int) *natsserver.Server {
	t.Helper()
	s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("NATS does not start")
	}
	t.Cleanup(s.Shutdown)
	return s
}

// A full disk refuses mail, loses none, and is survived.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	sink := testenv.StartSink(t)
	i := launch(t, "POSTBOOK_DELIVERY=relay", "POSTBOOK_RELAY_URL=smtp://"+sink.Addr)
	i.stop()
	small := filepath.Join(i.dir, "log")
	kept := small + ".kept"
	if err := os.Rename(small, kept); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=48m,mode=0700"); err != nil {
		t.Skipf("a small disk cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	if err := os.CopyFS(small, os.DirFS(kept)); err != nil {
		t.Fatal(err)
	}
	i.start("--quiet")

	var accepted []string
	big := with(hello("a@rcpt.test"), "text", strings.Repeat("The disk is small. ", 20_000))
	var refused reply
	for range 200 {
		r, err := i.try(t.Context(), "POST", "/emails", big)
		if err != nil {
			break // the process may end itself when it cannot sync
		}
		if r.status != 200 {
			refused = r
			break
		}
		accepted = append(accepted, r.id(t))
	}
	if len(accepted) == 0 || refused.status != 503 && refused.status != 0 {
		t.Fatalf("%d were accepted, then %s", len(accepted), refused)
	}
	if refused.status == 503 && refused.name(t) == "" {
		t.Error(refused)
	}

	// The operator gives it a larger disk.
	if err := syscall.Mount("tmpfs", small, "tmpfs", syscall.MS_REMOUNT, "size=512m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	i.kill()
	i.start("--quiet")
	for _, id := range accepted {
		testenv.Eventually(t, 3*time.Minute, func() error {
			r := i.ask("GET", "/emails/"+id, nil)
			var e struct {
				LastEvent string `json:"last_event"`
			}
			if json.Unmarshal(r.body, &e) != nil || e.LastEvent != "delivered" {
				return fmt.Errorf("%s: %d %s", id, r.status, e.LastEvent)
			}
			return nil
		})
	}
	i.lastEvent(i.ask("POST", "/emails", hello("after@rcpt.test")).id(t), "delivered")
}
