package domain_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

var (
	kinds     = []domain.ActorKind{domain.APIKey, domain.Member, domain.Staff, domain.System, domain.Operator, domain.Anonymous, "alien"}
	roles     = []domain.Role{domain.FullAccess, domain.SendingAccess, domain.MemberAdmin, domain.Trust, domain.Support, ""}
	vias      = []domain.Via{domain.ViaAPI, domain.ViaSMTP, domain.ViaConsole, domain.ViaCLI, domain.ViaWorker, domain.ViaDB}
	strengths = []domain.Strength{domain.NoAuth, domain.Internal, domain.KeyAuth, domain.PasswordAuth, domain.SecondFactor}
)

// Every verb with every kind of actor, role, path, strength and number of
// approvals: what is allowed is in the golden file, and nothing else is. A change
// to the file is a change of who may do what.
func TestTheWholeAuthorityTable(t *testing.T) {
	of := domain.Stream{Account: "acme", Kind: "account", ID: "acme"}
	var allowed []string
	asked := 0
	verbs := slices.Sorted(maps.Keys(domain.Authorities))
	for _, verb := range append(verbs, "account.update", "account.delete", "") {
		for _, kind := range kinds {
			for _, role := range roles {
				for _, via := range vias {
					for _, auth := range strengths {
						for approvals := range 3 {
							by := domain.Authority{
								Actor: domain.Actor{Kind: kind, ID: "ada"}, Account: "acme", Role: role, Via: via, Auth: auth,
								AuthAt: now.Add(-time.Minute), At: now, Reason: "because", Command: uuid.New(),
							}
							for n := range approvals {
								by.Approvals = append(by.Approvals, domain.Approval{Actor: domain.Actor{Kind: domain.Staff, ID: fmt.Sprint("other", n)}, At: now})
							}
							asked++
							if domain.Authorize(of, verb, by) == nil {
								allowed = append(allowed, fmt.Sprintf("%s by %s, role %q, via %s, auth %s, approvals %d", verb, kind, role, via, auth, approvals))
							}
						}
					}
				}
			}
		}
	}
	got := strings.Join(allowed, "\n") + "\n"
	const path = "testdata/authority.golden"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the table allows something else than %s says: run with -update and look at the difference", path)
	}
	if len(allowed)*10 > asked {
		t.Errorf("%d of %d ways are allowed: that is not closed by default", len(allowed), asked)
	}
}

// The conditions of a grant, one at a time.
func TestAuthorityRefuses(t *testing.T) {
	good := domain.Authority{
		Actor: domain.Actor{Kind: domain.Staff, ID: "grace"}, Account: domain.Platform, Role: domain.Trust, Via: domain.ViaAPI,
		Auth: domain.SecondFactor, AuthAt: now.Add(-time.Minute), At: now, Reason: "I have looked at it",
		Approvals: []domain.Approval{{Actor: domain.Actor{Kind: domain.Staff, ID: "ada"}, Event: uuid.New(), At: now}},
	}
	of := domain.Stream{Account: "acme", Kind: "account", ID: "acme"}
	if err := domain.Authorize(of, "account.unblock", good); err != nil {
		t.Fatalf("two people with all they need: %v", err)
	}
	for name, spoil := range map[string]func(*domain.Authority){
		"nobody":                         func(a *domain.Authority) { a.Actor.ID = "" },
		"no time":                        func(a *domain.Authority) { a.At = time.Time{} },
		"the role support":               func(a *domain.Authority) { a.Role = domain.Support },
		"through the database":           func(a *domain.Authority) { a.Via = domain.ViaDB },
		"as a worker":                    func(a *domain.Authority) { a.Via = domain.ViaWorker },
		"with a password alone":          func(a *domain.Authority) { a.Auth = domain.PasswordAuth },
		"with an old second factor":      func(a *domain.Authority) { a.AuthAt = now.Add(-domain.FreshFor - time.Second) },
		"with a second factor to come":   func(a *domain.Authority) { a.AuthAt = now.Add(time.Second) },
		"without a reason":               func(a *domain.Authority) { a.Reason = "" },
		"alone":                          func(a *domain.Authority) { a.Approvals = nil },
		"with one's own approval":        func(a *domain.Authority) { a.Approvals[0].Actor = a.Actor },
		"with an approval of a key":      func(a *domain.Authority) { a.Approvals[0].Actor.Kind = domain.APIKey },
		"with an approval of nobody":     func(a *domain.Authority) { a.Approvals[0].Actor.ID = "" },
		"as the operator":                func(a *domain.Authority) { a.Actor.Kind = domain.Operator },
		"as the system":                  func(a *domain.Authority) { a.Actor.Kind = domain.System },
		"as a stranger":                  func(a *domain.Authority) { a.Actor.Kind = domain.Anonymous },
		"as a kind that does not exist":  func(a *domain.Authority) { a.Actor.Kind = "root" },
		"as the account's key":           func(a *domain.Authority) { a.Actor.Kind, a.Role, a.Account = domain.APIKey, domain.FullAccess, "acme" },
		"as the account's administrator": func(a *domain.Authority) { a.Actor.Kind, a.Role, a.Account = domain.Member, domain.MemberAdmin, "acme" },
		"as another account's full key":  func(a *domain.Authority) { a.Actor.Kind, a.Role, a.Account = domain.APIKey, domain.FullAccess, "evil" },
	} {
		by := good
		by.Approvals = slices.Clone(good.Approvals)
		spoil(&by)
		if domain.Refused(domain.Authorize(of, "account.unblock", by)) == nil {
			t.Errorf("%s: not refused", name)
		}
	}
}

// A key of one account finds nothing of another's.
func TestAnotherAccountsThingsAreNotThere(t *testing.T) {
	by := domain.Authority{Actor: domain.Actor{Kind: domain.APIKey, ID: "k"}, Account: "evil", Role: domain.FullAccess, Via: domain.ViaAPI, At: now}
	err := domain.Authorize(domain.Stream{Account: "acme", Kind: "apikey", ID: "1"}, "apikey.revoke", by)
	if r := domain.Refused(err); r == nil || r.Code != domain.NotFound {
		t.Errorf("got %v, want a refusal that says there is no such thing", err)
	}
}
