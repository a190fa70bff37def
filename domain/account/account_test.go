package account_test

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/domaintest"
)

var (
	now     = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	request = uuid.MustParse("01a20b56-8e46-7e6f-82b1-51d6d8687fdd")
	of      = account.Stream("acme")
	ada     = domain.Actor{Kind: domain.Staff, ID: "ada"}
	grace   = domain.Actor{Kind: domain.Staff, ID: "grace"}
)

func staff(who domain.Actor, reason string, approvals ...domain.Approval) domain.Authority {
	return domain.Authority{
		Actor: who, Account: domain.Platform, Role: domain.Trust, Via: domain.ViaAPI, Auth: domain.SecondFactor, AuthAt: now, At: now,
		Reason: reason, Command: request, Approvals: approvals,
	}
}

func operator() domain.Authority {
	return domain.Authority{Actor: domain.Actor{Kind: domain.Operator, ID: "root"}, Via: domain.ViaCLI, At: now, Command: request}
}

var (
	open    = account.Opened{Name: "Acme"}
	blocked = account.Blocked{Policy: "spam", Evidence: "412 complaints"}
	asked   = account.UnblockRequested{Request: request, By: ada, At: now, Reason: "the list was cleaned"}
)

func TestAccount(t *testing.T) {
	domaintest.Tell(t, account.Decider, of, []domaintest.Story[account.Command, account.Event]{
		{Name: "is opened", When: account.Open{Authority: operator(), Name: "Acme"}, Then: []account.Event{open}},
		{Name: "is open already", Given: []account.Event{open}, When: account.Open{Authority: operator(), Name: "Acme"}},
		{Name: "needs a name", When: account.Open{Authority: operator()}, Refused: domain.Missing, Field: "name"},
		{Name: "is blocked", Given: []account.Event{open}, When: account.Block{staff(ada, "complaints"), "spam", "412 complaints"}, Then: []account.Event{blocked}},
		{Name: "is blocked for the same already", Given: []account.Event{open, blocked}, When: account.Block{staff(ada, "complaints"), "spam", "more"}},
		{Name: "is blocked for something else too", Given: []account.Event{open, blocked}, When: account.Block{staff(ada, "phishing"), "phishing", "a page"}, Then: []account.Event{account.Blocked{Policy: "phishing", Evidence: "a page"}}},
		{Name: "is not blocked without a policy", Given: []account.Event{open}, When: account.Block{staff(ada, "x"), "", "412"}, Refused: domain.Missing, Field: "policy"},
		{Name: "is not blocked without evidence", Given: []account.Event{open}, When: account.Block{staff(ada, "x"), "spam", ""}, Refused: domain.Missing, Field: "evidence"},
		{Name: "is not blocked without a reason", Given: []account.Event{open}, When: account.Block{staff(ada, ""), "spam", "412"}, Refused: domain.Missing, Field: "reason"},
		{Name: "that is not there cannot be blocked", When: account.Block{staff(ada, "x"), "spam", "412"}, Refused: domain.NotFound},
		{Name: "can be asked to be unblocked", Given: []account.Event{open, blocked}, When: account.RequestUnblock{staff(ada, "the list was cleaned")}, Then: []account.Event{asked}},
		{Name: "cannot be asked for when it is not blocked", Given: []account.Event{open}, When: account.RequestUnblock{staff(ada, "x")}, Refused: domain.WrongState},
		{Name: "was asked for by the same person already", Given: []account.Event{open, blocked, asked}, When: account.RequestUnblock{staff(ada, "again")}},
		{
			Name: "is unblocked by two", Given: []account.Event{open, blocked, asked}, When: account.Unblock{staff(grace, "I looked", asked.Approval())},
			Then: []account.Event{account.Unblocked{Request: request, AskedBy: ada, AskedWhy: "the list was cleaned", ApprovedBy: grace}},
		},
		{Name: "is not unblocked by one", Given: []account.Event{open, blocked, asked}, When: account.Unblock{staff(ada, "I agree with myself", asked.Approval())}, Refused: domain.Forbidden},
		{Name: "is not unblocked without a request", Given: []account.Event{open, blocked}, When: account.Unblock{staff(grace, "x", asked.Approval())}, Refused: domain.WrongState},
		{
			Name: "is not unblocked by an approval of another request", Given: []account.Event{open, blocked, asked},
			When: account.Unblock{staff(grace, "x", domain.Approval{Actor: ada, Event: uuid.New(), At: now})}, Refused: domain.Forbidden,
		},
		{
			Name: "is not unblocked by a request from before another block", Given: []account.Event{open, blocked, asked, account.Blocked{Policy: "phishing", Evidence: "a page"}},
			When: account.Unblock{staff(grace, "x", asked.Approval())}, Refused: domain.WrongState,
		},
		{
			Name: "is not unblocked by a request of yesterday", Given: []account.Event{open, blocked, account.UnblockRequested{Request: request, By: ada, At: now.Add(-account.RequestMaxAge), Reason: "x"}},
			When: account.Unblock{staff(grace, "x", asked.Approval())}, Refused: domain.WrongState,
		},
		{Name: "has its request withdrawn", Given: []account.Event{open, blocked, asked}, When: account.WithdrawRequest{staff(ada, "a mistake")}, Then: []account.Event{account.RequestWithdrawn{Request: request}}},
		{Name: "has no request to withdraw", Given: []account.Event{open, blocked}, When: account.WithdrawRequest{staff(ada, "a mistake")}},
	})
}

// Whatever is tried in whatever order, an account that was blocked can send again
// only after two different members of staff have said so about the same request.
func TestNobodyUnblocksAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := []account.Event{open, blocked}
		requests := []domain.Approval{{Actor: ada, Event: uuid.New(), At: now}}
		at := now
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			at = at.Add(time.Duration(rapid.IntRange(0, 1200).Draw(t, "minutes")) * time.Minute)
			who := domain.Actor{Kind: domain.Staff, ID: rapid.SampledFrom([]string{"ada", "grace", "edsger"}).Draw(t, "who")}
			by := staff(who, "because", rapid.SampledFrom(requests).Draw(t, "approval"))
			by.At, by.AuthAt, by.Command = at, at, uuid.New()
			state := account.Decider.Replay(events...)
			commands := []account.Command{
				account.RequestUnblock{by}, account.Unblock{by}, account.WithdrawRequest{by}, account.Block{by, rapid.SampledFrom([]string{"spam", "phishing"}).Draw(t, "policy"), "seen"},
			}
			then, err := account.Decider.Decide(of, state, rapid.SampledFrom(commands).Draw(t, "command"))
			if err != nil {
				continue
			}
			for _, e := range then {
				switch e := e.(type) {
				case account.UnblockRequested:
					requests = append(requests, e.Approval())
				case account.Unblocked:
					if e.AskedBy == e.ApprovedBy || state.Request == nil || e.Request != state.Request.Request || e.AskedBy != state.Request.By {
						t.Fatalf("unblocked by %v and %v, on %v", e.AskedBy, e.ApprovedBy, state.Request)
					}
				}
			}
			events = append(events, then...)
		}
	})
}
