// Package catalogue joins what every aggregate can record into the one registry
// that the log is written and read with.
package catalogue

import (
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/backup"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/domain/kek"
	"postbook.dev/postbook/domain/member"
	"postbook.dev/postbook/domain/name"
	"postbook.dev/postbook/domain/partitioning"
	"postbook.dev/postbook/domain/readmodel"
	"postbook.dev/postbook/domain/retention"
	"postbook.dev/postbook/domain/seal"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/domain/staff"
)

// Registry knows every fact.
func Registry() *domain.Registry {
	return domain.NewRegistry(
		account.Catalogue,
		apikey.Catalogue,
		name.Catalogue,
		sender.Catalogue,
		email.Catalogue,
		staff.Catalogue,
		member.Catalogue,
		access.Catalogue,
		seal.Catalogue,
		readmodel.Catalogue,
		retention.Catalogue,
		kek.Catalogue,
		partitioning.Catalogue,
		backup.Catalogue,
	)
}
