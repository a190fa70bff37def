package name_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/domaintest"
	"postbook.dev/postbook/domain/name"
)

func of(account string) domain.Authority {
	a := domain.Authority{
		Actor: domain.Actor{Kind: domain.APIKey, ID: "key"}, Account: account, Role: domain.FullAccess, Via: domain.ViaAPI,
		At: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), Command: uuid.MustParse("01a20b56-8e46-7e6f-82b1-51d6d8687fdd"),
	}
	if account == domain.Platform {
		a.Actor, a.Role, a.Via = domain.Actor{Kind: domain.Operator, ID: "root"}, "", domain.ViaCLI
	}
	return a
}

func TestName(t *testing.T) {
	taken := []name.Event{name.Taken{Account: "acme", Sender: "domain"}}
	free := append(taken[:1:1], name.Released{})
	domaintest.Tell(t, name.Decider, name.Stream("acme.com"), []domaintest.Story[name.Command, name.Event]{
		{Name: "is taken", When: name.Take{of("acme"), "domain"}, Then: taken},
		{Name: "is held already", Given: taken, When: name.Take{of("acme"), "domain"}},
		{Name: "is not taken from somebody", Given: taken, When: name.Take{of("other"), "theirs"}, Refused: domain.Taken, Field: "name"},
		{Name: "is not taken twice by one", Given: taken, When: name.Take{of("acme"), "another"}, Refused: domain.Taken, Field: "name"},
		{Name: "is given back", Given: taken, When: name.Release{of("acme"), "domain"}, Then: []name.Event{name.Released{}}},
		{Name: "is given back by an operator", Given: taken, When: name.Release{of(domain.Platform), "domain"}, Then: []name.Event{name.Released{}}},
		{Name: "is not given back by somebody else", Given: taken, When: name.Release{of("other"), "domain"}, Refused: domain.NotFound},
		{Name: "is not given back for a domain that it is not held for", Given: taken, When: name.Release{of("acme"), "another"}},
		{Name: "can be taken by another after that", Given: free, When: name.Take{of("other"), "theirs"}, Then: []name.Event{name.Taken{Account: "other", Sender: "theirs"}}},
	})
	if got := name.Stream("mail.acme.com").ID; got != "mail_acme_com" {
		t.Errorf("the aggregate is called %s", got)
	}
}
