package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"postbook.dev/postbook/internal/testenv"
)

// browser opens a page of a real browser.
func browser(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.WindowSize(1280, 800))
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			options = append(options, chromedp.ExecPath(path))
			break
		}
	}
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if _, err := chromedp.Run(ctx, chromedp.Title()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// visit opens a page, and returns its title and what its main part says. It keeps
// a picture when POSTBOOK_TEST_PICTURES names a folder.
func visit(t *testing.T, ctx context.Context, url, name string) (title, text string) {
	t.Helper()
	short, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := chromedp.Do(short, chromedp.Navigate(url)); err != nil {
		t.Fatalf("open %s: %v", url, err)
	}
	if err := chromedp.Do(short, chromedp.WaitVisible(chromedp.CSS("main"))); err != nil {
		t.Fatalf("wait for the main part of %s: %v", url, err)
	}
	return look(t, ctx, name)
}

func look(t *testing.T, ctx context.Context, name string) (title, text string) {
	t.Helper()
	title, err := chromedp.Run(ctx, chromedp.Title())
	if err != nil {
		t.Fatal(err)
	}
	if text, err = chromedp.Run(ctx, chromedp.Text(chromedp.CSS("main"))); err != nil {
		t.Fatal(err)
	}
	if dir := os.Getenv("POSTBOOK_TEST_PICTURES"); dir != "" {
		picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return title, text
}

var ticketURL = regexp.MustCompile(`Console  (http://\S+)`)

// Somebody opens the console that a first run has printed, looks at a mail, its
// timeline and what arrived.
func TestConsoleInABrowser(t *testing.T) {
	t.Parallel()
	i := launch(t)
	evil := `<script>document.title="owned"</script><img src=x onerror="document.title='owned'">`
	ids := map[string]string{}
	for to, want := range map[string]string{"ada@rcpt.test": "delivered", "bounced@rcpt.test": "bounced", "deferred@rcpt.test": "delivery_delayed", "suppressed@rcpt.test": "suppressed"} {
		ids[to] = i.ask("POST", "/emails", with(hello(to), "subject", "Your order has shipped")).id(t)
		i.lastEvent(ids[to], want)
	}
	attack := i.ask("POST", "/emails", with(hello("eve@rcpt.test"), "subject", evil, "html", evil+"<p>A picture and a script.</p>")).id(t)
	i.lastEvent(attack, "delivered")

	ticket := ticketURL.FindStringSubmatch(i.output.String())
	if ticket == nil {
		t.Fatalf("the output has no address of the console: %s", i.output)
	}
	ctx := browser(t)
	faults := &buffer{}
	err := chromedp.Listen(ctx, func(event any) {
		if e, ok := event.(*runtime.EventExceptionThrown); ok {
			fmt.Fprintln(faults, e.ExceptionDetails)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	_, list := visit(t, ctx, ticket[1], "emails")
	i.ask("POST", "/emails", with(hello("new@rcpt.test"), "subject", "This one is new"))
	testenv.Eventually(t, 20*time.Second, func() error { // the list looks again by itself
		if _, text := look(t, ctx, "emails"); !strings.Contains(text, "This one is new") {
			return fmt.Errorf("the list does not show what is new: %s", text)
		}
		return nil
	})
	_, mail := visit(t, ctx, i.facts.BaseURL+"/console/emails/"+ids["deferred@rcpt.test"], "email")
	title, _ := visit(t, ctx, i.facts.BaseURL+"/console/emails/"+attack, "attack")
	visit(t, ctx, i.facts.BaseURL+"/console/account", "account")
	if foot, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("footer"))); err != nil || !strings.Contains(foot, "not witnessed") {
		t.Errorf("the foot of a page says %q, %v", foot, err)
	}
	_, inbox := visit(t, ctx, i.facts.BaseURL+"/console/inbox", "inbox")
	if err := chromedp.Do(ctx, chromedp.Click(chromedp.CSS(`main tr:last-child a`))); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		if _, text := look(t, ctx, "message"); !strings.Contains(text, "As it came over the wire") {
			return fmt.Errorf("the message is not shown: %s", text)
		}
		return nil
	})
	if !strings.Contains(list, "Your order has shipped") || !strings.Contains(list, "ada@rcpt.test") {
		t.Errorf("the list shows no mail:\n%s", list)
	}
	for _, want := range []string{"deferred@rcpt.test", "Greylisted", "email.deferred by system via worker"} {
		if !strings.Contains(mail, want) {
			t.Errorf("the mail's page does not show %q:\n%s", want, mail)
		}
	}
	if title == "owned" {
		t.Error("a subject was run as a script")
	}
	if !strings.Contains(inbox, "ada@rcpt.test") {
		t.Errorf("the inbox shows no mail:\n%s", inbox)
	}
	if faults.String() != "" {
		t.Errorf("the console's scripts fail: %s", faults)
	}
	// A ticket signs in once.
	if body := get(t, ticket[1]); strings.Contains(body, "Your order has shipped") {
		t.Error("a ticket has signed in twice")
	}
}

// Whoever has not signed in sees nothing, and nobody can be made to act from
// another site.
func TestConsoleIsClosed(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.lastEvent(i.ask("POST", "/emails", with(hello("a@rcpt.test"), "subject", "Secret plans")).id(t), "delivered")
	for _, path := range []string{"/console/", "/console/inbox", "/console/account", "/console/static/../emails"} {
		if body := get(t, i.facts.BaseURL+path); strings.Contains(body, "Secret plans") || strings.Contains(body, "a@rcpt.test") {
			t.Errorf("%s shows mail to a stranger", path)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), "POST", i.facts.BaseURL+"/console/enter", strings.NewReader("email=a&password=b"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", "https://evil.example")
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	res, err := i.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("a form of another site: %s", res.Status)
	}
	policy := i.ask("GET", "/console/enter", nil).header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'self'", "form-action 'self'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("the content security policy does not say %s: %s", want, policy)
		}
	}
	if strings.Contains(i.output.String(), i.facts.APIKey) || strings.Contains(i.output.String(), i.facts.Member.Password) {
		t.Error("the output holds a secret")
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", i.cmd.Process.Pid))
	if err == nil && strings.Contains(string(args), i.facts.APIKey) {
		t.Error("the arguments hold a secret")
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	var body []byte
	testenv.Eventually(t, 10*time.Second, func() error {
		res, err := http.Get(url)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err = io.ReadAll(res.Body)
		return err
	})
	return string(body)
}
