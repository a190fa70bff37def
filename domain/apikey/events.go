package apikey

import "postbook.dev/postbook/domain"

// Event is a fact about an API key.
//
//sumtype:decl
type Event interface{ isEvent() }

// Issued makes a key. The token itself was shown once and is nowhere kept.
type Issued struct {
	Name       string      `json:"name"`
	Permission domain.Role `json:"permission"`
	Sender     string      `json:"sender,omitempty"` // id of the only sender domain that it may send from
	Hash       string      `json:"hash"`             // HMAC-SHA-256 of the token with the platform's pepper, hex
	Hint       string      `json:"hint"`             // the token's first characters, to tell keys apart
}

// Revoked ends a key.
type Revoked struct{}

func (Issued) isEvent()  {}
func (Revoked) isEvent() {}

// Catalogue lists the facts that an API key can record.
var Catalogue = domain.Catalogue{
	domain.FactOf[Issued]("apikey.issued", 1, "An API key was made."),
	domain.FactOf[Revoked]("apikey.revoked", 1, "An API key was ended."),
}
