package delivery

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"strings"
)

// VERP makes return paths that say which recipient of which email a bounce is
// about (variable envelope return path), signed so that nobody can make bounces
// up. A recipient's return path is the same at each try.
type VERP struct{ Key []byte }

const verpPrefix = "bounces+"

// verpMAC is how many bytes of the HMAC-SHA-256 are kept: with more, the local
// part would be longer than 64.
const verpMAC = 10

// ErrForged says that a return path was not made with the key.
var ErrForged = errors.New("delivery: the return path was not made here")

// Servers on the way may change the case of an address, so the token is in one
// case only.
var verpEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Address is the return path of an email's recipient, by its place among the
// recipients, in a domain.
func (v VERP) Address(email [16]byte, recipient int, domain string) string {
	token := binary.BigEndian.AppendUint16(email[:], uint16(recipient))
	return verpPrefix + verpEncoding.EncodeToString(append(token, v.mac(token)...)) + "@" + domain
}

func (v VERP) mac(token []byte) []byte {
	h := hmac.New(sha256.New, v.Key)
	h.Write(token)
	return h.Sum(nil)[:verpMAC]
}

// Parse reads a return path, or returns ErrForged.
func (v VERP) Parse(addr string) (email [16]byte, recipient int, err error) {
	local, _, _ := strings.Cut(strings.ToLower(addr), "@")
	text, ok := strings.CutPrefix(local, verpPrefix)
	if !ok {
		return email, 0, ErrForged
	}
	b, err := verpEncoding.DecodeString(text)
	if err != nil || len(b) != 18+verpMAC || !hmac.Equal(b[18:], v.mac(b[:18])) {
		return email, 0, ErrForged
	}
	copy(email[:], b)
	return email, int(binary.BigEndian.Uint16(b[16:18])), nil
}
