package kek_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/domaintest"
	"postbook.dev/postbook/domain/kek"
)

func TestKEK(t *testing.T) {
	by := func(kind domain.ActorKind, via domain.Via) domain.Authority {
		return domain.Authority{Actor: domain.Actor{Kind: kind, ID: "x"}, Role: domain.Trust, Via: via, At: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), Command: uuid.New()}
	}
	operator, system, staff := by(domain.Operator, domain.ViaCLI), by(domain.System, domain.ViaWorker), by(domain.Staff, domain.ViaConsole)
	started, finished := kek.RotationStarted{From: "a", To: "b"}, kek.RotationFinished{From: "a", To: "b", Keysets: 3}
	domaintest.Tell(t, kek.Decider, kek.Stream(), []domaintest.Story[kek.Command, kek.Event]{
		{Name: "begins to be replaced", When: kek.Start{operator, "a", "b"}, Then: []kek.Event{started}},
		{Name: "is being replaced already", Given: []kek.Event{started}, When: kek.Start{operator, "a", "b"}},
		{Name: "is replaced by one other at a time", Given: []kek.Event{started}, When: kek.Start{operator, "a", "c"}, Refused: domain.WrongState},
		{Name: "is not replaced by itself", When: kek.Start{operator, "a", "a"}, Refused: domain.Invalid, Field: "to"},
		{Name: "is not replaced by staff", When: kek.Start{staff, "a", "b"}, Refused: domain.Forbidden},
		{Name: "has been replaced", Given: []kek.Event{started}, When: kek.Finish{system, "b", 3}, Then: []kek.Event{finished}},
		{Name: "was replaced before", Given: []kek.Event{started, finished}, When: kek.Finish{operator, "b", 3}},
		{Name: "is replaced again", Given: []kek.Event{started, finished}, When: kek.Start{operator, "b", "c"}, Then: []kek.Event{kek.RotationStarted{From: "b", To: "c"}}},
		{Name: "is not the one that was to be", Given: []kek.Event{started}, When: kek.Finish{operator, "c", 3}},
	})
}
