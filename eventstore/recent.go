package eventstore

import (
	"bytes"
	"hash/maphash"
	"slices"
	"sync"

	"postbook.dev/postbook/domain"
)

// recent keeps the bodies that this process wrote last, with what they say. Its
// followers read them back within moments, each for itself: a body that is, byte
// for byte, one of these need not be decoded again. Under load that was a fifth
// of the work of taking a mail in.
type recent struct {
	seed maphash.Seed

	mu    sync.Mutex
	held  map[uint64]written // by the body's hash
	order []uint64           // of the hashes, oldest first
	bytes int                // of the bodies
}

type written struct {
	body   []byte
	events []domain.Recorded
}

// maxRecent bounds the bodies that are kept, in bytes: some thousands of mails. What
// they say takes about as much.
const maxRecent = 6 << 20

func newRecent() *recent {
	return &recent{seed: maphash.MakeSeed(), held: map[uint64]written{}}
}

// keep takes a body, which may not change any more, and what its commits say: a copy,
// since the writer will place them. Text that was not UTF-8 reads back with U+FFFD in
// its place, so that is left to be decoded.
func (r *recent) keep(body []byte, commits ...[]domain.Recorded) {
	if bytes.Contains(body, []byte("\uFFFD")) || bytes.Contains(body, []byte(`\ufffd`)) {
		return
	}
	sum := maphash.Bytes(r.seed, body)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, again := r.held[sum]; again {
		return
	}
	r.held[sum] = written{body, slices.Concat(commits...)}
	r.order = append(r.order, sum)
	for r.bytes += len(body); r.bytes > maxRecent; r.order = r.order[1:] {
		r.bytes -= len(r.held[r.order[0]].body)
		delete(r.held, r.order[0])
	}
}

// find returns what the body at pos says, or nil if it is not one of those kept.
func (r *recent) find(pos domain.Position, body []byte) []domain.Recorded {
	sum := maphash.Bytes(r.seed, body)
	r.mu.Lock()
	w := r.held[sum]
	r.mu.Unlock()
	if w.events == nil || !bytes.Equal(w.body, body) {
		return nil
	}
	return place(slices.Clone(w.events), pos.Log, pos.Seq)
}
