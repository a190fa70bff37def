package partitioning_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/domaintest"
	"postbook.dev/postbook/domain/partitioning"
)

func TestPartitioning(t *testing.T) {
	monday := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	tuesday := monday.Add(24 * time.Hour)
	by := func(kind domain.ActorKind, via domain.Via) domain.Authority {
		return domain.Authority{Actor: domain.Actor{Kind: kind, ID: "x"}, Role: domain.Trust, Via: via, At: tuesday, Command: uuid.New()}
	}
	operator, staff := by(domain.Operator, domain.ViaCLI), by(domain.Staff, domain.ViaConsole)
	four2eight, eight2two := partitioning.Changed{From: 4, To: 8, Since: monday}, partitioning.Changed{From: 8, To: 2, Since: tuesday}
	domaintest.Tell(t, partitioning.Decider, partitioning.Stream(), []domaintest.Story[partitioning.Command, partitioning.Event]{
		{Name: "changes", When: partitioning.Change{operator, 4, 8, monday}, Then: []partitioning.Event{four2eight}},
		{Name: "changes again", Given: []partitioning.Event{four2eight}, When: partitioning.Change{operator, 8, 2, tuesday}, Then: []partitioning.Event{eight2two}},
		{Name: "is on record", Given: []partitioning.Event{four2eight}, When: partitioning.Change{operator, 4, 8, monday}},
		{Name: "was changed again since", Given: []partitioning.Event{four2eight, eight2two}, When: partitioning.Change{operator, 4, 8, monday}},
		{Name: "is not changed to itself", When: partitioning.Change{operator, 4, 4, monday}, Refused: domain.Invalid, Field: "to"},
		{Name: "is not changed to nothing", When: partitioning.Change{operator, 4, 0, monday}, Refused: domain.Invalid, Field: "to"},
		{Name: "holds since a time", When: partitioning.Change{operator, 4, 8, time.Time{}}, Refused: domain.Invalid, Field: "since"},
		{Name: "is not changed by staff", When: partitioning.Change{staff, 4, 8, monday}, Refused: domain.Forbidden},
	})
}
