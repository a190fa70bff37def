package seal_test

import (
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/domaintest"
	"postbook.dev/postbook/domain/seal"
)

func TestSeal(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	operator := domain.Authority{Actor: domain.Actor{Kind: domain.Operator, ID: "root"}, Via: domain.ViaCLI, At: now, Command: uuid.New()}
	system := domain.Authority{Actor: domain.Actor{Kind: domain.System, ID: "notary"}, Via: domain.ViaWorker, Auth: domain.Internal, At: now, Command: uuid.New()}
	staff := domain.Authority{Actor: domain.Actor{Kind: domain.Staff, ID: "ada"}, Role: domain.Trust, Via: domain.ViaConsole, At: now, Command: uuid.New()}
	gone := seal.Broken{Log: "MAIL_02", Seq: 17, Kind: "missing", Detail: "it is gone"}
	later := seal.Broken{Log: "MAIL_02", Seq: 18, Kind: "missing", Detail: "it is gone"}
	domaintest.Tell(t, seal.Decider, seal.Stream(), []domaintest.Story[seal.Command, seal.Event]{
		{Name: "gets a key", When: seal.Rotate{operator, "k1"}, Then: []seal.Event{seal.KeyAdded{"k1"}}},
		{Name: "gets a second key", Given: []seal.Event{seal.KeyAdded{"k1"}}, When: seal.Rotate{operator, "k2"}, Then: []seal.Event{seal.KeyAdded{"k2"}}},
		{Name: "has the key already", Given: []seal.Event{seal.KeyAdded{"k1"}}, When: seal.Rotate{operator, "k1"}},
		{Name: "needs a key", When: seal.Rotate{operator, ""}, Refused: domain.Missing, Field: "public"},
		{Name: "takes no key from staff", When: seal.Rotate{staff, "k1"}, Refused: domain.Forbidden},
		{Name: "is broken", When: seal.Report{system, gone}, Then: []seal.Event{gone}},
		{Name: "is broken elsewhere too", Given: []seal.Event{gone}, When: seal.Report{system, later}, Then: []seal.Event{later}},
		{Name: "is known to be broken", Given: []seal.Event{gone, later}, When: seal.Report{system, gone}},
		{Name: "is broken somewhere", When: seal.Report{system, seal.Broken{Kind: "missing"}}, Refused: domain.Missing, Field: "log"},
		{Name: "hears nothing from staff", When: seal.Report{staff, gone}, Refused: domain.Forbidden},
	})
}
