package apikey_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/domaintest"
)

func by(kind domain.ActorKind, account string, role domain.Role, via domain.Via, reason string) domain.Authority {
	return domain.Authority{
		Actor: domain.Actor{Kind: kind, ID: "somebody"}, Account: account, Role: role, Via: via, Reason: reason,
		At: time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC), Command: uuid.MustParse("01a20b56-8e46-7e6f-82b1-51d6d8687fdd"),
	}
}

var (
	key      = by(domain.APIKey, "acme", domain.FullAccess, domain.ViaAPI, "")
	sending  = by(domain.APIKey, "acme", domain.SendingAccess, domain.ViaAPI, "")
	stranger = by(domain.APIKey, "other", domain.FullAccess, domain.ViaAPI, "")
)

func issue(change func(*apikey.Issue)) apikey.Issue {
	c := apikey.Issue{Authority: key, Name: "Shop", Permission: domain.SendingAccess, Sender: "domain", Hash: "hash", Hint: "re_1234"}
	change(&c)
	return c
}

func TestAPIKey(t *testing.T) {
	as := func(*apikey.Issue) {}
	issued := []apikey.Event{apikey.Issued{Name: "Shop", Permission: domain.SendingAccess, Sender: "domain", Hash: "hash", Hint: "re_1234"}}
	revoked := append(issued[:1:1], apikey.Revoked{})
	domaintest.Tell(t, apikey.Decider, apikey.Stream("acme", "key"), []domaintest.Story[apikey.Command, apikey.Event]{
		{Name: "is issued", When: issue(as), Then: issued},
		{Name: "is issued already", Given: issued, When: issue(as)},
		{Name: "needs a name", When: issue(func(c *apikey.Issue) { c.Name = "" }), Refused: domain.Missing, Field: "name"},
		{Name: "may have a name of 50 characters, whatever their bytes", When: issue(func(c *apikey.Issue) { c.Name = strings.Repeat("ü", 50) }), Then: []apikey.Event{
			apikey.Issued{Name: strings.Repeat("ü", 50), Permission: domain.SendingAccess, Sender: "domain", Hash: "hash", Hint: "re_1234"},
		}},
		{Name: "may have no longer name", When: issue(func(c *apikey.Issue) { c.Name = strings.Repeat("n", 51) }), Refused: domain.Invalid, Field: "name"},
		{Name: "has one of two permissions", When: issue(func(c *apikey.Issue) { c.Permission = domain.Trust }), Refused: domain.Invalid, Field: "permission"},
		{Name: "that may do everything is bound to no domain", When: issue(func(c *apikey.Issue) { c.Permission = domain.FullAccess }), Refused: domain.Invalid, Field: "domain_id"},
		{Name: "needs a hash", When: issue(func(c *apikey.Issue) { c.Hash = "" }), Refused: domain.Missing, Field: "hash"},
		{Name: "is not issued by one that may only send", When: issue(func(c *apikey.Issue) { c.Authority = sending }), Refused: domain.Forbidden},
		{Name: "is not issued by another account's", When: issue(func(c *apikey.Issue) { c.Authority = stranger }), Refused: domain.NotFound},
		{Name: "is revoked", Given: issued, When: apikey.Revoke{key}, Then: []apikey.Event{apikey.Revoked{}}},
		{Name: "is revoked already", Given: revoked, When: apikey.Revoke{key}},
		{Name: "that is not there is not revoked", When: apikey.Revoke{key}, Refused: domain.NotFound},
		{Name: "is not revoked by one that may only send", Given: issued, When: apikey.Revoke{sending}, Refused: domain.Forbidden},
		{Name: "is not revoked by another account's", Given: issued, When: apikey.Revoke{stranger}, Refused: domain.NotFound},
		{Name: "is revoked by an operator who says why", Given: issued, When: apikey.Revoke{by(domain.Operator, domain.Platform, "", domain.ViaCLI, "leaked")}, Then: []apikey.Event{apikey.Revoked{}}},
		{Name: "is not revoked by an operator who does not", Given: issued, When: apikey.Revoke{by(domain.Operator, domain.Platform, "", domain.ViaCLI, "")}, Refused: domain.Missing, Field: "reason"},
	})
}
