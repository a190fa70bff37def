package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/keyring"
)

const (
	forgotten   = "zeta.marker@rcpt.test"
	markSubject = "A subject that is to be forgotten, Qx7"
	markBody    = "A body that is to be forgotten, Zk9"
)

// A person is forgotten: nothing that is left, with the root key at hand, gives what
// was written to them back; what was written to others stays; and they can be written
// to again.
func TestARecipientIsErased(t *testing.T) {
	t.Parallel()
	i := launch(t)
	secret := with(hello(forgotten), "subject", markSubject, "text", markBody)
	alone := i.ask("POST", "/emails", secret).id(t)
	both := i.ask("POST", "/emails", with(secret, "to", []string{"grace@rcpt.test", forgotten})).id(t)
	others := i.ask("POST", "/emails", hello("grace@rcpt.test")).id(t)
	waiting := i.ask("POST", "/emails", with(secret, "scheduled_at", time.Now().Add(15*time.Second))).id(t)
	for _, id := range []string{alone, both, others} {
		i.lastEvent(id, "delivered")
	}
	if found := i.search(i.dir); len(found) == 0 {
		t.Fatal("the search finds nothing before the erasure either: it looks in the wrong place")
	}
	before := filepath.Join(t.TempDir(), "log")
	if err := os.CopyFS(before, os.DirFS(filepath.Join(i.dir, "log"))); err != nil {
		t.Fatal(err)
	}
	earlier := keysetsIn(t, before)

	erase := func(more ...string) (string, error) {
		return i.postbook(append([]string{"erase", "--account", i.facts.AccountID, "--recipient", forgotten}, more...)...)
	}
	out, err := i.postbook("holds", "place", "--account", i.facts.AccountID, "--recipient", forgotten, "--reason", "a lawsuit", "--json")
	hold := regexp.MustCompile(`"hold":"([^"]+)"`).FindStringSubmatch(out)
	if err != nil || hold == nil {
		t.Fatalf("place a hold: %v\n%s", err, out)
	}
	if out, err := erase("--reason", "she asked"); err == nil || !strings.Contains(out, "legal hold") {
		t.Fatalf("what is held is erased: %v\n%s", err, out)
	}
	if out, err := i.postbook("holds", "list", "--account", i.facts.AccountID); err != nil || !strings.Contains(out, "a lawsuit") {
		t.Fatalf("list the holds: %v\n%s", err, out)
	}
	if out, err := i.postbook("holds", "lift", hold[1], "--account", i.facts.AccountID, "--reason", "settled"); err != nil {
		t.Fatalf("lift the hold: %v\n%s", err, out)
	}
	if out, err := erase("--reason", "she asked"); err != nil || !strings.Contains(out, "3 emails that nobody can read") {
		t.Fatalf("erase: %v\n%s", err, out)
	}
	if out, err := erase("--reason", "she asked again"); err != nil || !strings.Contains(out, "3 emails") {
		t.Errorf("erase what is erased: %v\n%s", err, out)
	}
	if out, err := i.postbook("erase", "--account", i.facts.AccountID, "--recipient", "nobody@rcpt.test", "--reason", "x"); err == nil {
		t.Errorf("somebody whom nobody wrote to is erased: %s", out)
	}
	if out, err := i.postbook("erase", "--account", i.facts.AccountID, "--recipient", "", "--reason", "x"); err == nil {
		t.Errorf("an empty address erases: %s", out)
	}

	// A process that has the keys in memory hears of it.
	testenv.Eventually(t, 10*time.Second, func() error {
		for _, id := range []string{alone, both, waiting} {
			if r := i.ask("GET", "/emails/"+id, nil); r.status != 200 || !strings.Contains(string(r.body), `"erased":true`) || strings.Contains(string(r.body), "marker") || strings.Contains(string(r.body), "forgotten") {
				return fmt.Errorf("%s reads %s", id, r)
			}
		}
		return nil
	})
	if r := i.ask("GET", "/emails", nil); r.status != 200 || strings.Contains(string(r.body), "forgotten") || !strings.Contains(string(r.body), "grace@rcpt.test") {
		t.Errorf("the list: %s", r)
	}
	if r := i.ask("GET", "/emails/"+others, nil); r.status != 200 || !strings.Contains(string(r.body), "Hello.") {
		t.Errorf("what was written to somebody else: %s", r)
	}
	i.consoleShows(t, "", "[erased]", "grace@rcpt.test")
	i.consoleShows(t, "emails/"+both, "erased on request", "grace@rcpt.test")
	i.lastEvent(waiting, "failed") // when its time has come

	again := i.ask("POST", "/emails", hello(forgotten)).id(t)
	i.lastEvent(again, "delivered")
	if r := i.ask("GET", "/emails/"+again, nil); !strings.Contains(string(r.body), forgotten) || strings.Contains(string(r.body), "erased") {
		t.Errorf("what is written to them later: %s", r)
	}
	if out, err := erase("--reason", "she asked once more"); err != nil || !strings.Contains(out, "4 emails") {
		t.Errorf("erase what was written later: %v\n%s", err, out)
	}
	testenv.Eventually(t, 10*time.Second, func() error {
		if out, err := i.postbook("events", "check"); err != nil || !strings.Contains(out, " 0 open") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	said := i.output.String()
	i.stop()
	if out, err := i.postbook("verify"); err != nil {
		t.Errorf("the seal: %v\n%s", err, out)
	}
	i.nothingIsLeft(t, said, earlier)
}

// nothingIsLeft searches every file, and a copy that is made now, for the markers and
// for the keysets of before; and tries what keysets there are.
func (i *instance) nothingIsLeft(t *testing.T, said string, earlier map[string][][]byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(i.dir, "what-it-said"), []byte(said), 0o600); err != nil {
		t.Fatal(err)
	}
	if found := i.search(i.dir); len(found) > 0 {
		t.Errorf("after the erasure: %v", found)
	}
	for _, blob := range earlier[i.facts.AccountID] {
		err := filepath.WalkDir(i.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if bytes.Contains(data, blob[:44]) {
				t.Errorf("the keyset of before is in %s", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	left := keysetsIn(t, filepath.Join(i.dir, "log"))
	if len(left[i.facts.AccountID]) != 1 {
		t.Errorf("%d keysets of the account are in the files", len(left[i.facts.AccountID]))
	}
	index := i.ringOver(t, earlier[i.facts.AccountID][0]).Index(forgotten)
	for name, blobs := range map[string]map[string][][]byte{"before": earlier, "after": left} {
		for _, blob := range blobs[i.facts.AccountID] {
			gone := i.ringOver(t, blob).Generation(index) > 0
			if gone != (name == "after") {
				t.Errorf("a keyset of %s the erasure: the key is gone: %v", name, gone)
			}
		}
	}
	// The key from before opens earlier copies, until it is replaced.
	if out, err := i.postbook("rotate", "kek"); err != nil {
		t.Fatalf("rotate: %v\n%s", err, out)
	}
	root, err := keyring.OpenRoot(t.Context(), filepath.Join(i.dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	for account, blobs := range earlier {
		for _, blob := range blobs {
			if _, err := root.Unwrap(t.Context(), blob, []byte(account)); err == nil {
				t.Errorf("a keyset of %s from before opens with the newer root key", account)
			}
		}
	}
}

// search looks for what was written to somebody in all forms that mail knows, in
// every file of a folder.
func (i *instance) search(dir string) (found []string) {
	i.t.Helper()
	forms := map[string][]byte{}
	for _, text := range []string{forgotten, markSubject, markBody} {
		for _, form := range []string{text, strings.ToLower(text), strings.ReplaceAll(text, "@", "%40"), strings.ReplaceAll(text, "@", "=40"), strings.ReplaceAll(text, " ", "=20"), strings.ReplaceAll(text, " ", "_"), hex.EncodeToString([]byte(text))} {
			forms[form] = []byte(form)
		}
		for shift := range 3 { // base64 in each of its alignments, without the ends that depend on what is beside it
			code := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + text))
			forms[fmt.Sprint(text, " in base64, ", shift)] = []byte(code[4 : len(code)-4])
		}
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil //nolint:nilerr // a running database removes files
		}
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for name, form := range forms {
			if bytes.Contains(data, form) {
				found = append(found, fmt.Sprintf("%q is in %s", name, path))
			}
		}
		return nil
	})
	if err != nil {
		i.t.Fatal(err)
	}
	return found
}

// keysetsIn are the wrapped keysets in the block files of a log that does not run.
func keysetsIn(t *testing.T, dir string) map[string][][]byte {
	t.Helper()
	blocks, err := eventstore.OpenBlocks(dir, eventstore.Keysets)
	if err != nil {
		t.Fatal(err)
	}
	keysets := map[string][][]byte{}
	for n := range blocks.Count() {
		err := blocks.Read(t.Context(), n, func(e eventstore.Entry) error {
			if account, ok := strings.CutPrefix(e.Subject, "keysets.value."); ok && len(e.Raw) > 45 {
				keysets[account] = append(keysets[account], bytes.Clone(e.Raw[1:]))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(keysets) == 0 {
		t.Fatal("there are no keysets in the block files")
	}
	return keysets
}

// only is a store of one keyset.
type only struct {
	keyring.Store
	blob []byte
}

func (o only) Load(context.Context, string) ([]byte, uint64, error) { return o.blob, 1, nil }

func (i *instance) ringOver(t *testing.T, blob []byte) *keyring.Account {
	t.Helper()
	root, err := keyring.OpenRoot(t.Context(), filepath.Join(i.dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := keyring.New(only{blob: blob}, root, keyring.Options{}).Account(t.Context(), i.facts.AccountID)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// consoleShows looks at a page of the console as the account's member.
func (i *instance) consoleShows(t *testing.T, page string, texts ...string) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Jar: jar, Timeout: time.Minute}
	get := func(path string) (int, string) {
		res, err := client.Get(i.facts.BaseURL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	_, form := get("/console/enter")
	csrf := regexp.MustCompile(`name="csrf" value="([^"]+)"`).FindStringSubmatch(form)
	if csrf == nil {
		t.Fatalf("no form: %s", form)
	}
	req, err := http.NewRequestWithContext(t.Context(), "POST", i.facts.BaseURL+"/console/enter", strings.NewReader("csrf="+csrf[1]+"&email="+i.facts.Member.Email+"&password="+i.facts.Member.Password))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", i.facts.BaseURL)
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	status, body := get("/console/" + page)
	for _, text := range texts {
		if status != 200 || !strings.Contains(body, text) || strings.Contains(body, "to be forgotten") {
			t.Errorf("/console/%s answers %d, and does not say %q:\n%s", page, status, text, body)
		}
	}
}

// An account is forgotten: its keys stop working, what it waits to send is given up,
// and nobody can read what it sent.
func TestAnAccountIsErased(t *testing.T) {
	t.Parallel()
	i := launch(t)
	sent := i.ask("POST", "/emails", hello("grace@rcpt.test")).id(t)
	i.lastEvent(sent, "delivered")
	waiting := i.ask("POST", "/emails", with(hello("grace@rcpt.test"), "scheduled_at", time.Now().Add(3*time.Second))).id(t)
	ada, grace := "Bearer "+i.staff(0), "Bearer "+i.staff(1)
	at := "/staff/accounts/" + i.facts.AccountID
	ask := func(method, path, reason, who string) reply {
		return i.ask(method, at+path, map[string]string{"reason": reason}, "Authorization", who)
	}
	if r := ask("POST", "/erasures", "closed", ada); r.status != 403 {
		t.Fatalf("staff alone: %s", r)
	}
	if r := ask("POST", "/erasure-proposals", "closed", ada); r.status != 201 {
		t.Fatalf("propose: %s", r)
	}
	if r := ask("POST", "/erasures", "closed", ada); r.status != 403 {
		t.Fatalf("whoever proposed agrees: %s", r)
	}
	if r := ask("POST", "/erasures", "I agree", grace); r.status != 202 {
		t.Fatalf("agree: %s", r)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		out, err := i.postbook("events", "show", i.facts.AccountID+".retention."+i.facts.AccountID)
		if err != nil || !strings.Contains(out, "retention.erased") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if r := i.ask("POST", "/emails", hello("x@rcpt.test")); r.status != 400 {
		t.Errorf("its key sends: %s", r)
	}
	if r := i.ask("GET", "/emails/"+sent, nil); r.status != 400 {
		t.Errorf("its key reads: %s", r)
	}
	if r := i.ask("GET", at, nil, "Authorization", ada); r.status != 200 {
		t.Errorf("staff read its story: %s", r)
	} else {
		for _, want := range []string{`"blocked":false`, "sender.added", "apikey.issued", "retention.erased"} {
			if !strings.Contains(string(r.body), want) {
				t.Errorf("the story that staff read does not say %s: %s", want, r)
			}
		}
		if strings.Contains(string(r.body), "argon2id") {
			t.Errorf("the story has a password's hash: %s", r)
		}
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		out, err := i.postbook("events", "show", waiting)
		if err != nil || strings.Count(out, "email.failed") != 1 {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if out, err := i.postbook("replay", "--at", "now", "--account", i.facts.AccountID); err != nil || !strings.Contains(out, "ERASED") || strings.Contains(out, "may send") {
		t.Errorf("as of now: %v\n%s", err, out)
	}
	if out, err := i.postbook("accounts", "show", i.facts.AccountID); err != nil {
		t.Errorf("its story: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"events", "check"}, {"verify", "--log"}} {
		if out, err := i.postbook(args...); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	i.stop()
	if left := keysetsIn(t, filepath.Join(i.dir, "log")); len(left[i.facts.AccountID]) != 0 || len(left["platform"]) != 1 {
		t.Errorf("keysets in the files: %d of the account, %d of the platform", len(left[i.facts.AccountID]), len(left["platform"]))
	}
	if out, err := exec.Command(binary, "--data-dir", i.dir, "erase", "--account", i.facts.AccountID, "--reason", "again").CombinedOutput(); err != nil {
		t.Errorf("erase what is erased: %v\n%s", err, out)
	}
}
