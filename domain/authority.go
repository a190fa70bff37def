package domain

import (
	"slices"
	"time"
)

// Verb names a command in the authority table: kind, a dot, and an imperative.
type Verb string

// Grant lets one kind of actor issue a command. An empty list of roles or
// paths stands for any.
type Grant struct {
	Kind      ActorKind
	Roles     []Role
	Vias      []Via
	Reason    bool // the command has to say why
	Fresh     bool // a second factor was shown within FreshFor
	Approvals int  // how many other people have to have agreed
}

// FreshFor is how long a second factor counts as fresh.
const FreshFor = 5 * time.Minute

// Table is who may ask what. A verb or an actor kind that is not in it may not.
type Table map[Verb][]Grant

var (
	customerKey    = Grant{Kind: APIKey, Roles: []Role{FullAccess}, Vias: []Via{ViaAPI}}
	sendingKey     = Grant{Kind: APIKey, Roles: []Role{FullAccess, SendingAccess}, Vias: []Via{ViaAPI, ViaSMTP}}
	memberAdmin    = Grant{Kind: Member, Roles: []Role{MemberAdmin}, Vias: []Via{ViaConsole}}
	theSystem      = Grant{Kind: System, Vias: []Via{ViaWorker}}
	operatorAtHost = Grant{Kind: Operator, Vias: []Via{ViaCLI}}

	trustWithReason    = Grant{Kind: Staff, Roles: []Role{Trust}, Vias: []Via{ViaAPI, ViaConsole, ViaCLI}, Reason: true}
	operatorWithReason = Grant{Kind: Operator, Vias: []Via{ViaCLI}, Reason: true}
)

// Authorities is the platform's table, the only one. Unblocking takes two
// people of the trust role, one who asks and another who approves, each with
// a reason and a fresh second factor; nobody else can, by any path.
var Authorities = Table{
	"account.open":             {operatorAtHost},
	"account.block":            {{Kind: Staff, Roles: []Role{Trust}, Vias: []Via{ViaAPI, ViaConsole, ViaCLI}, Reason: true}},
	"account.request_unblock":  {{Kind: Staff, Roles: []Role{Trust}, Vias: []Via{ViaAPI, ViaConsole, ViaCLI}, Reason: true, Fresh: true}},
	"account.withdraw_request": {{Kind: Staff, Roles: []Role{Trust}, Vias: []Via{ViaAPI, ViaConsole, ViaCLI}, Reason: true}},
	"account.unblock":          {{Kind: Staff, Roles: []Role{Trust}, Vias: []Via{ViaAPI, ViaConsole, ViaCLI}, Reason: true, Fresh: true, Approvals: 1}},

	"apikey.issue":  {customerKey, memberAdmin, operatorAtHost},
	"apikey.revoke": {customerKey, memberAdmin, operatorWithReason},

	"name.take":    {customerKey, memberAdmin, operatorAtHost},
	"name.release": {customerKey, memberAdmin, operatorAtHost},

	"sender.add":    {customerKey, memberAdmin, operatorAtHost},
	"sender.change": {customerKey, memberAdmin},
	"sender.verify": {customerKey, memberAdmin, operatorAtHost},
	"sender.report": {theSystem},
	"sender.vouch":  {operatorAtHost}, // the sandbox's own domain, which no DNS can prove
	"sender.remove": {customerKey, memberAdmin, operatorWithReason},

	"email.accept":     {sendingKey},
	"email.reschedule": {customerKey, memberAdmin},
	"email.cancel":     {customerKey, memberAdmin},
	"email.start":      {theSystem},
	"email.report":     {theSystem},
	"email.abandon":    {theSystem},

	"backup.record":  {operatorAtHost},
	"backup.restore": {operatorAtHost},

	"readmodel.report": {theSystem, operatorAtHost},
	"readmodel.repair": {operatorAtHost},

	// Whoever holds the data directory could destroy keys with their hands. Staff
	// erase one recipient alone, and a whole account in twos.
	"retention.place_hold":      {trustWithReason, operatorWithReason},
	"retention.lift_hold":       {trustWithReason, operatorWithReason},
	"retention.erase_recipient": {trustWithReason, operatorWithReason},
	"retention.propose_erasure": {{Kind: Staff, Roles: []Role{Trust}, Vias: []Via{ViaAPI, ViaConsole, ViaCLI}, Reason: true, Fresh: true}},
	"retention.erase_account":   {{Kind: Staff, Roles: []Role{Trust}, Vias: []Via{ViaAPI, ViaConsole, ViaCLI}, Reason: true, Fresh: true, Approvals: 1}, operatorWithReason},
	"retention.finish_erasure":  {theSystem, operatorAtHost},

	"kek.start_rotation":  {operatorAtHost},
	"kek.finish_rotation": {theSystem, operatorAtHost},

	"partitioning.change": {operatorAtHost},

	"seal.report": {theSystem, operatorAtHost},
	"seal.rotate": {operatorAtHost},

	"staff.join":    {operatorAtHost},
	"staff.sign_in": {{Kind: Staff, Roles: []Role{Trust, Support}, Vias: []Via{ViaAPI}, Fresh: true}},
	"staff.leave":   {operatorWithReason},

	"member.join":     {operatorAtHost},
	"member.sign_out": {memberAdmin},
	"member.leave":    {operatorWithReason},
}

// Authorize checks that the table lets by issue verb against the aggregate
// called of. It answers with a Refusal that names the missing condition.
func Authorize(of Stream, verb Verb, by Authority) error { return Authorities.authorize(of, verb, by) }

func (t Table) authorize(of Stream, verb Verb, by Authority) error {
	if by.Actor.ID == "" || by.At.IsZero() {
		return Refuse(Forbidden, "A command needs an actor and a time.")
	}
	grants := t[verb]
	at := slices.IndexFunc(grants, func(g Grant) bool { return g.Kind == by.Actor.Kind })
	if at < 0 {
		return Refuse(Forbidden, "%s may not %s.", article(by.Actor.Kind), verb)
	}
	g := grants[at]
	switch {
	case (g.Kind == APIKey || g.Kind == Member) && of.Account != by.Account && of.Account != Platform:
		return Refuse(NotFound, "There is no such %s.", of.Kind)
	case g.Roles != nil && !slices.Contains(g.Roles, by.Role):
		return Refuse(Forbidden, "The role %q may not %s.", by.Role, verb)
	case g.Vias != nil && !slices.Contains(g.Vias, by.Via):
		return Refuse(Forbidden, "%s cannot be asked through %s.", verb, by.Via)
	case g.Fresh && (by.Auth != SecondFactor || by.At.Sub(by.AuthAt) > FreshFor || by.At.Before(by.AuthAt)):
		return Refuse(Forbidden, "%s needs a second factor shown within the last %d minutes.", verb, int(FreshFor.Minutes()))
	case g.Reason && by.Reason == "":
		return RefuseField(Missing, "reason", "Say why: %s needs a reason.", verb)
	case g.Approvals > others(by):
		return Refuse(Forbidden, "%s needs the agreement of %d other member of staff.", verb, g.Approvals)
	}
	return nil
}

// others counts the people who agreed, leaving out the one who asks and
// anybody named twice.
func others(by Authority) int {
	seen := []Actor{by.Actor}
	for _, a := range by.Approvals {
		if a.Actor.Kind == Staff && a.Actor.ID != "" && !slices.Contains(seen, a.Actor) {
			seen = append(seen, a.Actor)
		}
	}
	return len(seen) - 1
}

func article(k ActorKind) string {
	switch k {
	case APIKey:
		return "An API key"
	case Operator:
		return "An operator"
	case Member:
		return "A member"
	case Staff:
		return "Staff"
	case System:
		return "The system"
	}
	return "Nobody of kind " + string(k)
}
