package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
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
	again, err := exec.Command(binary, "witness", "--addr", "127.0.0.1:0", "--dir", dir, platform).CombinedOutput()
	if err == nil || !strings.Contains(string(again), "already") {
		t.Errorf("a second witness in the same folder: %v, %s", err, again)
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
	if err != nil || strings.Count(out, "; witnessed by ") != 7 || strings.Count(out, "NOT") != 0 || strings.Count(out, "fits 2 kept elsewhere") != 7 {
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

// Whoever puts an older state of everything back, with all keys, cannot take it back
// from a witness: verify asks it, whatever lies here.
func TestAWitnessRemembersWhatAnOlderStateDoesNot(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.stop()
	public, err := os.ReadFile(filepath.Join(i.dir, "seal", "public.keys"))
	if err != nil {
		t.Fatal(err)
	}
	url, key := witness(t, t.TempDir(), strings.TrimSpace(string(public)))
	i.env = append(i.env, "POSTBOOK_WITNESSES="+url+" "+key)
	i.start("--quiet")
	i.lastEvent(i.ask("POST", "/emails", hello("one@rcpt.test")).id(t), "delivered")
	i.sealSays(t, "witnessed")
	i.stop()
	older := i.elsewhere(t)
	if out, err := exec.Command("cp", "-a", i.dir+"/.", older.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	older.env = i.env
	if out, err := older.postbook("verify", "--log"); err != nil || strings.Count(out, "; witnessed by ") != 7 {
		t.Errorf("the same state: %v\n%s", err, out)
	}
	i.start("--quiet")
	i.lastEvent(i.ask("POST", "/emails", hello("two@rcpt.test")).id(t), "delivered")
	i.sealSays(t, "witnessed")
	for range 3 { // also while it goes on
		if out, err := i.postbook("verify", "--log"); err != nil || strings.Count(out, "; witnessed by ") != 7 {
			t.Errorf("the state that goes on: %v\n%s", err, out)
		}
	}
	testenv.Eventually(t, 20*time.Second, func() error { // heads are shown a moment after they are signed
		out, err := older.postbook("verify", "--log")
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out, "has seen") {
			return fmt.Errorf("the older state: %w\n%s", err, out)
		}
		return nil
	})
	older.env = []string{"POSTBOOK_WITNESSES=http://127.0.0.1:1 " + key}
	if out, err := older.postbook("verify", "--log"); err == nil || !strings.Contains(out, "ask a witness") {
		t.Errorf("a witness that does not answer: %v\n%s", err, out)
	}
}

// A log whose files are gone, all of them, is missing and not passed over.
func TestAWholeLogIsMissing(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.lastEvent(i.ask("POST", "/emails", hello("one@rcpt.test")).id(t), "delivered")
	i.stop()
	streams := filepath.Join(i.dir, "log", "jetstream", "$G", "streams")
	for _, gone := range []string{"MAIL_02", "."} {
		if err := os.RemoveAll(filepath.Join(streams, gone)); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(streams, 0o700); err != nil {
			t.Fatal(err)
		}
		out, err := i.postbook("verify", "--log")
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(out, "MAIL_02 1: missing:") {
			t.Errorf("without %s: %v\n%s", gone, err, out)
		}
	}
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

// Heads lie in a bucket as well.
func TestHeadsInABucket(t *testing.T) {
	anOldBackupDoesNotFit(t, testenv.S3(t))
}

func TestHeadsInAFolder(t *testing.T) {
	t.Parallel()
	anOldBackupDoesNotFit(t, t.TempDir())
}

// anOldBackupDoesNotFit puts back a log with its seal, which are whole in themselves:
// they are not what the place has seen, and a server that is started on them does
// not take that away.
func anOldBackupDoesNotFit(t *testing.T, place string) {
	t.Helper()
	i := launch(t, "POSTBOOK_SEAL_COPIES="+place)
	i.lastEvent(i.ask("POST", "/emails", hello("first@rcpt.test")).id(t), "delivered")
	fits := func() error {
		out, err := i.postbook("verify", "--log", "--copy", place)
		if err != nil || strings.Contains(out, "NOT") || strings.Count(out, "kept elsewhere") != 7 {
			return fmt.Errorf("%v\n%s", err, out)
		}
		return nil
	}
	testenv.Eventually(t, 40*time.Second, fits)
	i.stop()
	old := t.TempDir()
	copyAll := func(from, to string) {
		t.Helper()
		if out, err := exec.Command("cp", "-a", filepath.Join(from, "log"), filepath.Join(from, "seal"), to).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	copyAll(i.dir, old)
	bucket, err := parsePlace(place)
	if err != nil {
		t.Fatal(err)
	}
	covered := func() (entries int) {
		t.Helper()
		for _, log := range []string{"LEDGER", "ASKED", "ACCESS", "MAIL_00", "MAIL_01", "MAIL_02", "MAIL_03"} {
			head, err := bucket.Get(t.Context(), log)
			if err != nil {
				t.Fatal(err)
			}
			size := strings.SplitN(string(head), "\n", 3)[1] // of the tree, by C2SP's tlog-checkpoint
			n, err := strconv.Atoi(size)
			if err != nil {
				t.Fatal(err)
			}
			entries += n
		}
		return entries
	}
	before := int(i.sealedEntries(t))
	i.start("--quiet")
	i.lastEvent(i.ask("POST", "/emails", hello("second@rcpt.test")).id(t), "delivered")
	testenv.Eventually(t, 40*time.Second, func() error {
		if now := covered(); now <= before {
			return fmt.Errorf("the heads in the bucket cover %d entries, and before it were %d", now, before)
		}
		return nil
	})
	i.stop()
	if err := fits(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"log", "seal"} {
		if err := os.RemoveAll(filepath.Join(i.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	copyAll(old, i.dir)
	seen := covered()
	if out, err := i.postbook("verify", "--log", "--copy", place); err == nil || !strings.Contains(out, "NOT as it was sealed") {
		t.Errorf("an old backup was put back: %v\n%s", err, out)
	}
	i.start("--quiet")
	i.says(t, "entries that are not those here")
	i.stop()
	if now := covered(); now < seen {
		t.Errorf("the heads cover %d entries, and before the server was started on the backup %d", now, seen)
	}
	if out, err := i.postbook("verify", "--log", "--copy", place); err == nil || !strings.Contains(out, "NOT as it was sealed") {
		t.Errorf("a server was started on the old backup: %v\n%s", err, out)
	}
	if out, err := i.postbook("verify", "--log", "--copy", place+"x"); err == nil {
		t.Errorf("a copy that is not there:\n%s", out)
	}
}
