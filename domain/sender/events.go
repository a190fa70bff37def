package sender

import (
	"time"

	"postbook.dev/postbook/domain"
)

// Event is a fact about a sender domain.
//
//sumtype:decl
type Event interface{ isEvent() }

// Added registers a domain that a customer wants to send from, with the DKIM
// key made for it.
type Added struct {
	Name       string        `json:"name"` // lower case, A-labels
	Region     string        `json:"region"`
	ReturnPath string        `json:"return_path"` // label of the envelope sender's subdomain, "send"
	Selector   string        `json:"selector"`    // RFC 6376, 3.1
	PublicKey  string        `json:"public_key"`  // RSA, SubjectPublicKeyInfo, base64
	PrivateKey domain.Sealed `json:"private_key"` // PKCS #8
	Settings
}

// Settings are what a customer may change about a domain.
type Settings struct {
	OpenTracking  bool   `json:"open_tracking,omitempty"`
	ClickTracking bool   `json:"click_tracking,omitempty"`
	TLS           string `json:"tls"` // TLSOpportunistic or TLSEnforced
}

// The values of Settings.TLS.
const (
	TLSOpportunistic = "opportunistic"
	TLSEnforced      = "enforced"
)

// Changed replaces the settings.
type Changed struct{ Settings }

// VerificationRequested starts a round of DNS checks.
type VerificationRequested struct {
	At time.Time `json:"at"`
}

// Checked is what DNS answered. It is recorded when an answer differs from the
// one before.
type Checked struct {
	Results []Result `json:"results"`
}

// Result is what one record looked like.
type Result struct {
	Record string   `json:"record"` // DKIM, SPF, MX or DMARC
	Name   string   `json:"name"`   // the whole name that was asked for
	Status Status   `json:"status"`
	Found  []string `json:"found,omitempty"` // what DNS holds there, at most MaxFound answers
	Error  string   `json:"error,omitempty"` // why it could not be asked
}

// MaxFound bounds the answers that are kept for one record.
const MaxFound = 5

// Verified lets the account send from the domain.
type Verified struct{}

// Vouched lets the account send from a domain without proof in DNS. Only the
// operator can vouch, for the sandbox's own domain.
type Vouched struct{}

// Lapsed says that a verified domain's records were not there when they were
// looked for again. Sending goes on until it has Failed.
type Lapsed struct {
	Since time.Time `json:"since"`
}

// Failed ends a round of checks, or a verification that lapsed, without success.
type Failed struct{}

// Removed ends the domain.
type Removed struct{}

func (Added) isEvent()                 {}
func (Changed) isEvent()               {}
func (VerificationRequested) isEvent() {}
func (Checked) isEvent()               {}
func (Verified) isEvent()              {}
func (Vouched) isEvent()               {}
func (Lapsed) isEvent()                {}
func (Failed) isEvent()                {}
func (Removed) isEvent()               {}

// Catalogue lists the facts that a sender domain can record.
var Catalogue = domain.Catalogue{
	domain.FactOf[Added]("sender.added", 1, "A domain to send from was added, and its signing key made."),
	domain.FactOf[Changed]("sender.changed", 1, "A domain's settings were changed."),
	domain.FactOf[VerificationRequested]("sender.verification_requested", 1, "Somebody asked that a domain's DNS records be checked."),
	domain.FactOf[Checked]("sender.checked", 1, "DNS answered differently than before about a domain's records."),
	domain.FactOf[Verified]("sender.verified", 1, "All records that a domain needs were found in DNS."),
	domain.FactOf[Vouched]("sender.vouched", 1, "The operator let a domain send without proof in DNS."),
	domain.FactOf[Lapsed]("sender.lapsed", 1, "A verified domain's records could no longer be found."),
	domain.FactOf[Failed]("sender.failed", 1, "A domain's records were not found in time."),
	domain.FactOf[Removed]("sender.removed", 1, "A domain was removed."),
}
