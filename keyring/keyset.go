package keyring

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
)

// A keyset derives all keys of one account. The key of a subject is a leaf of a
// tree whose root is one seed, after Goldreich, Goldwasser and Micali ("How to
// construct random functions", 1986): each node's children are hashes of it, and
// the path to a leaf is a hash of the subject's name. Nothing has to be stored for
// a new subject.
//
// To forget a subject, the seed above its leaf is replaced by the seeds beside
// the path to it. Every other leaf can still be derived, and this one cannot:
// a puncturable pseudorandom function (Boneh and Waters, Kiayias et al., Boyle
// et al., 2013), as Aviram, Gellert and Jager use it for forward secrecy of
// session tickets (2019).
type keyset struct {
	step  uint8  // bits of the path that one level of the trees takes
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

	// wideStep is the step of new keysets. Of two bits a key takes half the hashes that
	// it takes of one, and what is forgotten leaves half as many seeds again; of four it
	// would be a quarter, and four times as many. What was written with a step of one
	// opens with nothing else.
	narrowStep, wideStep = 1, 2
)

func newKeyset() *keyset {
	k := &keyset{step: wideStep, index: make([]byte, seedSize), mac: make([]byte, seedSize), trees: map[Class][]node{}}
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
func child(seed [seedSize]byte, turn uint64) [seedSize]byte {
	var in [seedSize + 1]byte
	copy(in[:], seed[:])
	in[seedSize] = byte(turn)
	return sha256.Sum256(in[:])
}

// turn is the child, of the node at this depth above the leaf, that the leaf lies
// below.
func (k *keyset) turn(path uint64, depth uint8) uint64 {
	return path << depth >> (leafBits - k.step)
}

// covers reports whether the leaf at path lies below the node.
func (n node) covers(path uint64) bool {
	return n.depth == 0 || n.prefix>>(leafBits-n.depth) == path>>(leafBits-n.depth)
}

// end is the place of the last leaf below the node.
func (n node) end() uint64 {
	if n.depth == leafBits {
		return n.prefix
	}
	return n.prefix | math.MaxUint64>>n.depth
}

// above finds the node that the leaf at path lies below, or returns -1. Nodes are
// in the order of their places, and none lies below another.
func above(nodes []node, path uint64) int {
	at := sort.Search(len(nodes), func(i int) bool { return nodes[i].prefix > path }) - 1
	if at < 0 || !nodes[at].covers(path) {
		return -1
	}
	return at
}

// key derives the key of a subject, or returns ErrErased.
func (k *keyset) key(class Class, subject string) ([]byte, error) {
	nodes, ok := k.trees[class]
	if !ok {
		return nil, fmt.Errorf("keyring: there is no class %q", class)
	}
	path := leaf(subject)
	at := above(nodes, path)
	if at < 0 {
		return nil, ErrErased
	}
	seed := nodes[at].seed
	for depth := nodes[at].depth; depth < leafBits; depth += k.step {
		seed = child(seed, k.turn(path, depth))
	}
	return seed[:], nil
}

// forget makes the key of a subject impossible to derive. It reports whether
// there was one to forget.
func (k *keyset) forget(class Class, subject string) bool {
	path := leaf(subject)
	nodes := k.trees[class]
	at := above(nodes, path)
	if at < 0 {
		return false
	}
	n := nodes[at]
	var beside []node
	seed := n.seed
	for depth := n.depth; depth < leafBits; depth += k.step {
		own := k.turn(path, depth)
		parent := path &^ (math.MaxUint64 >> depth)
		for turn := range uint64(1) << k.step {
			if turn != own {
				prefix := parent | turn<<(leafBits-k.step-depth)
				beside = append(beside, node{prefix: prefix, depth: depth + k.step, seed: child(seed, turn)})
			}
		}
		seed = child(seed, own)
	}
	slices.SortFunc(beside, func(a, b node) int { return cmp.Compare(a.prefix, b.prefix) })
	k.trees[class] = slices.Concat(nodes[:at], beside, nodes[at+1:])
	return true
}

// marshal writes a keyset: its step, two keys, and the trees.
func (k *keyset) marshal() []byte {
	b := []byte{k.step}
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
	if len(b) < 1+2*seedSize || b[0] != narrowStep && b[0] != wideStep {
		return nil, errKeyset
	}
	k := &keyset{step: b[0], index: b[1 : 1+seedSize], mac: b[1+seedSize : 1+2*seedSize], trees: map[Class][]node{}}
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
			if n.depth > leafBits || n.depth%k.step != 0 || n.depth < leafBits && n.prefix<<n.depth != 0 || i > 0 && n.prefix <= nodes[i-1].end() {
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
