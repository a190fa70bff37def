package eventstore

import (
	"errors"
	"reflect"
	"sync"
	"testing"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
)

func newClaim() Claim {
	return Claim{Account: "acme", Key: "5eed", Digest: "d1", IDs: []uuid.UUID{uuid.New()}, At: at}
}

// same reports whether two claims say the same, wherever they lie.
func same(a, b Claim) bool {
	a.seq, b.seq = 0, 0
	return reflect.DeepEqual(a, b)
}

// claimAll has n requests with one key arrive at once, and returns the claim
// that won.
func claimAll(t *testing.T, s *Store, n int) Claim {
	t.Helper()
	var mu sync.Mutex
	var winners []Claim
	var losers []Claim
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			stored, won, err := s.Claim(t.Context(), newClaim())
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if won {
				winners = append(winners, stored)
			} else {
				losers = append(losers, stored)
			}
		})
	}
	all.Wait()
	if len(winners) != 1 || len(losers) != n-1 {
		t.Fatalf("%d won and %d lost, of %d", len(winners), len(losers), n)
	}
	for _, l := range losers {
		if !same(l, winners[0]) {
			t.Errorf("a loser was told of %+v, and %+v won", l, winners[0])
		}
	}
	return winners[0]
}

func TestOneClaimWins(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	won := claimAll(t, s, 50)

	// The request failed before anything was recorded: the next one may try, and
	// again only one.
	if err := s.Unclaim(ctx, won); err != nil {
		t.Fatal(err)
	}
	next := claimAll(t, s, 50)
	if same(next, won) {
		t.Error("the claim that was given back has won again")
	}
	// Whoever gave it back cannot settle it for the other.
	if err := s.Settle(ctx, won); !errors.Is(err, ErrConflict) {
		t.Errorf("a claim that was given back was settled: %v", err)
	}

	next.Positions = []domain.Position{{Log: "MAIL_00", Seq: 7}}
	if err := s.Settle(ctx, next); err != nil {
		t.Fatal(err)
	}
	held, late, err := s.Claim(ctx, newClaim())
	if err != nil || late || !held.Done || !reflect.DeepEqual(held.Positions, next.Positions) || !reflect.DeepEqual(held.IDs, next.IDs) {
		t.Errorf("a repeated request finds %+v, won %v, %v; want it settled at %v", held, late, err, next.Positions)
	}
	// Other keys and other accounts are not touched.
	other := newClaim()
	other.Key = "07e4"
	elsewhere := newClaim()
	elsewhere.Account = "globex"
	for _, c := range []Claim{other, elsewhere} {
		if _, won, err := s.Claim(ctx, c); err != nil || !won {
			t.Errorf("the claim %s of %s: won %v, %v", c.Key, c.Account, won, err)
		}
	}
	for _, bad := range []Claim{{Account: "acme"}, {Account: "*", Key: "1"}, {Account: "acme", Key: "1.2"}} {
		if _, won, err := s.Claim(ctx, bad); err == nil || won {
			t.Errorf("%+v was claimed", bad)
		}
	}
}

func TestClaimOutlivesRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, in(dir))
	c := newClaim()
	if _, won, err := s.Claim(t.Context(), c); err != nil || !won {
		t.Fatal(won, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, in(dir))
	held, won, err := s.Claim(t.Context(), newClaim())
	if err != nil || won || !same(held, c) {
		t.Errorf("after a restart the claim is %+v, won %v, %v; want %+v", held, won, err, c)
	}
	// Who lost may settle what the crashed winner had begun.
	if err := s.Settle(t.Context(), held); err != nil {
		t.Error(err)
	}
}
