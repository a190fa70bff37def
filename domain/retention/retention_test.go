package retention_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/domaintest"
	"postbook.dev/postbook/domain/retention"
)

var (
	now      = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	of       = retention.Stream("acme")
	command  = uuid.MustParse("01900000-0000-7000-8000-000000000001")
	other    = uuid.MustParse("01900000-0000-7000-8000-000000000002")
	hold     = uuid.MustParse("01900000-0000-7000-8000-000000000003")
	proposal = uuid.MustParse("01900000-0000-7000-8000-000000000004")
)

func by(kind domain.ActorKind, id string, via domain.Via, reason string) domain.Authority {
	a := domain.Authority{Actor: domain.Actor{Kind: kind, ID: id}, Via: via, At: now, Command: command, Reason: reason}
	if kind == domain.Staff {
		a.Role, a.Auth, a.AuthAt = domain.Trust, domain.SecondFactor, now.Add(-time.Minute)
	}
	return a
}

func staff(id, reason string, approvals ...domain.Approval) domain.Authority {
	a := by(domain.Staff, id, domain.ViaAPI, reason)
	a.Approvals = approvals
	return a
}

func operator(reason string) domain.Authority {
	return by(domain.Operator, "root", domain.ViaCLI, reason)
}

func TestRetention(t *testing.T) {
	const ada = "00000000000000aa"
	system := by(domain.System, "eraser", domain.ViaWorker, "")
	asked := retention.Requested{Erasure: command, Recipient: ada}
	erased := retention.Erased{Erasure: command, Recipient: ada, Keys: 1, Emails: 3}
	held, heldAda := retention.HoldPlaced{Hold: hold}, retention.HoldPlaced{Hold: hold, Recipient: ada}
	heldGrace := retention.HoldPlaced{Hold: hold, Recipient: "00000000000000bb"}
	proposed := retention.Proposed{Proposal: proposal, By: domain.Actor{Kind: domain.Staff, ID: "grace"}, At: now.Add(-time.Hour), Reason: "x"}
	gone := retention.Requested{Erasure: other}
	key := by(domain.APIKey, "k", domain.ViaAPI, "please")
	key.Role, key.Account = domain.FullAccess, "acme"
	stale := staff("ada", "x", proposed.Approval())
	stale.AuthAt = now.Add(-time.Hour)
	support := staff("ada", "x")
	support.Role = domain.Support

	domaintest.Tell(t, retention.Decider, of, []domaintest.Story[retention.Command, retention.Event]{
		{Name: "a recipient is erased by staff", When: retention.EraseRecipient{staff("ada", "she asked"), true, ada, 0, 3}, Then: []retention.Event{asked}},
		{Name: "a recipient is erased by the operator", When: retention.EraseRecipient{operator("she asked"), true, ada, 2, 3}, Then: []retention.Event{retention.Requested{Erasure: command, Recipient: ada, Generation: 2}}},
		{Name: "not without a reason", When: retention.EraseRecipient{operator(""), true, ada, 0, 3}, Refused: domain.Missing, Field: "reason"},
		{Name: "not by a customer's key", When: retention.EraseRecipient{key, true, ada, 0, 3}, Refused: domain.Forbidden},
		{Name: "not by support", When: retention.EraseRecipient{support, true, ada, 0, 3}, Refused: domain.Forbidden},
		{Name: "not by a worker", When: retention.EraseRecipient{system, true, ada, 0, 3}, Refused: domain.Forbidden},
		{Name: "not of an account that nobody knows", When: retention.EraseRecipient{operator("x"), false, ada, 0, 3}, Refused: domain.NotFound},
		{Name: "not nobody", When: retention.EraseRecipient{operator("x"), true, "", 0, 3}, Refused: domain.Missing, Field: "recipient"},
		{Name: "not somebody whom nobody wrote to", When: retention.EraseRecipient{operator("x"), true, ada, 0, 0}, Refused: domain.NotFound},
		{Name: "not while the account is held", Given: []retention.Event{held}, When: retention.EraseRecipient{operator("x"), true, ada, 0, 3}, Refused: domain.Held},
		{Name: "not while they are held", Given: []retention.Event{heldAda}, When: retention.EraseRecipient{operator("x"), true, ada, 0, 3}, Refused: domain.Held},
		{Name: "while somebody else is held", Given: []retention.Event{heldGrace}, When: retention.EraseRecipient{operator("x"), true, ada, 0, 3}, Then: []retention.Event{asked}},
		{Name: "after the hold was lifted", Given: []retention.Event{heldAda, retention.HoldLifted{Hold: hold, Recipient: ada}}, When: retention.EraseRecipient{operator("x"), true, ada, 0, 3}, Then: []retention.Event{asked}},
		{Name: "it is under way already", Given: []retention.Event{asked}, When: retention.EraseRecipient{operator("x"), true, ada, 0, 3}},
		{Name: "they are erased already", Given: []retention.Event{asked, erased}, When: retention.EraseRecipient{operator("x"), true, ada, 1, 0}},
		{Name: "they are erased again after they were written to again", Given: []retention.Event{retention.Requested{Erasure: other, Recipient: ada}, retention.Erased{Erasure: other, Recipient: ada, Keys: 1}}, When: retention.EraseRecipient{operator("x"), true, ada, 1, 2}, Then: []retention.Event{retention.Requested{Erasure: command, Recipient: ada, Generation: 1}}},
		{Name: "the account went with everybody", Given: []retention.Event{gone}, When: retention.EraseRecipient{operator("x"), true, ada, 0, 3}},

		{Name: "is finished", Given: []retention.Event{asked}, When: retention.FinishErasure{system, command, 1, 3, 0}, Then: []retention.Event{erased}},
		{Name: "is finished once", Given: []retention.Event{asked, erased}, When: retention.FinishErasure{operator(""), command, 1, 3, 0}},
		{Name: "is not finished by staff", Given: []retention.Event{asked}, When: retention.FinishErasure{staff("ada", "x"), command, 1, 3, 0}, Refused: domain.Forbidden},

		{Name: "an account is erased by the operator", When: retention.EraseAccount{operator("closed"), true}, Then: []retention.Event{retention.Requested{Erasure: command}}},
		{Name: "an account is erased once", Given: []retention.Event{gone}, When: retention.EraseAccount{operator("closed"), true}},
		{Name: "an account is not erased while somebody in it is held", Given: []retention.Event{heldAda}, When: retention.EraseAccount{operator("closed"), true}, Refused: domain.Held},
		{Name: "an account that nobody knows is not erased", When: retention.EraseAccount{operator("closed"), false}, Refused: domain.NotFound},
		{Name: "staff propose it", When: retention.ProposeErasure{staff("ada", "closed"), true}, Then: []retention.Event{retention.Proposed{Proposal: command, By: domain.Actor{Kind: domain.Staff, ID: "ada"}, At: now, Reason: "closed"}}},
		{Name: "staff do not propose it while it is held", Given: []retention.Event{held}, When: retention.ProposeErasure{staff("ada", "closed"), true}, Refused: domain.Held},
		{Name: "staff alone do not erase an account", When: retention.EraseAccount{staff("ada", "closed"), true}, Refused: domain.Forbidden},
		{Name: "an agreement to nothing", When: retention.EraseAccount{staff("ada", "closed", proposed.Approval()), true}, Refused: domain.WrongState},
		{Name: "somebody else agrees", Given: []retention.Event{proposed}, When: retention.EraseAccount{staff("ada", "closed", proposed.Approval()), true}, Then: []retention.Event{retention.Requested{Erasure: command}}},
		{Name: "whoever proposed it does not agree too", Given: []retention.Event{proposed}, When: retention.EraseAccount{staff("grace", "closed", domain.Approval{Actor: domain.Actor{Kind: domain.Staff, ID: "ada"}, Event: proposal}), true}, Refused: domain.Forbidden},
		{Name: "an agreement to something else", Given: []retention.Event{proposed}, When: retention.EraseAccount{staff("ada", "closed", domain.Approval{Actor: proposed.By, Event: other}), true}, Refused: domain.Forbidden},
		{Name: "not with a second factor of before", Given: []retention.Event{proposed}, When: retention.EraseAccount{stale, true}, Refused: domain.Forbidden},

		{Name: "is held", When: retention.PlaceHold{staff("ada", "a lawsuit"), true, ""}, Then: []retention.Event{retention.HoldPlaced{Hold: command}}},
		{Name: "a recipient is held", When: retention.PlaceHold{operator("a lawsuit"), true, ada}, Then: []retention.Event{retention.HoldPlaced{Hold: command, Recipient: ada}}},
		{Name: "is not held without a reason", When: retention.PlaceHold{operator(""), true, ada}, Refused: domain.Missing, Field: "reason"},
		{Name: "what is being erased cannot be held", Given: []retention.Event{asked}, When: retention.PlaceHold{operator("x"), true, ada}, Refused: domain.Erased},
		{Name: "an account that is erased cannot be held", Given: []retention.Event{gone}, When: retention.PlaceHold{operator("x"), true, ""}, Refused: domain.Erased},
		{Name: "a hold is lifted", Given: []retention.Event{heldAda}, When: retention.LiftHold{staff("ada", "settled"), hold}, Then: []retention.Event{retention.HoldLifted{Hold: hold, Recipient: ada}}},
		{Name: "a hold that is not there is not lifted", When: retention.LiftHold{operator("x"), hold}, Refused: domain.NotFound},
		{Name: "no customer lifts a hold", Given: []retention.Event{held}, When: retention.LiftHold{key, hold}, Refused: domain.Forbidden},
	})
}

// Whatever is asked in whatever order, nothing is requested to be erased that a hold
// keeps, and every erasure that was requested can be finished exactly once.
func TestNothingThatIsHeldIsErased(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var state retention.State
		holds := map[uuid.UUID]string{}
		open := map[uuid.UUID]bool{}
		var ids []uuid.UUID
		for n := range rapid.IntRange(1, 40).Draw(rt, "steps") {
			id := uuid.NewSHA1(uuid.Nil, fmt.Append(nil, n))
			authority := operator("because")
			authority.Command = id
			who := rapid.SampledFrom([]string{"", "aa", "bb"}).Draw(rt, "who")
			pick := id
			if len(ids) > 0 {
				pick = rapid.SampledFrom(ids).Draw(rt, "id")
			}
			var c retention.Command
			switch rapid.IntRange(0, 4).Draw(rt, "what") {
			case 0:
				c = retention.PlaceHold{Authority: authority, Known: true, Recipient: who}
			case 1:
				c = retention.LiftHold{Authority: authority, Hold: pick}
			case 2:
				c = retention.EraseRecipient{Authority: authority, Known: true, Recipient: who, Emails: rapid.IntRange(0, 2).Draw(rt, "emails")}
			case 3:
				if rapid.IntRange(0, 4).Draw(rt, "rarely") > 0 {
					continue
				}
				c = retention.EraseAccount{Authority: authority, Known: true}
			case 4:
				c = retention.FinishErasure{Authority: authority, Erasure: pick, Keys: 1}
			}
			ids = append(ids, id)
			events, err := retention.Decider.Decide(of, state, c)
			if err != nil && domain.Refused(err) == nil {
				rt.Fatal(errors.Join(err))
			}
			for _, e := range events {
				switch e := e.(type) {
				case retention.HoldPlaced:
					holds[e.Hold] = e.Recipient
				case retention.HoldLifted:
					delete(holds, e.Hold)
				case retention.Requested:
					for _, held := range holds {
						if held == "" || e.Recipient == "" || held == e.Recipient {
							rt.Fatalf("%q is erased although %q is held", e.Recipient, held)
						}
					}
					open[e.Erasure] = true
				case retention.Erased:
					if !open[e.Erasure] {
						rt.Fatalf("%s is finished and was not open", e.Erasure)
					}
					delete(open, e.Erasure)
				}
				state = retention.Decider.Evolve(state, e)
			}
		}
		if len(state.Open) != len(open) {
			rt.Fatalf("%d erasures are open, and the state knows %d", len(open), len(state.Open))
		}
	})
}
