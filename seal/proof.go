package seal

import (
	"errors"
	"fmt"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/tlog"
)

// Prove makes the proof that a log's checkpoint covers the entry at a sequence,
// in the form of C2SP tlog-proof. Whoever has the entry, or only its leaf, can
// check it with the log's public key.
func Prove(dir string, c Checkpoint, seq uint64) ([]byte, error) {
	if seq == 0 || seq > uint64(c.Size) {
		return nil, fmt.Errorf("seal: the entry %d is not sealed yet: the newest checkpoint covers %d", seq, c.Size)
	}
	tree, err := ReadTree(dir)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	path, err := tlog.ProveRecord(c.Size, int64(seq-1), tree)
	if err != nil {
		return nil, fmt.Errorf("seal: prove entry %d: %w", seq, err)
	}
	p := proof.TLogProof{Index: seq - 1, Checkpoint: c.Note}
	for _, h := range path {
		p.Hashes = append(p.Hashes, h)
	}
	return p.Marshal(), nil
}

// CheckProof checks that a leaf is in a log of the origin, and says which
// checkpoint says so.
func CheckProof(text, leaf []byte, origin string, trusted Verifiers) (Checkpoint, uint64, error) {
	var p proof.TLogProof
	if err := p.Unmarshal(text); err != nil {
		return Checkpoint{}, 0, fmt.Errorf("seal: this is no proof: %w", err)
	}
	c, err := trusted.Open(origin, p.Checkpoint)
	if err != nil {
		return Checkpoint{}, 0, err
	}
	path := make(tlog.RecordProof, len(p.Hashes))
	for i, h := range p.Hashes {
		path[i] = h
	}
	if p.Index >= uint64(c.Size) || tlog.CheckRecord(path, c.Size, c.Root, int64(p.Index), tlog.RecordHash(leaf)) != nil {
		return c, p.Index + 1, errors.New("seal: the proof does not lead from the entry to the head that was signed")
	}
	return c, p.Index + 1, nil
}
