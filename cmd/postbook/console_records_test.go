package main

import (
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// visitor is somebody's browser.
type visitor struct {
	t      *testing.T
	base   string
	client *http.Client
}

func (i *instance) visitor(t *testing.T) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &visitor{t, i.facts.BaseURL, &http.Client{Jar: jar, Timeout: time.Minute}}
}

func (v *visitor) get(path string) (int, string) {
	v.t.Helper()
	res, err := v.client.Get(v.base + path)
	return v.read(res, err)
}

var formCSRF = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

// submit sends a form of a page.
func (v *visitor) submit(page, path string, values map[string]string) (int, string) {
	v.t.Helper()
	_, body := v.get(page)
	token := formCSRF.FindStringSubmatch(body)
	if token == nil {
		v.t.Fatalf("%s has no form: %s", page, body)
	}
	form := url.Values{"csrf": {token[1]}}
	for name, value := range values {
		form.Set(name, value)
	}
	res, err := v.client.PostForm(v.base+path, form)
	return v.read(res, err)
}

func (v *visitor) signIn(email, password string) (int, string) {
	v.t.Helper()
	return v.submit("/console/enter", "/console/enter", map[string]string{"email": email, "password": password})
}

func (v *visitor) read(res *http.Response, err error) (int, string) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// Whoever comes to the console, gets in, does not, and leaves is on record, as at
// the API.
func TestConsoleSignInsAreOnRecord(t *testing.T) {
	t.Parallel()
	i := launch(t)
	member := fmt.Sprintf("account_id = '%s' and actor_id = '%s' and via = 'console'", i.facts.AccountID, i.facts.Member.ID)
	stranger := "actor_kind = 'anonymous' and account_id = 'platform' and via = 'console' and ip = '127.0.0.1' and fields = '{}'"
	session := " and fields = '{member.session}' and objects = '{" + i.facts.Member.ID + "}'"

	v := i.visitor(t)
	v.signIn(i.facts.Member.Email, i.facts.Member.Password)
	console, err := url.Parse(i.facts.BaseURL + "/console/")
	if err != nil {
		t.Fatal(err)
	}
	thief, elsewhere := i.visitor(t), i.visitor(t)
	thief.client.Jar.SetCookies(console, v.client.Jar.Cookies(console))
	elsewhere.signIn(i.facts.Member.Email, i.facts.Member.Password)
	for name, who := range map[string]*visitor{"a copy of the cookie": thief, "another session": elsewhere} {
		if status, body := who.get("/console/account"); status != 200 || strings.Contains(body, "Password") {
			t.Errorf("%s, before signing out: %d %s", name, status, body)
		}
	}
	if status, body := v.submit("/console/account", "/console/leave", nil); status != 200 || !strings.Contains(body, "Password") {
		t.Errorf("after signing out: %d %s", status, body)
	}
	if status, body := thief.get("/console/account"); status != 200 || !strings.Contains(body, "Password") {
		t.Errorf("a copy of the cookie, after signing out: %d %s", status, body)
	}
	if status, body := elsewhere.get("/console/account"); status != 200 || strings.Contains(body, "Password") {
		t.Errorf("another session, after signing out: %d %s", status, body)
	}
	ticket := ticketURL.FindStringSubmatch(i.output.String())
	if ticket == nil {
		t.Fatalf("the output has no address of the console: %s", i.output)
	}
	path := strings.TrimPrefix(ticket[1], i.facts.BaseURL)
	v.get(path)
	if status, _ := i.visitor(t).get(path); status != 403 {
		t.Errorf("a ticket that was used: %d", status)
	}
	guesser := i.visitor(t)
	for range 10 {
		if status, body := guesser.signIn(i.facts.Member.Email, "a guess, and another"); status != 403 || !strings.Contains(body, "is not right") {
			t.Fatalf("a guess: %d %s", status, body)
		}
	}
	if status, body := guesser.signIn(i.facts.Member.Email, i.facts.Member.Password); status != 429 || !strings.Contains(body, "Try again later") {
		t.Errorf("after ten guesses: %d %s", status, body)
	}
	i.onRecordAs(t, 2, member+" and route = 'POST /console/enter' and status = 303"+session)
	i.onRecordAs(t, 1, member+" and route = 'POST /console/leave' and status = 303 and path = '/console/leave'")
	i.onRecordAs(t, 1, member+" and route = 'GET /console/enter' and status = 303 and path = '/console/enter'"+session)
	i.onRecordAs(t, 1, stranger+" and route = 'GET /console/enter' and status = 403 and error = 'invalid_ticket'")
	i.onRecordAs(t, 10, stranger+" and route = 'POST /console/enter' and status = 403 and error = 'invalid_credentials'")
	i.onRecordAs(t, 1, stranger+" and route = 'POST /console/enter' and status = 429 and error = 'rate_limit_exceeded'")
}

// The record of a view names what was shown, and nothing that was not.
func TestConsoleRecordsWhatAnEmailsPageShows(t *testing.T) {
	t.Parallel()
	i := launch(t)
	marked := hello("html@rcpt.test")
	delete(marked, "text")
	v := i.visitor(t)
	v.signIn(i.facts.Member.Email, i.facts.Member.Password)
	for _, c := range []struct {
		name  string
		body  map[string]any
		event string
		shown string
		where string
	}{
		{"text", hello("text@rcpt.test"), "delivered", "Hello.", "'email.text' = any(fields) and not 'email.html' = any(fields) and 'email.reply' = any(fields)"},
		{"HTML alone", with(marked, "html", "<p>Marked up</p>", "text", ""), "delivered", "Marked up", "'email.html' = any(fields) and not 'email.text' = any(fields)"},
		{"one that nobody has answered", with(hello("later@rcpt.test"), "scheduled_at", time.Now().Add(time.Hour).Format(time.RFC3339)), "scheduled", "Hello.", "not 'email.reply' = any(fields)"},
	} {
		id := i.ask("POST", "/emails", c.body).id(t)
		i.lastEvent(id, c.event)
		if status, page := v.get("/console/emails/" + id); status != 200 || !strings.Contains(page, c.shown) {
			t.Errorf("%s: %d %s", c.name, status, page)
		}
		i.onRecordAs(t, 1, fmt.Sprintf("route = 'GET /console/emails/{id}' and objects = '{%s}' and %s", id, c.where))
	}
}

var looksAgain = regexp.MustCompile(`hx-get="([^"]+)"`)

// A page that looks again by itself is answered when there is something new. What was
// shown is not shown and put on record again every few seconds, and whoever was removed
// meanwhile is told nothing.
func TestAConsolePageThatLooksAgain(t *testing.T) {
	t.Parallel()
	i := launch(t)
	first := i.ask("POST", "/emails", hello("ada@rcpt.test")).id(t)
	i.lastEvent(first, "delivered")
	v := i.visitor(t)
	v.signIn(i.facts.Member.Email, i.facts.Member.Password)
	again := func(path string) string {
		t.Helper()
		_, page := v.get(path)
		found := looksAgain.FindStringSubmatch(page)
		if found == nil {
			t.Fatalf("%s does not look again:\n%s", path, page)
		}
		return html.UnescapeString(found[1])
	}
	shown := "via = 'console' and route = 'GET /console/{$}' and '" + first + "' = any(objects)"
	i.onRecordAs(t, 1, shown) // by signing in, which leads there
	next := again("/console/")
	i.onRecordAs(t, 2, shown)

	var both sync.WaitGroup
	for _, path := range []string{next, again("/console/inbox")} {
		both.Go(func() {
			begun := time.Now()
			if status, page := v.get(path); status != http.StatusNoContent || page != "" || time.Since(begun) < 10*time.Second {
				t.Errorf("%s, where nothing is new, after %s: %d %s", path, time.Since(begun), status, page)
			}
		})
	}
	both.Wait()
	i.onRecordAs(t, 2, shown)
	i.onRecordAs(t, 1, "via = 'console' and route = 'GET /console/{$}' and status = 204 and fields = '{}' and objects = '{}'")

	later := with(hello("grace@rcpt.test"), "scheduled_at", time.Now().Add(time.Hour).Format(time.RFC3339))
	held := make(chan string, 1)
	go func() {
		_, page := v.get(next)
		held <- page
	}()
	second := i.ask("POST", "/emails", later).id(t)
	if page := <-held; !strings.Contains(page, second) {
		t.Errorf("the list does not show the new email: %s", page)
	}
	next = again("/console/emails/" + second)
	go func() {
		_, page := v.get(next)
		held <- page
	}()
	if r := i.ask("POST", "/emails/"+second+"/cancel", nil); r.status != 200 {
		t.Fatal(r)
	}
	if page := <-held; !strings.Contains(page, "cancel") {
		t.Errorf("the page does not show that the email was cancelled: %s", page)
	}

	next = again("/console/")
	go func() {
		_, page := v.get(next)
		held <- page
	}()
	if said, err := i.postbook("accounts", "remove-member", i.facts.AccountID, i.facts.Member.Email, "--reason", "they left"); err != nil {
		t.Fatalf("remove-member: %v\n%s", err, said)
	}
	if page := <-held; strings.Contains(page, second) || !strings.Contains(page, "Password") {
		t.Errorf("somebody who was removed is shown: %s", page)
	}
}
