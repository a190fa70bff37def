package staff_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/domaintest"
	"postbook.dev/postbook/domain/staff"
)

var (
	now     = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	command = uuid.MustParse("01a20b56-8e46-7e6f-82b1-51d6d8687fdd")
)

func operator(reason string) domain.Authority {
	return domain.Authority{Actor: domain.Actor{Kind: domain.Operator, ID: "root"}, Account: domain.Platform, Via: domain.ViaCLI, Auth: domain.Internal, At: now, Reason: reason, Command: command}
}

func ada(auth domain.Strength) domain.Authority {
	return domain.Authority{Actor: domain.Actor{Kind: domain.Staff, ID: "ada"}, Account: domain.Platform, Role: domain.Trust, Via: domain.ViaAPI, Auth: auth, AuthAt: now, At: now, Command: command}
}

func join(change func(*staff.Join)) staff.Join {
	c := staff.Join{Authority: operator(""), Email: domain.Sealed("sealed"), Index: "index", As: domain.Trust, Password: "$argon2id$", TOTP: domain.Sealed("secret")}
	change(&c)
	return c
}

var joined = staff.Joined{Email: domain.Sealed("sealed"), Index: "index", Role: domain.Trust, Password: "$argon2id$", TOTP: domain.Sealed("secret")}

func TestStaff(t *testing.T) {
	as := func(*staff.Join) {}
	here := []staff.Event{joined}
	domaintest.Tell(t, staff.Decider, staff.Stream("ada"), []domaintest.Story[staff.Command, staff.Event]{
		{Name: "join", When: join(as), Then: here},
		{Name: "have joined already", Given: here, When: join(as)},
		{Name: "join with a role of staff alone", When: join(func(c *staff.Join) { c.As = domain.MemberAdmin }), Refused: domain.Invalid, Field: "role"},
		{Name: "join with an address", When: join(func(c *staff.Join) { c.Email = nil }), Refused: domain.Missing, Field: "email"},
		{Name: "join with an address that can be found", When: join(func(c *staff.Join) { c.Index = "" }), Refused: domain.Missing, Field: "email"},
		{Name: "join with a password", When: join(func(c *staff.Join) { c.Password = "" }), Refused: domain.Missing, Field: "password"},
		{Name: "join with a second factor", When: join(func(c *staff.Join) { c.TOTP = nil }), Refused: domain.Missing, Field: "totp"},
		{Name: "are not made by staff", When: join(func(c *staff.Join) { c.Authority = ada(domain.SecondFactor) }), Refused: domain.Forbidden},

		{Name: "sign in", Given: here, When: staff.SignIn{ada(domain.SecondFactor), 7}, Then: []staff.Event{staff.SignedIn{7}}},
		{Name: "sign in again", Given: []staff.Event{joined, staff.SignedIn{7}}, When: staff.SignIn{ada(domain.SecondFactor), 8}, Then: []staff.Event{staff.SignedIn{8}}},
		{Name: "use no code twice", Given: []staff.Event{joined, staff.SignedIn{7}}, When: staff.SignIn{ada(domain.SecondFactor), 7}, Refused: domain.Taken, Field: "totp"},
		{Name: "use no code from before the last", Given: []staff.Event{joined, staff.SignedIn{7}}, When: staff.SignIn{ada(domain.SecondFactor), 6}, Refused: domain.Taken, Field: "totp"},
		{Name: "do not sign in with a password alone", Given: here, When: staff.SignIn{ada(domain.PasswordAuth), 7}, Refused: domain.Forbidden},
		{Name: "who never joined do not sign in", When: staff.SignIn{ada(domain.SecondFactor), 7}, Refused: domain.NotFound},
		{Name: "who left do not sign in", Given: []staff.Event{joined, staff.Left{}}, When: staff.SignIn{ada(domain.SecondFactor), 7}, Refused: domain.NotFound},
		{Name: "are not signed in by an operator", Given: here, When: staff.SignIn{operator(""), 7}, Refused: domain.Forbidden},

		{Name: "leave", Given: here, When: staff.Leave{operator("left")}, Then: []staff.Event{staff.Left{}}},
		{Name: "have left already", Given: []staff.Event{joined, staff.Left{}}, When: staff.Leave{operator("left")}},
		{Name: "who never joined do not leave", When: staff.Leave{operator("left")}, Refused: domain.NotFound},
		{Name: "do not leave without a reason", Given: here, When: staff.Leave{operator("")}, Refused: domain.Missing, Field: "reason"},
		{Name: "are not put out by one another", Given: here, When: staff.Leave{ada(domain.SecondFactor)}, Refused: domain.Forbidden},
	})
}
