package member_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/domaintest"
	"postbook.dev/postbook/domain/member"
)

var now = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func by(kind domain.ActorKind, via domain.Via, reason string) domain.Authority {
	return domain.Authority{
		Actor: domain.Actor{Kind: kind, ID: "somebody"}, Account: "acme", Role: domain.MemberAdmin, Via: via, At: now, Reason: reason,
		Command: uuid.MustParse("01a20b56-8e46-7e6f-82b1-51d6d8687fdd"),
	}
}

func join(change func(*member.Join)) member.Join {
	c := member.Join{Authority: by(domain.Operator, domain.ViaCLI, ""), Email: domain.Sealed("sealed"), Index: "index", As: domain.MemberAdmin, Password: "$argon2id$"}
	change(&c)
	return c
}

func TestMember(t *testing.T) {
	here := []member.Event{member.Joined{Email: domain.Sealed("sealed"), Index: "index", Role: domain.MemberAdmin, Password: "$argon2id$"}}
	left := append(here[:1:1], member.Left{})
	domaintest.Tell(t, member.Decider, member.Stream("acme", "ada"), []domaintest.Story[member.Command, member.Event]{
		{Name: "joins", When: join(func(*member.Join) {}), Then: here},
		{Name: "has joined already", Given: here, When: join(func(*member.Join) {})},
		{Name: "joins with a member's role alone", When: join(func(c *member.Join) { c.As = domain.Trust }), Refused: domain.Invalid, Field: "role"},
		{Name: "joins with an address", When: join(func(c *member.Join) { c.Email = nil }), Refused: domain.Missing, Field: "email"},
		{Name: "joins with an address that can be found", When: join(func(c *member.Join) { c.Index = "" }), Refused: domain.Missing, Field: "email"},
		{Name: "joins with a password", When: join(func(c *member.Join) { c.Password = "" }), Refused: domain.Missing, Field: "password"},
		{Name: "is not made by another member", When: join(func(c *member.Join) { c.Authority = by(domain.Member, domain.ViaConsole, "") }), Refused: domain.Forbidden},
		{Name: "is not made by a key", When: join(func(c *member.Join) { c.Authority = by(domain.APIKey, domain.ViaAPI, "") }), Refused: domain.Forbidden},
		{Name: "signs out", Given: here, When: member.SignOut{by(domain.Member, domain.ViaConsole, ""), "one"}, Then: []member.Event{member.SignedOut{"one"}}},
		{Name: "signs out of another session", Given: append(here[:1:1], member.SignedOut{"one"}), When: member.SignOut{by(domain.Member, domain.ViaConsole, ""), "two"}, Then: []member.Event{member.SignedOut{"two"}}},
		{Name: "has signed out already", Given: append(here[:1:1], member.SignedOut{"one"}), When: member.SignOut{by(domain.Member, domain.ViaConsole, ""), "one"}},
		{Name: "signs out of a session", Given: here, When: member.SignOut{by(domain.Member, domain.ViaConsole, ""), ""}, Refused: domain.Missing, Field: "session"},
		{Name: "who left has no session", Given: left, When: member.SignOut{by(domain.Member, domain.ViaConsole, ""), "one"}, Refused: domain.NotFound},
		{Name: "is not signed out by a key", Given: here, When: member.SignOut{by(domain.APIKey, domain.ViaAPI, ""), "one"}, Refused: domain.Forbidden},
		{Name: "leaves", Given: here, When: member.Leave{by(domain.Operator, domain.ViaCLI, "left")}, Then: []member.Event{member.Left{}}},
		{Name: "has left already", Given: left, When: member.Leave{by(domain.Operator, domain.ViaCLI, "left")}},
		{Name: "who never joined does not leave", When: member.Leave{by(domain.Operator, domain.ViaCLI, "left")}, Refused: domain.NotFound},
		{Name: "does not leave without a reason", Given: here, When: member.Leave{by(domain.Operator, domain.ViaCLI, "")}, Refused: domain.Missing, Field: "reason"},
	})
}
