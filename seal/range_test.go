package seal

import (
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

// A proof of a range holds for its leaves at their place, and for nothing else.
func TestRangeProof(t *testing.T) {
	t.Parallel()
	const size = 700
	tree, err := OpenTree(t.TempDir(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	for n := range size {
		if err := tree.Append(tlog.RecordHash([]byte{byte(n), byte(n >> 8)})); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Flush(); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.Int64Range(1, size).Draw(t, "size")
		first := rapid.Int64Range(0, at-1).Draw(t, "first")
		end := rapid.Int64Range(first+1, at).Draw(t, "end")
		root, err := tree.Root(at)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := tree.ProveRange(first, end, at)
		if err != nil {
			t.Fatal(err)
		}
		leaves, err := tree.Leaves(first, end-first)
		if err != nil {
			t.Fatal(err)
		}
		head := Checkpoint{Size: at, Root: root}
		if err := proof.Check(head, first, leaves); err != nil {
			t.Fatalf("%d to %d of %d: %v", first, end, at, err)
		}
		if proof.Check(head, first+1, leaves) == nil {
			t.Fatal("it holds for another place")
		}
		if end-first > 1 && proof.Check(head, first, leaves[1:]) == nil {
			t.Fatal("it holds for fewer leaves")
		}
		leaves[rapid.IntRange(0, len(leaves)-1).Draw(t, "changed")][7] ^= 1
		if proof.Check(head, first, leaves) == nil {
			t.Fatal("it holds for other leaves")
		}
	})
	for _, r := range [][3]int64{{-1, 4, 10}, {4, 4, 10}, {4, 11, 10}, {4, 5, size + 1}} {
		if _, err := tree.ProveRange(r[0], r[1], r[2]); err == nil {
			t.Errorf("%v is proven", r)
		}
	}
}
