package seal

import (
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// RangeProof shows that leaves which follow each other lie at their place in a
// tree: it is the complete subtrees of what is before and behind them. With it a
// part of a log can be held against a signed head without the rest.
type RangeProof struct {
	Left  []tlog.Hash `json:"left,omitempty"`
	Right []tlog.Hash `json:"right,omitempty"`
}

// subtree is a complete one of a tree: 2^level leaves.
type subtree struct{ level, n int }

// before are the subtrees of the first leaves, largest first.
func before(first int64) []subtree {
	var all []subtree
	for at := int64(0); at < first; {
		level := bits.Len64(uint64(first-at)) - 1
		all = append(all, subtree{level, int(at >> level)})
		at += 1 << level
	}
	return all
}

// behind are the subtrees of the leaves from end to size, first to last.
func behind(end, size int64) []subtree {
	var all []subtree
	for at := end; at < size; {
		level := bits.Len64(uint64(size-at)) - 1
		if at > 0 {
			level = min(level, bits.TrailingZeros64(uint64(at)))
		}
		all = append(all, subtree{level, int(at >> level)})
		at += 1 << level
	}
	return all
}

// ProveRange proves the leaves from the one with index first to the one before
// end, in the tree of size leaves.
func (t *Tree) ProveRange(first, end, size int64) (RangeProof, error) {
	if first < 0 || first >= end || end > size || size > t.size {
		return RangeProof{}, fmt.Errorf("seal: there are no leaves %d to %d in a tree of %d", first, end-1, size)
	}
	read := func(all []subtree) ([]tlog.Hash, error) {
		indexes := make([]int64, len(all))
		for i, s := range all {
			indexes[i] = tlog.StoredHashIndex(s.level, int64(s.n))
		}
		return t.ReadHashes(indexes)
	}
	left, err := read(before(first))
	if err != nil {
		return RangeProof{}, fmt.Errorf("seal: prove a range: %w", err)
	}
	right, err := read(behind(end, size))
	if err != nil {
		return RangeProof{}, fmt.Errorf("seal: prove a range: %w", err)
	}
	return RangeProof{left, right}, nil
}

// Check reports an error if the leaves, from index first on, are not those of the
// head.
func (p RangeProof) Check(head Checkpoint, first int64, leaves []tlog.Hash) error {
	end := first + int64(len(leaves))
	if first < 0 || len(leaves) == 0 || end > head.Size {
		return fmt.Errorf("seal: the head does not cover the leaves %d to %d", first, end-1)
	}
	left, right := before(first), behind(end, head.Size)
	if len(left) != len(p.Left) || len(right) != len(p.Right) {
		return errors.New("seal: the proof is not one of these leaves")
	}
	var root rangeRoot
	for i, s := range left {
		root.addSubtree(s.level, p.Left[i])
	}
	for _, h := range leaves {
		root.addSubtree(0, h)
	}
	for i, s := range right {
		root.addSubtree(s.level, p.Right[i])
	}
	if root.root() != head.Root {
		return errors.New("seal: the leaves do not lead to the head that was signed")
	}
	return nil
}

// Leaves are the hashes of n leaves, from the one with index first on.
func (t *Tree) Leaves(first, n int64) ([]tlog.Hash, error) {
	if first < 0 || n < 0 || first+n > t.size {
		return nil, fmt.Errorf("seal: the tree has %d leaves, not %d", t.size, first+n)
	}
	hashes, err := readHashes(t.levels[0].file, first, n)
	if err != nil {
		return nil, fmt.Errorf("seal: read leaves: %w", err)
	}
	return hashes, nil
}
