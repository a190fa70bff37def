package seal

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	tdlog "github.com/transparency-dev/formats/log"
	tdnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A Checkpoint is a signed head of a log's tree (C2SP tlog-checkpoint).
type Checkpoint struct {
	Origin string // names the log: "postbook/6f1c…/LEDGER"
	Size   int64  // leaves, which is the sequence of the last entry that it covers
	Root   tlog.Hash
	At     time.Time // when the log signed it, to the second

	Witnesses []string // names of those known, who have cosigned it
	Note      []byte   // text and signatures
}

// Origin names a log of an instance.
func Origin(instance, log string) string { return instance + "/" + log }

// sign makes a checkpoint.
func sign(origin string, size int64, root tlog.Hash, keys []Key) ([]byte, error) {
	text := tdlog.Checkpoint{Origin: origin, Size: uint64(size), Hash: root[:]}.Marshal()
	var signers []note.Signer
	for _, k := range keys {
		pair, err := k.signers()
		if err != nil {
			return nil, fmt.Errorf("seal: sign a checkpoint: %w", err)
		}
		signers = append(signers, pair...)
	}
	signed, err := note.Sign(&note.Note{Text: string(text)}, signers...)
	if err != nil {
		return nil, fmt.Errorf("seal: sign a checkpoint: %w", err)
	}
	return signed, nil
}

var errUnsigned = errors.New("seal: the checkpoint is signed by no key that is trusted")

// Open checks a checkpoint of a log and reads it. One that no key of the log has
// signed is refused, whoever else did.
func (v Verifiers) Open(origin string, signed []byte) (Checkpoint, error) {
	n, err := note.Open(signed, note.VerifierList(v.Log...))
	_, unknown := errors.AsType[*note.UnverifiedNoteError](err)
	_, invalid := errors.AsType[*note.InvalidSignatureError](err)
	if unknown || invalid {
		return Checkpoint{}, errUnsigned
	}
	if err != nil {
		return Checkpoint{}, fmt.Errorf("seal: read a checkpoint: %w", err)
	}
	var head tdlog.Checkpoint
	rest, err := head.Unmarshal([]byte(n.Text))
	switch {
	case err != nil:
		return Checkpoint{}, fmt.Errorf("seal: read a checkpoint: %w", err)
	case len(rest) > 0:
		return Checkpoint{}, errors.New("seal: a checkpoint has lines that are not known")
	case head.Origin != origin:
		return Checkpoint{}, fmt.Errorf("seal: the checkpoint is one of %q, not of %q", head.Origin, origin)
	case len(head.Hash) != tlog.HashSize || int64(head.Size) < 0:
		return Checkpoint{}, errors.New("seal: a checkpoint has a head that is none")
	}
	c := Checkpoint{Origin: head.Origin, Size: int64(head.Size), Root: tlog.Hash(head.Hash), Note: signed}
	for _, s := range n.Sigs {
		if at, err := tdnote.CoSigV1Timestamp(s); err == nil {
			c.At = at.UTC()
		}
	}
	c.Witnesses = v.witnesses(signed)
	return c, nil
}

// witnesses lists those whose cosignature a checkpoint has.
func (v Verifiers) witnesses(signed []byte) []string {
	n, err := note.Open(signed, note.VerifierList(v.Witnesses...))
	if err != nil {
		return nil // none that is known
	}
	var names []string
	for _, s := range n.Sigs {
		names = append(names, s.Name)
	}
	return names
}

// addSignatures puts lines of signatures at the end of a checkpoint.
func addSignatures(signed, lines []byte) []byte {
	return append(bytes.Clone(signed), lines...)
}
