package sender_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/domaintest"
	"postbook.dev/postbook/domain/sender"
)

var (
	now   = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	of    = sender.Stream("acme", "domain")
	plain = sender.Settings{TLS: sender.TLSOpportunistic}
	added = sender.Added{Name: "acme.com", Region: "eu-west-1", ReturnPath: "send", Selector: "postbook", PublicKey: "MIIB", PrivateKey: domain.Sealed("key"), Settings: plain}
)

func by(kind domain.ActorKind, via domain.Via, at time.Time) domain.Authority {
	return domain.Authority{
		Actor: domain.Actor{Kind: kind, ID: "somebody"}, Account: "acme", Role: domain.FullAccess, Via: via, At: at, Reason: "they asked",
		Command: uuid.MustParse("01a20b56-8e46-7e6f-82b1-51d6d8687fdd"),
	}
}

func key() domain.Authority      { return by(domain.APIKey, domain.ViaAPI, now) }
func operator() domain.Authority { return by(domain.Operator, domain.ViaCLI, now) }

func add(change func(*sender.Added)) sender.Add {
	c := sender.Add{Authority: key(), Added: added}
	change(&c.Added)
	return c
}

// answers is what DNS says of DKIM, SPF and MX.
func answers(dkim, spf, mx sender.Status) []sender.Result {
	return []sender.Result{{Record: sender.RecordDKIM, Status: dkim}, {Record: sender.RecordSPF, Status: spf}, {Record: sender.RecordMX, Status: mx}}
}

var (
	all    = answers(sender.Found, sender.Found, sender.Found)
	absent = answers(sender.Found, sender.NotFound, sender.Found)
	silent = answers(sender.Found, sender.TemporaryFailure, sender.Found)
)

func report(results []sender.Result, after time.Duration) sender.Report {
	return sender.Report{by(domain.System, domain.ViaWorker, now.Add(after)), results}
}

func TestSender(t *testing.T) {
	here := []sender.Event{added}
	asked := append(here[:1:1], sender.VerificationRequested{At: now})
	verified := append(asked[:2:2], sender.Checked{all}, sender.Verified{})
	lapsed := append(verified[:4:4], sender.Checked{absent}, sender.Lapsed{Since: now})
	failed := append(asked[:2:2], sender.Checked{absent}, sender.Failed{})
	vouched := append(here[:1:1], sender.Vouched{})
	enforced := sender.Settings{TLS: sender.TLSEnforced}
	domaintest.Tell(t, sender.Decider, of, []domaintest.Story[sender.Command, sender.Event]{
		{Name: "is added", When: add(func(*sender.Added) {}), Then: here},
		{Name: "is added already", Given: here, When: add(func(*sender.Added) {})},
		{Name: "needs a name", When: add(func(a *sender.Added) { a.Name = "" }), Refused: domain.Missing, Field: "name"},
		{Name: "needs a signing key", When: add(func(a *sender.Added) { a.PrivateKey = nil }), Refused: domain.Missing, Field: "key"},
		{Name: "needs a selector", When: add(func(a *sender.Added) { a.Selector = "" }), Refused: domain.Missing, Field: "key"},
		{Name: "has one of two policies of TLS", When: add(func(a *sender.Added) { a.TLS = "never" }), Refused: domain.Invalid, Field: "tls"},

		{Name: "is changed", Given: here, When: sender.Change{key(), enforced}, Then: []sender.Event{sender.Changed{enforced}}},
		{Name: "is like that already", Given: here, When: sender.Change{key(), plain}},
		{Name: "is not changed to what is not allowed", Given: here, When: sender.Change{key(), sender.Settings{}}, Refused: domain.Invalid, Field: "tls"},

		{Name: "is to be verified", Given: here, When: sender.Verify{key()}, Then: []sender.Event{sender.VerificationRequested{At: now}}},
		{Name: "is being verified already", Given: asked, When: sender.Verify{key()}},
		{Name: "is to be verified again after it has failed", Given: failed, When: sender.Verify{key()}, Then: []sender.Event{sender.VerificationRequested{At: now}}},
		{Name: "that is vouched for needs no proof", Given: vouched, When: sender.Verify{key()}},

		{Name: "is verified when all is found", Given: asked, When: report(all, time.Hour), Then: []sender.Event{sender.Checked{all}, sender.Verified{}}},
		{Name: "is not while something is absent", Given: asked, When: report(absent, time.Hour), Then: []sender.Event{sender.Checked{absent}}},
		{Name: "is not while DNS is silent", Given: asked, When: report(silent, time.Hour), Then: []sender.Event{sender.Checked{silent}}},
		{Name: "has failed after three days", Given: asked, When: report(absent, sender.Patience), Then: []sender.Event{sender.Checked{absent}, sender.Failed{}}},
		{Name: "that has failed is verified when all is found", Given: failed, When: report(all, 100*time.Hour), Then: []sender.Event{sender.Checked{all}, sender.Verified{}}},
		{Name: "that is verified stays so, and nothing is recorded", Given: verified, When: report(all, time.Hour)},
		{Name: "that is verified lapses when something is absent", Given: verified, When: report(absent, 0), Then: []sender.Event{sender.Checked{absent}, sender.Lapsed{Since: now}}},
		{Name: "that is verified does not lapse while DNS is silent", Given: verified, When: report(silent, 0), Then: []sender.Event{sender.Checked{silent}}},
		{Name: "that lapsed is verified when all is found", Given: lapsed, When: report(all, time.Hour), Then: []sender.Event{sender.Checked{all}, sender.Verified{}}},
		{Name: "that lapsed goes on for three days", Given: lapsed, When: report(absent, sender.Patience-1)},
		{Name: "that lapsed has failed after three days", Given: lapsed, When: report(absent, sender.Patience), Then: []sender.Event{sender.Failed{}}},
		{Name: "that is vouched for does not lapse", Given: vouched, When: report(absent, time.Hour)},
		{Name: "does not hear of DNS from customers", Given: asked, When: sender.Report{key(), all}, Refused: domain.Forbidden},

		{Name: "is vouched for by the operator", Given: here, When: sender.Vouch{operator()}, Then: []sender.Event{sender.Vouched{}}},
		{Name: "is vouched for already", Given: vouched, When: sender.Vouch{operator()}},
		{Name: "is not vouched for by its customer", Given: here, When: sender.Vouch{key()}, Refused: domain.Forbidden},

		{Name: "is removed", Given: verified, When: sender.Remove{key()}, Then: []sender.Event{sender.Removed{}}},
		{Name: "that was removed is not there", Given: append(verified[:4:4], sender.Removed{}), When: sender.Verify{key()}, Refused: domain.NotFound},
		{Name: "that was never added is not there", When: sender.Remove{key()}, Refused: domain.NotFound},
	})
}

// Whatever DNS says, in whatever order: mail is accepted only from a domain of which
// all records were found once and which was not given up since, or that the operator
// has vouched for; and never from one that was removed.
func TestOnlyProvenDomainsSend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		state := sender.Decider.Replay(added)
		at, proven, gone := now, false, false
		status := rapid.SampledFrom([]sender.Status{sender.Found, sender.NotFound, sender.TemporaryFailure})
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.IntRange(0, 80).Draw(t, "hours")) * time.Hour)
			var c sender.Command
			switch rapid.IntRange(0, 19).Draw(t, "what") {
			case 0, 1, 2:
				c = sender.Verify{by(domain.APIKey, domain.ViaAPI, at)}
			case 3:
				c = sender.Remove{by(domain.APIKey, domain.ViaAPI, at)}
			default:
				c = sender.Report{by(domain.System, domain.ViaWorker, at), answers(status.Draw(t, "DKIM"), status.Draw(t, "SPF"), status.Draw(t, "MX"))}
			}
			events, err := sender.Decider.Decide(of, state, c)
			if r := domain.Refused(err); err != nil && (r == nil || !gone) {
				t.Fatal(err)
			}
			for _, e := range events {
				switch e := e.(type) {
				case sender.Verified:
					found := 0
					for _, r := range c.(sender.Report).Results {
						if r.Status == sender.Found {
							found++
						}
					}
					if found != 3 {
						t.Fatalf("verified by %+v", c)
					}
					proven = true
				case sender.Failed:
					proven = false
				case sender.Removed:
					gone = true
				case sender.Lapsed:
					if !proven || !e.Since.Equal(at) {
						t.Fatalf("lapsed at %s: %+v", at, e)
					}
				}
				state = sender.Decider.Evolve(state, e)
			}
			if state.CanSend() != (proven && !gone) {
				t.Fatalf("it may send: %t; proven %t, removed %t", state.CanSend(), proven, gone)
			}
		}
	})
}
