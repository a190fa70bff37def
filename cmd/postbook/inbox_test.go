package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

var inboxLink = regexp.MustCompile(`/console/inbox/[0-9a-f-]{36}`)

// The sandbox holds everybody's mail. Each sees that of their own account.
func TestInboxShowsAnAccountItsOwnMail(t *testing.T) {
	t.Parallel()
	i := launch(t)
	i.stop()
	out, err := i.postbook("accounts", "open", "Other", "--email", "bob@other.example", "--json")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var other struct {
		AccountID string `json:"account_id"`
		Password  string `json:"password"`
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &other); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	i.start("--quiet")
	id := i.ask("POST", "/emails", with(hello("eve@rcpt.test"), "subject", "Secret plans", "html", "<p>Secret plans</p>")).id(t)
	i.lastEvent(id, "delivered")

	ada, bob := i.visitor(t), i.visitor(t)
	if status, body := ada.signIn(i.facts.Member.Email, i.facts.Member.Password); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	if status, body := bob.signIn("bob@other.example", other.Password); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	_, list := ada.get("/console/inbox")
	link := inboxLink.FindString(list)
	if link == "" || !strings.Contains(list, "Secret plans") {
		t.Fatalf("the inbox does not show the account's own mail: %s", list)
	}
	if _, list := bob.get("/console/inbox"); inboxLink.MatchString(list) || strings.Contains(list, "Secret plans") {
		t.Errorf("the inbox shows another account's mail: %s", list)
	}
	for _, path := range []string{link, link + "/html"} {
		if status, body := ada.get(path); status != 200 || !strings.Contains(body, "Secret plans") {
			t.Errorf("%s of one's own: %d %s", path, status, body)
		}
		if status, body := bob.get(path); status != 404 || strings.Contains(body, "Secret") {
			t.Errorf("%s of another account: %d %s", path, status, body)
		}
	}
	if status, _ := bob.get("/console/emails/" + id); status != 404 {
		t.Errorf("an email of another account: %d", status)
	}
	for _, route := range []string{"GET /console/inbox", "GET /console/inbox/{id}", "GET /console/inbox/{id}/html"} {
		i.onRecordAs(t, 1, fmt.Sprintf("route = '%s' and account_id = '%s' and status = 200 and objects = '{%s}'", route, i.facts.AccountID, id))
	}
	bobs := fmt.Sprintf("account_id = '%s' and actor_kind = 'member' and via = 'console'", other.AccountID)
	i.onRecordAs(t, 1, bobs+" and route = 'GET /console/inbox' and status = 200 and objects = '{}'")
	i.onRecordAs(t, 3, bobs+" and status = 404 and error = 'not_found' and fields = '{}' and objects = '{}'")
}
