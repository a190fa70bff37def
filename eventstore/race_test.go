package eventstore

import (
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
)

// trust is the authority of a member of the trust staff.
func trust(name string) domain.Authority {
	by := operator()
	by.Actor, by.Role, by.Via = domain.Actor{Kind: domain.Staff, ID: name}, domain.Trust, domain.ViaConsole
	by.Auth, by.AuthAt, by.Reason = domain.SecondFactor, at, "seen"
	return by
}

// Many ask for the same at the same time, and one of them gets it.
func TestOneWins(t *testing.T) {
	t.Parallel()
	s := open(t)
	rapid.Check(t, func(t *rapid.T) {
		of := newKey()
		n := rapid.SampledFrom([]int{2, 2, 3, 8, 16}).Draw(t, "racers")
		revoking := rapid.Bool().Draw(t, "revoking")
		before := 0
		if revoking {
			if _, err := Execute(t.Context(), s, apikey.Decider, of, issue()); err != nil {
				t.Fatal(err)
			}
			before = 1
		}
		got := make([][]domain.Recorded, n)
		errs := make([]error, n)
		var racers sync.WaitGroup
		for i := range n {
			racers.Go(func() {
				c := issue()
				if revoking {
					c = revoke()
				}
				got[i], errs[i] = Execute(t.Context(), s, apikey.Decider, of, c)
			})
		}
		racers.Wait()
		won := 0
		for i := range n {
			if errs[i] != nil {
				t.Errorf("racer %d: %v", i, errs[i])
			}
			won += len(got[i])
		}
		h, err := s.History(t.Context(), of)
		if err != nil || won != 1 || len(h) != before+1 {
			t.Fatalf("%d of %d won, and the history has %d events: %v", won, n, len(h), err)
		}
	})
}

// Commands race for an account. Whatever comes of it could have come of asking
// one after the other: each commit is what its command decides in the state that
// the commits before it lead to. So no decision is made on what was not so, and
// no update is lost.
func TestRacingCommandsAreSerial(t *testing.T) {
	t.Parallel()
	s := open(t)
	rapid.Check(t, func(t *rapid.T) {
		of := account.Stream(uuid.NewString())
		asked := map[uuid.UUID]account.Command{}
		told := map[uuid.UUID][]domain.Recorded{}
		var mu sync.Mutex
		ask := func(c account.Command) {
			recorded, err := Execute(t.Context(), s, account.Decider, of, c)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && domain.Refused(err) == nil {
				t.Errorf("%T: %v", c, err)
			}
			asked[c.By().Command] = c
			if len(recorded) > 0 {
				told[c.By().Command] = recorded
			}
		}
		ask(account.Open{Authority: operator(), Name: "Acme"})
		for round := range rapid.IntRange(1, 3).Draw(t, "rounds") {
			state, _, err := Load(t.Context(), s, account.Decider, of)
			if err != nil {
				t.Fatal(err)
			}
			var racers sync.WaitGroup
			for i := range rapid.IntRange(2, 6).Draw(t, "racers") {
				var c account.Command
				who := trust(fmt.Sprint("staff", i))
				switch rapid.SampledFrom([]string{"block", "same", "request", "withdraw", "unblock"}).Draw(t, "command") {
				case "block":
					c = account.Block{Authority: who, Policy: fmt.Sprint("rule", round, i), Evidence: "seen"}
				case "same":
					c = account.Block{Authority: who, Policy: "spam", Evidence: "seen"}
				case "request":
					c = account.RequestUnblock{Authority: who}
				case "withdraw":
					c = account.WithdrawRequest{Authority: who}
				case "unblock":
					// Its approval names a request that may be gone by then.
					if state.Request != nil {
						who.Approvals = []domain.Approval{state.Request.Approval()}
					}
					c = account.Unblock{Authority: who}
				}
				racers.Go(func() { ask(c) })
			}
			racers.Wait()
		}

		h, err := s.History(t.Context(), of)
		if err != nil {
			t.Fatal(err)
		}
		var state account.State
		var last uint64
		for len(h) > 0 {
			end := slices.IndexFunc(h, func(r domain.Recorded) bool { return r.Seq != h[0].Seq })
			if end < 0 {
				end = len(h)
			}
			commit := h[:end]
			h = h[end:]
			c := asked[commit[0].By.Command]
			if c == nil {
				t.Fatalf("the commit at %d comes from a command that nobody gave", commit[0].Seq)
			}
			want, err := account.Decider.Decide(of, state, c)
			if err != nil || len(want) != len(commit) {
				t.Fatalf("at %d %T was recorded, and decides %v, %v in the state before it", commit[0].Seq, c, want, err)
			}
			for i, r := range commit {
				if !reflect.DeepEqual(r.Event, domain.Event(want[i])) || r.Prev != last {
					t.Fatalf("at %d, after %d: %+v; it decides %+v after %d", r.Seq, r.Prev, r.Event, want[i], last)
				}
				state = account.Decider.Evolve(state, want[i])
			}
			last = commit[0].Seq
			if !reflect.DeepEqual(told[c.By().Command], commit) {
				t.Fatalf("the one who asked was told\n%+v\nand recorded is\n%+v", told[c.By().Command], commit)
			}
			delete(told, c.By().Command)
		}
		for id, recorded := range told {
			t.Errorf("lost: command %s was told it led to %+v", id, recorded)
		}
	})
}
