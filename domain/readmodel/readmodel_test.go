package readmodel_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/domaintest"
	"postbook.dev/postbook/domain/readmodel"
)

func TestReadModel(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	by := func(kind domain.ActorKind, via domain.Via) domain.Authority {
		return domain.Authority{Actor: domain.Actor{Kind: kind, ID: "x"}, Role: domain.Trust, Via: via, At: now, Command: uuid.New()}
	}
	system, operator, staff := by(domain.System, domain.ViaWorker), by(domain.Operator, domain.ViaCLI), by(domain.Staff, domain.ViaConsole)
	edited := readmodel.Drifted{Table: "accounts", Key: "acme", Kind: "edited", Fields: []string{"blocked"}}
	other := readmodel.Drifted{Table: "accounts", Key: "acme", Kind: "edited", Fields: []string{"blocked", "name"}}
	var many []readmodel.Drifted
	var first []readmodel.Event
	for n := range readmodel.MaxRows + 1 {
		many = append(many, readmodel.Drifted{Table: "emails", Key: fmt.Sprint(n), Kind: "deleted"})
		first = append(first, many[n])
	}
	domaintest.Tell(t, readmodel.Decider, readmodel.Stream("accounts"), []domaintest.Story[readmodel.Command, readmodel.Event]{
		{Name: "drifts", When: readmodel.Report{system, []readmodel.Drifted{edited}, false}, Then: []readmodel.Event{edited}},
		{Name: "is known to have drifted", Given: []readmodel.Event{edited}, When: readmodel.Report{operator, []readmodel.Drifted{edited}, false}},
		{Name: "drifts further", Given: []readmodel.Event{edited}, When: readmodel.Report{system, []readmodel.Drifted{edited, other}, false}, Then: []readmodel.Event{other}},
		{Name: "drifts again after a repair", Given: []readmodel.Event{edited, readmodel.Repaired{Rows: 1}}, When: readmodel.Report{system, []readmodel.Drifted{edited}, false}, Then: []readmodel.Event{edited}},
		{Name: "drifts in very many rows", When: readmodel.Report{system, many, false}, Then: first[:readmodel.MaxRows]},
		{Name: "is put back by hand", Given: []readmodel.Event{edited, other}, When: readmodel.Report{system, []readmodel.Drifted{other}, false}, Then: []readmodel.Event{readmodel.Cleared(edited)}},
		{Name: "is put back and drifts elsewhere", Given: []readmodel.Event{edited}, When: readmodel.Report{system, []readmodel.Drifted{other}, false}, Then: []readmodel.Event{other, readmodel.Cleared(edited)}},
		{Name: "drifts in the same way again", Given: []readmodel.Event{edited, readmodel.Cleared(edited)}, When: readmodel.Report{system, []readmodel.Drifted{edited}, false}, Then: []readmodel.Event{edited}},
		{Name: "drifts in more rows than are listed", Given: []readmodel.Event{edited}, When: readmodel.Report{system, []readmodel.Drifted{other}, true}, Then: []readmodel.Event{other}},
		{Name: "is as it was", When: readmodel.Report{system, nil, false}},
		{Name: "drifts nowhere", When: readmodel.Report{system, []readmodel.Drifted{{Kind: "edited"}}, false}, Refused: domain.Missing, Field: "rows"},
		{Name: "hears nothing from staff", When: readmodel.Report{staff, []readmodel.Drifted{edited}, false}, Refused: domain.Forbidden},
		{Name: "is repaired", Given: []readmodel.Event{edited}, When: readmodel.Repair{operator, 1}, Then: []readmodel.Event{readmodel.Repaired{Rows: 1}}},
		{Name: "has nothing to repair", When: readmodel.Repair{operator, 1}},
		{Name: "is repaired by nobody", When: readmodel.Repair{operator, 0}, Refused: domain.Invalid, Field: "rows"},
		{Name: "is not repaired by staff", When: readmodel.Repair{staff, 1}, Refused: domain.Forbidden},
	})
}
