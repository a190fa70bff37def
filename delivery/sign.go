package delivery

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/emersion/go-msgauth/dkim"
)

// A Signer signs messages for one domain (RFC 6376). It may be used from many
// goroutines.
type Signer struct{ options dkim.SignOptions }

// signed headers. Those listed twice are signed once more than they occur, so
// that none can be added on the way.
var signed = []string{
	"From", "From", "To", "To", "Cc", "Cc", "Subject", "Subject", "Date", "Date", "Reply-To", "Reply-To",
	"Message-ID", "Message-ID", "MIME-Version", "MIME-Version", "Content-Type", "Content-Type",
	"Content-Transfer-Encoding", "Content-Transfer-Encoding", "In-Reply-To", "References",
	"List-Unsubscribe", "List-Unsubscribe", "List-Unsubscribe-Post", "List-Unsubscribe-Post", "Feedback-ID",
}

// NewSigner signs for a domain with the key that is published under a selector.
func NewSigner(domain, selector string, key crypto.Signer) *Signer {
	return &Signer{dkim.SignOptions{
		Domain:                 domain,
		Selector:               selector,
		Signer:                 key,
		Hash:                   crypto.SHA256,
		HeaderCanonicalization: dkim.CanonicalizationRelaxed,
		BodyCanonicalization:   dkim.CanonicalizationRelaxed,
		HeaderKeys:             signed,
	}}
}

// ParseSigner is NewSigner with a key in PKCS #8 form.
func ParseSigner(domain, selector string, pkcs8 []byte) (*Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, fmt.Errorf("read the signing key of %s: %w", domain, err)
	}
	private, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the signing key of %s is a %T and not an RSA key", domain, key)
	}
	return NewSigner(domain, selector, private), nil
}

// Sign returns the message with its signature in front.
func (s *Signer) Sign(message []byte) ([]byte, error) {
	signer, err := dkim.NewSigner(&s.options)
	if err != nil {
		return nil, fmt.Errorf("sign a message: %w", err)
	}
	if _, err := signer.Write(message); err != nil {
		return nil, errors.Join(fmt.Errorf("sign a message: %w", err), signer.Close())
	}
	if err := signer.Close(); err != nil {
		return nil, fmt.Errorf("sign a message: %w", err)
	}
	return append([]byte(signer.Signature()), message...), nil
}

// KeyRecord reads the public key out of a DKIM record (RFC 6376, 3.6.1), in
// base64 without blanks; it is empty if the key was revoked.
func KeyRecord(txt string) (key string, ok bool) {
	for _, tag := range strings.Split(txt, ";") {
		name, value, found := strings.Cut(tag, "=")
		if !found {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(name) {
		case "v":
			if value != "DKIM1" {
				return "", false
			}
		case "k":
			if value != "rsa" {
				return "", false
			}
		case "p":
			key, ok = strings.Join(strings.Fields(value), ""), true
		}
	}
	if _, err := base64.StdEncoding.DecodeString(key); err != nil {
		return "", false
	}
	return key, ok
}
