package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/internal/testenv"
)

// witness starts a witness for a platform and returns its address and its key.
func witness(t *testing.T, dir, platform string) (url, key string) {
	t.Helper()
	cmd := exec.Command(binary, "witness", "--json", "--addr", "127.0.0.1:0", "--dir", dir, platform)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var facts struct{ URL, Key string }
	if err := json.NewDecoder(out).Decode(&facts); err != nil {
		t.Fatal(err)
	}
	return facts.URL, facts.Key
}

// health is what /health says of the seal.
func (i *instance) sealSays(t *testing.T, want string) {
	t.Helper()
	testenv.Eventually(t, 40*time.Second, func() error {
		var health struct{ Seal string }
		i.ask("GET", "/health", nil, "Authorization", "").decode(t, &health)
		if health.Seal != want {
			return fmt.Errorf("the seal is %q", health.Seal)
		}
		return nil
	})
}

// An event is proven to somebody who has the platform's public key and nothing
// else, and what is done with the log's own credentials is found.
func TestTheLogProvesItself(t *testing.T) {
	t.Parallel()
	i := launch(t)
	for n := range 20 {
		i.lastEvent(i.ask("POST", "/emails", hello(fmt.Sprintf("a%d@rcpt.test", n))).id(t), "delivered")
	}
	i.sealSays(t, "not witnessed")
	i.stop()
	if out, err := i.postbook("verify", "--log"); err != nil || strings.Count(out, "as it was sealed") != 7 || !strings.Contains(out, "not witnessed") {
		t.Fatalf("verify, without a server: %v\n%s", err, out)
	}
	public, err := os.ReadFile(filepath.Join(i.dir, "seal", "public.keys"))
	if err != nil {
		t.Fatal(err)
	}
	ours := strings.TrimSpace(string(public))
	url, key := witness(t, t.TempDir(), ours)
	copies := t.TempDir()
	i.env = append(i.env, "POSTBOOK_WITNESSES="+url+" "+key, "POSTBOOK_SEAL_COPIES="+copies)
	i.start("--quiet")
	i.sealSays(t, "witnessed")
	out, err := i.postbook("verify", "--log", "--key", ours, "--witness-key", key, "--copy", copies)
	if err != nil || strings.Count(out, "; witnessed by ") != 7 || strings.Count(out, "NOT") != 0 || strings.Count(out, "fits 3 kept elsewhere") != 7 {
		t.Fatalf("verify, beside the server: %v\n%s", err, out)
	}

	proof := filepath.Join(t.TempDir(), "proof")
	if out, err := i.postbook("events", "show", "LEDGER/1", "--proof", proof); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	checker := filepath.Join(t.TempDir(), "postbook-proof")
	if out, err := exec.Command("go", "build", "-o", checker, "../postbook-proof").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command(checker, "--key", ours, "--witness-key", key, proof).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("LEDGER 1 was recorded")) || !bytes.Contains(out, []byte(`"type":"`)) {
		t.Errorf("the proof: %v\n%s", err, out)
	}
	if out, err := exec.Command(checker, "--key", key, proof).CombinedOutput(); err == nil {
		t.Errorf("the proof holds with another's key:\n%s", out)
	}

	i.meddle(t)
	out, err = i.postbook("verify", "--log", "--key", ours)
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("verify, after the log was meddled with: %v", err)
	}
	for _, want := range []string{"forged: it does not carry", "MAIL_00 1: missing:"} {
		if !strings.Contains(out, want) {
			t.Errorf("verify does not say %q:\n%s", want, out)
		}
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		if out, err := i.postbook("events", "show", "platform.seal.logs"); err != nil || !strings.Contains(out, "forged") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// meddle does what somebody can who has the log's credentials: it publishes an
// entry of the ledger once more, and has the server drop a mail log's first ones.
func (i *instance) meddle(t *testing.T) {
	t.Helper()
	nc, err := nats.Connect(i.facts.NATSURL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ledger, err := js.Stream(t.Context(), "LEDGER")
	if err != nil {
		t.Fatal(err)
	}
	first, err := ledger.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), first.Subject, first.Data); err != nil {
		t.Fatal(err)
	}
	mail, err := js.Stream(t.Context(), "MAIL_00")
	if err != nil {
		t.Fatal(err)
	}
	config := mail.CachedInfo().Config
	config.MaxMsgs, config.Discard = 1, jetstream.DiscardOld
	if _, err := js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
}
