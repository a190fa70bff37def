package seal

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/transparency-dev/formats/proof"
	"golang.org/x/mod/sumdb/tlog"
)

// Prove makes the proof that a log's checkpoint covers an entry, in the form of
// C2SP tlog-proof with the entry itself beside it. Whoever has the log's public
// key can check it, without this program or its log.
func Prove(dir string, c Checkpoint, e Entry) ([]byte, error) {
	if e.Seq == 0 || e.Seq > uint64(c.Size) {
		return nil, fmt.Errorf("seal: the entry %d is not sealed yet: the newest checkpoint covers %d", e.Seq, c.Size)
	}
	tree, err := ReadTree(dir)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	path, err := tlog.ProveRecord(c.Size, int64(e.Seq-1), tree)
	if err != nil {
		return nil, fmt.Errorf("seal: prove entry %d: %w", e.Seq, err)
	}
	p := proof.TLogProof{Index: e.Seq - 1, Checkpoint: c.Note}
	for _, h := range path {
		p.Hashes = append(p.Hashes, h)
	}
	if p.ExtraData, err = json.Marshal(e); err != nil {
		return nil, fmt.Errorf("seal: write entry %d: %w", e.Seq, err)
	}
	return p.Marshal(), nil
}

// CheckProof checks that the entry in a proof is in the log that it says it is
// in, and returns it with the checkpoint that covers it.
func CheckProof(text []byte, instance string, trusted Verifiers) (Entry, Checkpoint, error) {
	var p proof.TLogProof
	var e Entry
	if err := p.Unmarshal(text); err != nil {
		return e, Checkpoint{}, fmt.Errorf("seal: this is no proof: %w", err)
	}
	if err := json.Unmarshal(p.ExtraData, &e); err != nil {
		return e, Checkpoint{}, fmt.Errorf("seal: the proof has no entry with it: %w", err)
	}
	c, err := trusted.Open(Origin(instance, e.Log), p.Checkpoint)
	if err != nil {
		return e, c, err
	}
	path := make(tlog.RecordProof, len(p.Hashes))
	for i, h := range p.Hashes {
		path[i] = h
	}
	if e.Seq != p.Index+1 || e.Seq > uint64(c.Size) || tlog.CheckRecord(path, c.Size, c.Root, int64(p.Index), e.Hash()) != nil {
		return e, c, errors.New("seal: the proof does not lead from the entry to the head that was signed")
	}
	return e, c, nil
}
