package backup_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/backup"
	"postbook.dev/postbook/domain/domaintest"
)

func TestBackup(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	by := func(kind domain.ActorKind, via domain.Via) domain.Authority {
		return domain.Authority{Actor: domain.Actor{Kind: kind, ID: "x"}, Role: domain.Trust, Via: via, At: now, Command: uuid.New()}
	}
	operator, staff, system := by(domain.Operator, domain.ViaCLI), by(domain.Staff, domain.ViaConsole), by(domain.System, domain.ViaWorker)
	made := backup.Made{Name: "postbook-20261124T120000Z", Manifest: "ab", Heads: []backup.Head{{"LEDGER", 17, "cm9vdA=="}}, Entries: 20, Bytes: 4000}
	later := made
	later.Manifest = "cd"
	restored := backup.Restored{Name: made.Name, Manifest: "ab", Made: now}
	domaintest.Tell(t, backup.Decider, backup.Stream(), []domaintest.Story[backup.Command, backup.Event]{
		{Name: "is made", When: backup.Record{operator, made}, Then: []backup.Event{made}},
		{Name: "is on record", Given: []backup.Event{made}, When: backup.Record{operator, made}},
		{Name: "is made again", Given: []backup.Event{made}, When: backup.Record{operator, later}, Then: []backup.Event{later}},
		{Name: "has a list of its files", When: backup.Record{operator, backup.Made{Name: "x"}}, Refused: domain.Missing, Field: "name"},
		{Name: "is not made by staff", When: backup.Record{staff, made}, Refused: domain.Forbidden},
		{Name: "is not made by the system", When: backup.Record{system, made}, Refused: domain.Forbidden},
		{Name: "is put back", Given: []backup.Event{made}, When: backup.Restore{operator, restored}, Then: []backup.Event{restored}},
		{Name: "is put back from somewhere", When: backup.Restore{operator, backup.Restored{Manifest: "ab"}}, Refused: domain.Missing, Field: "name"},
		{Name: "is not put back by staff", When: backup.Restore{staff, restored}, Refused: domain.Forbidden},
	})
}
