package keyring

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// A keyset derives all keys of one account. The key of a subject is a leaf of a
// binary tree whose root is one seed, after Goldreich, Goldwasser and Micali
// ("How to construct random functions", 1986): each node's two children are
// hashes of it, and the path to a leaf is a hash of the subject's name. Nothing
// has to be stored for a new subject.
//
// To forget a subject, the seed above its leaf is replaced by the seeds beside
// the path to it. Every other leaf can still be derived, and this one cannot:
// a puncturable pseudorandom function (Boneh and Waters, Kiayias et al., Boyle
// et al., 2013), as Aviram, Gellert and Jager use it for forward secrecy of
// session tickets (2019).
type keyset struct {
	index []byte // key of the blind index
	mac   []byte // key of MACs
	trees map[Class][]node
}

// node is a seed, with its place in the tree: the first depth bits of prefix.
type node struct {
	prefix uint64
	depth  uint8
	seed   [seedSize]byte
}

const (
	seedSize = 32
	leafBits = 64 // two subjects of an account share a leaf with probability 2^-64 n²
	version  = 1
)

func newKeyset() *keyset {
	k := &keyset{index: make([]byte, seedSize), mac: make([]byte, seedSize), trees: map[Class][]node{}}
	_, _ = rand.Read(k.index) // never fails
	_, _ = rand.Read(k.mac)
	for _, c := range classes {
		var root node
		_, _ = rand.Read(root.seed[:])
		k.trees[c] = []node{root}
	}
	return k
}

// leaf is the place of a subject in its tree.
func leaf(subject string) uint64 {
	sum := sha256.Sum256([]byte("postbook/leaf/v1\x00" + subject))
	return binary.BigEndian.Uint64(sum[:])
}

// child is the seed of one of a node's children.
func child(seed [seedSize]byte, bit byte) [seedSize]byte {
	var in [seedSize + 1]byte
	copy(in[:], seed[:])
	in[seedSize] = bit
	return sha256.Sum256(in[:])
}

func bitAt(path uint64, depth uint8) byte { return byte(path >> (leafBits - 1 - depth) & 1) }

// covers reports whether the leaf at path lies below the node.
func (n node) covers(path uint64) bool {
	return n.depth == 0 || n.prefix>>(leafBits-n.depth) == path>>(leafBits-n.depth)
}

// key derives the key of a subject, or returns ErrErased.
func (k *keyset) key(class Class, subject string) ([]byte, error) {
	path := leaf(subject)
	for _, n := range k.trees[class] {
		if !n.covers(path) {
			continue
		}
		seed := n.seed
		for depth := n.depth; depth < leafBits; depth++ {
			seed = child(seed, bitAt(path, depth))
		}
		return seed[:], nil
	}
	if _, ok := k.trees[class]; !ok {
		return nil, fmt.Errorf("keyring: there is no class %q", class)
	}
	return nil, ErrErased
}

// forget makes the key of a subject impossible to derive. It reports whether
// there was one to forget.
func (k *keyset) forget(class Class, subject string) bool {
	path := leaf(subject)
	nodes := k.trees[class]
	at := slices.IndexFunc(nodes, func(n node) bool { return n.covers(path) })
	if at < 0 {
		return false
	}
	n := nodes[at]
	rest := slices.Delete(slices.Clone(nodes), at, at+1)
	seed := n.seed
	for depth := n.depth; depth < leafBits; depth++ {
		bit := bitAt(path, depth)
		mask := uint64(1) << (leafBits - 1 - depth)
		beside := (path &^ (mask - 1) &^ mask) | (uint64(1-bit) * mask)
		rest = append(rest, node{prefix: beside, depth: depth + 1, seed: child(seed, 1-bit)})
		seed = child(seed, bit)
	}
	k.trees[class] = rest
	return true
}

// marshal writes a keyset: a version, two keys, and the trees.
func (k *keyset) marshal() []byte {
	b := []byte{version}
	b = append(append(b, k.index...), k.mac...)
	for _, c := range classes {
		nodes := k.trees[c]
		b = binary.BigEndian.AppendUint32(b, uint32(len(nodes)))
		for _, n := range nodes {
			b = binary.BigEndian.AppendUint64(b, n.prefix)
			b = append(append(b, n.depth), n.seed[:]...)
		}
	}
	return b
}

var errKeyset = errors.New("keyring: the keyset is damaged")

const nodeSize = 8 + 1 + seedSize

func unmarshal(b []byte) (*keyset, error) {
	if len(b) < 1+2*seedSize || b[0] != version {
		return nil, errKeyset
	}
	k := &keyset{index: b[1 : 1+seedSize], mac: b[1+seedSize : 1+2*seedSize], trees: map[Class][]node{}}
	b = b[1+2*seedSize:]
	for _, c := range classes {
		if len(b) < 4 {
			return nil, errKeyset
		}
		count := int(binary.BigEndian.Uint32(b))
		b = b[4:]
		if count > len(b)/nodeSize {
			return nil, errKeyset
		}
		nodes := make([]node, count)
		for i := range nodes {
			n := &nodes[i]
			n.prefix, n.depth = binary.BigEndian.Uint64(b), b[8]
			copy(n.seed[:], b[9:nodeSize])
			if n.depth > leafBits {
				return nil, errKeyset
			}
			b = b[nodeSize:]
		}
		k.trees[c] = nodes
	}
	if len(b) != 0 {
		return nil, errKeyset
	}
	return k, nil
}

func mac(key []byte, parts ...string) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}
