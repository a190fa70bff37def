// Package seal makes a log tamper-evident. Each entry is a leaf of a Merkle tree
// (RFC 6962) whose leaf index is the entry's place in the log; the tree's head
// is signed again and again. Whoever keeps one signed head, or has a witness
// keep it, can tell whether anything before it was changed, removed or put in.
//
// The formats are those of C2SP: tlog-checkpoint, tlog-tiles, tlog-cosignature,
// tlog-witness and tlog-proof. This package knows nothing of how a log is stored.
package seal

import (
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// An Entry is one entry of a log, as it is stored.
type Entry struct {
	Log     string    `json:"log"`
	Seq     uint64    `json:"seq"` // from 1: its leaf has the index Seq-1
	Time    time.Time `json:"time"`
	Subject string    `json:"subject"`
	Header  []byte    `json:"header"` // in a canonical form
	Body    []byte    `json:"body"`   // personal data in it is ciphertext
}

const leafVersion = "postbook.leaf/v1"

// Leaf is the text that the tree commits to. It holds no personal data, and
// stays provable when the key of what it commits to is destroyed: the hashes are
// over ciphertext.
//
//	postbook.leaf/v1
//	<log> <sequence> <subject>
//	<time, RFC 3339 with nanoseconds, UTC>
//	h:<base64 of the header's SHA-256>
//	p:<base64 of the body's SHA-256>
func (e Entry) Leaf() []byte {
	b := make([]byte, 0, 256)
	b = append(b, leafVersion+"\n"...)
	b = append(b, e.Log...)
	b = append(b, ' ')
	b = strconv.AppendUint(b, e.Seq, 10)
	b = append(b, ' ')
	b = append(b, e.Subject...)
	b = append(b, '\n')
	b = e.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	header, body := sha256.Sum256(e.Header), sha256.Sum256(e.Body)
	b = append(b, "\nh:"...)
	b = base64.StdEncoding.AppendEncode(b, header[:])
	b = append(b, "\np:"...)
	b = base64.StdEncoding.AppendEncode(b, body[:])
	return append(b, '\n')
}

// Hash is one of a tree.
type Hash = tlog.Hash

// Hash is the hash of the entry's leaf.
func (e Entry) Hash() Hash { return tlog.RecordHash(e.Leaf()) }

// gap is the leaf of an entry that was gone before it could be sealed.
func gap(log string, seq uint64) tlog.Hash {
	return tlog.RecordHash([]byte(leafVersion + "\n" + log + " " + strconv.FormatUint(seq, 10) + " gap\n"))
}
