package seal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Kind says what is wrong.
type Kind string

// The kinds of findings.
const (
	Changed    Kind = "changed"    // an entry is not the one that was sealed
	Missing    Kind = "missing"    // an entry that was sealed is not there
	Extra      Kind = "extra"      // an entry is there twice, or out of its order
	Unreadable Kind = "unreadable" // an entry is damaged
	Forged     Kind = "forged"     // an entry was not written by this platform
	Tiles      Kind = "tiles"      // the hashes that the seal keeps are not those that were signed
	Unsealed   Kind = "unsealed"   // there is no checkpoint, or none that holds
	Rewritten  Kind = "rewritten"  // a checkpoint that somebody else has kept does not fit
	Archived   Kind = "archived"   // an entry's copy in the archive is not what it was
	Stale      Kind = "stale"      // entries are there that should have been sealed by now
)

// A Finding is one thing that is wrong, and where.
type Finding struct {
	Log    string `json:"log"`
	Seq    uint64 `json:"seq,omitempty"` // of the first entry that it is about; 0 is the log as a whole
	Kind   Kind   `json:"kind"`
	Detail string `json:"detail"`
}

func (f Finding) String() string {
	if f.Seq == 0 {
		return fmt.Sprintf("%s: %s: %s", f.Log, f.Kind, f.Detail)
	}
	return fmt.Sprintf("%s %d: %s: %s", f.Log, f.Seq, f.Kind, f.Detail)
}

// Report is what became of verifying a log.
type Report struct {
	Log       string    `json:"log"`
	Entries   uint64    `json:"entries"` // that were read
	Sealed    int64     `json:"sealed"`  // that the checkpoint covers
	SealedAt  time.Time `json:"sealed_at"`
	Unsealed  uint64    `json:"unsealed"` // that came after it
	Witnesses []string  `json:"witnesses,omitempty"`
	Copies    int       `json:"copies"` // checkpoints kept elsewhere that fit
	Findings  []Finding `json:"findings,omitempty"`
	More      int       `json:"more,omitempty"` // findings beyond those listed
}

// OK reports whether nothing is wrong.
func (r *Report) OK() bool { return len(r.Findings) == 0 }

// maxFindings bounds those that are listed of one log. The first is what counts.
const maxFindings = 20

func (r *Report) found(kind Kind, seq uint64, format string, args ...any) {
	if len(r.Findings) == maxFindings {
		r.More++
		return
	}
	r.Findings = append(r.Findings, Finding{r.Log, seq, kind, fmt.Sprintf(format, args...)})
}

// A Sum is an entry with its leaf's hash, worked out wherever entries are read.
type Sum struct {
	Seq    uint64 // 0, of one that cannot be read, is the one that comes next
	Time   time.Time
	Hash   tlog.Hash
	Err    error // why it cannot be read as it was written
	Forged bool
	Copy   error // what is wrong with the copy of it that is kept elsewhere

	Removed bool // this is no entry, but says that the one of that sequence, which is there, is to be gone
}

// Verification says what a log is held against.
type Verification struct {
	Log     string
	Dir     string // of its seal
	Origin  string
	Trusted Verifiers
	Copies  []Copy    // checkpoints that were kept elsewhere
	Ask     []Witness // that say whether they have seen another past, or a later one
	Shared  []byte    // the newest head, where several processes seal: it may be ahead of the one in Dir; nil if there is none
	Now     time.Time // whether sealing has stopped before it is looked at; zero does not look
}

// Copy is a checkpoint that was kept elsewhere, and where.
type Copy struct {
	Place string
	Note  []byte
	Here  bool // it is kept beside the seal, and does not count as one elsewhere
}

// sealWithin is how soon an entry has to be sealed, and how old the newest head can
// be where sealing goes on.
const sealWithin = 2 * time.Minute

// Verify holds the entries of a log, in the order in which they are read, against
// its seal. An error says that it could not be done; what is wrong with the log
// is in the report.
func (v Verification) Verify(ctx context.Context, sums func(ctx context.Context, each func([]Sum) error) error) (*Report, error) {
	r := &Report{Log: v.Log}
	c, err := ReadCheckpoint(v.Dir, v.Trusted, v.Origin)
	if errors.Is(err, fs.ErrNotExist) {
		r.found(Unsealed, 0, "there is no checkpoint")
	} else if err != nil {
		r.found(Unsealed, 0, "%s", err)
	}
	own := c
	if v.Shared != nil {
		shared, err := v.Trusted.Open(v.Origin, v.Shared)
		switch {
		case err != nil:
			r.found(Unsealed, 0, "the head that the processes share: %s", err)
		case shared.Size > c.Size:
			c = shared // this host's folder has lagged behind
		default:
			v.Copies = append(slices.Clone(v.Copies), Copy{Place: "the cluster", Note: v.Shared, Here: true})
		}
	}
	r.Sealed, r.SealedAt, r.Witnesses = c.Size, c.At, c.Witnesses
	tree, err := ReadTree(v.Dir)
	if err != nil && c.Note != nil {
		r.found(Tiles, 0, "%s", err)
	}
	if err == nil {
		defer tree.Close()
	}
	held := &comparison{Verification: v, Report: r, checkpoint: c, own: own, tree: tree, heads: map[int64]tlog.Hash{}}
	for _, copied := range v.Copies {
		if kept, err := v.Trusted.Open(v.Origin, copied.Note); err == nil {
			held.heads[kept.Size] = tlog.Hash{}
		}
	}
	held.heads[own.Size] = tlog.Hash{}
	if err := sums(ctx, held.each); err != nil {
		return nil, err
	}
	held.end()
	return r, held.ask(ctx)
}

// comparison is a verification under way.
type comparison struct {
	Verification
	*Report
	checkpoint Checkpoint
	own        Checkpoint // of the folder: it may be behind
	tree       *Tree

	last    uint64      // sequence that was read last
	sealed  []tlog.Hash // of the tiles, from the leaf at from on
	from    int64
	root    rangeRoot           // of what was read, as long as nothing is missing
	heads   map[int64]tlog.Hash // of what was read, at the sizes that are asked for
	differs bool                // whether an entry that was read is not the one in the tiles
	torn    bool                // whether the tiles could not be read
}

func (c *comparison) each(batch []Sum) error {
	for _, s := range batch {
		if s.Removed {
			c.found(Missing, s.Seq, "a record says that it is removed: the server would drop it at its next start")
			continue
		}
		c.Entries++
		if s.Err != nil && s.Seq == 0 {
			c.last++
			c.differs = true
			c.found(Unreadable, c.last, "%s", s.Err)
			continue
		}
		if s.Copy != nil {
			c.found(Archived, s.Seq, "%s", s.Copy)
		}
		if s.Seq <= c.last {
			c.found(Extra, s.Seq, "it comes after %d", c.last)
			c.differs = true
			continue
		}
		if s.Seq > c.last+1 {
			c.missing(c.last+1, min(s.Seq-1, uint64(c.checkpoint.Size)))
		}
		c.last = s.Seq
		if s.Err != nil {
			c.differs = true
			c.found(Unreadable, s.Seq, "%s", s.Err)
			continue
		}
		if s.Forged {
			c.found(Forged, s.Seq, "it does not carry this platform's mark")
		}
		if s.Seq > uint64(c.checkpoint.Size) {
			c.Unsealed++
			if c.Unsealed == 1 && !c.Now.IsZero() && c.Now.Sub(s.Time) > sealWithin && c.Now.Sub(c.checkpoint.At) > sealWithin {
				c.found(Stale, s.Seq, "it was recorded %s ago and is not sealed, and nothing was since %s", c.Now.Sub(s.Time).Round(time.Second), c.checkpoint.At.Format(time.RFC3339))
			}
			continue
		}
		c.root.add(s.Hash)
		if _, asked := c.heads[c.root.size]; asked {
			c.heads[c.root.size] = c.root.root()
		}
		if want, ok := c.leaf(int64(s.Seq - 1)); ok && want != s.Hash {
			c.differs = true
			c.found(Changed, s.Seq, "it is not the entry that was sealed")
		}
	}
	return nil
}

func (c *comparison) missing(from, to uint64) {
	if from > to {
		return
	}
	c.differs = true
	c.found(Missing, from, "%d entries that were sealed are not there, up to %d", to-from+1, to)
}

// leaf is the hash of a leaf as the tiles have it.
func (c *comparison) leaf(index int64) (tlog.Hash, bool) {
	if index < c.from || index >= c.from+int64(len(c.sealed)) {
		if c.tree == nil || c.torn || index >= c.tree.Size() {
			return tlog.Hash{}, false
		}
		const ahead = 4096
		row, err := readHashes(c.tree.levels[0].file, index, min(ahead, c.tree.Size()-index))
		if err != nil {
			c.torn = true
			c.found(Tiles, uint64(index)+1, "%s", err)
			return tlog.Hash{}, false
		}
		c.from, c.sealed = index, row
	}
	return c.sealed[index-c.from], true
}

// end holds the heads against each other.
func (c *comparison) end() {
	size := c.checkpoint.Size
	c.missing(c.last+1, uint64(size))
	if c.checkpoint.Note == nil {
		return // which was found before
	}
	whole := c.root.size == size && !c.differs && c.root.root() == c.checkpoint.Root
	c.checkOwn(size, whole)
	if !whole && len(c.Findings) == 0 {
		c.found(Changed, 0, "its entries do not lead to the head that was signed")
	}
	for _, copied := range c.Verification.Copies {
		c.checkCopy(copied)
	}
}

// checkOwn checks the folder's own head and tiles, which may be behind the head
// that the processes share.
func (c *comparison) checkOwn(size int64, whole bool) {
	if c.own.Note == nil {
		return // which was found before
	}
	fits := c.own.Size == 0 || c.heads[c.own.Size] == c.own.Root
	if whole && c.own.Size < size && !fits {
		c.found(Rewritten, 0, "this host has sealed %d entries that are not the first of those that are sealed now: there were two histories", c.own.Size)
		return
	}
	c.checkTiles(c.own.Size, whole)
}

// checkTiles checks that the tiles lead to the head that was signed, and each
// level to the next.
func (c *comparison) checkTiles(size int64, whole bool) {
	if c.tree == nil {
		return // which was found before
	}
	if c.tree.Size() < size {
		c.found(Tiles, 0, "they do not hold the %d hashes that were signed", size)
		return
	}
	var root rangeRoot
	var tile []tlog.Hash
	for at := int64(0); at < size; at += tileWidth {
		row, err := readHashes(c.tree.levels[0].file, at, min(tileWidth, size-at))
		if err != nil {
			c.found(Tiles, uint64(at)+1, "%s", err)
			return
		}
		for _, h := range row {
			root.add(h)
		}
		if len(row) == tileWidth {
			tile = append(tile, foldTile(row))
		}
	}
	if root.root() != c.own.Root {
		if whole {
			c.found(Tiles, 0, "the log is as it was signed, and the seal's own hashes are not: they can be made again from it")
		} else {
			c.narrow(tile)
		}
		return
	}
	for n := 1; len(tile) > 0; n++ {
		tile = c.checkLevel(n, tile)
	}
}

// narrow finds out where the tiles were changed, from the level above them.
func (c *comparison) narrow(tiles []tlog.Hash) {
	c.found(Tiles, 0, "the seal's own hashes do not lead to the head that was signed")
	if c.differs || len(c.tree.levels) < 2 {
		return
	}
	above, err := readHashes(c.tree.levels[1].file, 0, int64(len(tiles)))
	if err != nil {
		return
	}
	for i := range tiles {
		if tiles[i] != above[i] {
			c.found(Changed, uint64(i)*tileWidth+1, "one of the %d entries from here on is not the one that was sealed, and its hash was changed too", tileWidth)
			return
		}
	}
}

// checkLevel holds a level against what the one below makes of it, and returns
// what it makes of the next.
func (c *comparison) checkLevel(n int, want []tlog.Hash) (above []tlog.Hash) {
	if n >= len(c.tree.levels) {
		c.found(Tiles, 0, "level %d is not there", n)
		return nil
	}
	held, err := readHashes(c.tree.levels[n].file, 0, int64(len(want)))
	if err != nil {
		c.found(Tiles, 0, "level %d: %s", n, err)
		return nil
	}
	for i := range want {
		if held[i] != want[i] {
			c.found(Tiles, 0, "level %d: hash %d is not that of the level below", n, i)
			return nil
		}
	}
	for i := 0; i+tileWidth <= len(want); i += tileWidth {
		above = append(above, foldTile(want[i:i+tileWidth]))
	}
	return above
}

// checkCopy checks that a checkpoint that was kept elsewhere is one of this log's
// past.
func (c *comparison) checkCopy(copied Copy) {
	kept, err := c.Trusted.Open(c.Origin, copied.Note)
	if err != nil {
		c.found(Rewritten, 0, "%s keeps a checkpoint that cannot be used: %s", copied.Place, err)
		return
	}
	if kept.Size > c.checkpoint.Size {
		c.found(Rewritten, uint64(c.checkpoint.Size)+1, "%s has seen %d entries, and %d are sealed here: what came after is gone", copied.Place, kept.Size, c.checkpoint.Size)
		return
	}
	if c.tree == nil {
		return // which was found before
	}
	root, err := c.headAt(kept.Size)
	if err != nil || root != kept.Root {
		c.found(Rewritten, 0, "the first %d entries are not those that %s has seen", kept.Size, copied.Place)
		return
	}
	if !copied.Here {
		c.Report.Copies++
	}
	if len(kept.Witnesses) > len(c.Witnesses) {
		c.Witnesses = kept.Witnesses
	}
}

// ask has witnesses say whether what they have seen last leads to the head here. What
// they have not seen of it yet they see now.
func (c *comparison) ask(ctx context.Context) error {
	if c.own.Note == nil {
		return nil // which was found before
	}
	for _, w := range c.Ask {
		head := c.own
		_, held, err := w.Cosign(ctx, c.Dir, head, head.Size)
		for errors.Is(err, ErrRefused) && held > head.Size {
			newer, reading := ReadCheckpoint(c.Dir, c.Trusted, c.Origin)
			if reading != nil || newer.Size <= head.Size {
				break
			}
			head = newer // it is being sealed, and has gone on meanwhile
			_, held, err = w.Cosign(ctx, c.Dir, head, head.Size)
		}
		switch {
		case err == nil:
			if !slices.Contains(c.Witnesses, w.Key.Name()) {
				c.Witnesses = append(c.Witnesses, w.Key.Name())
			}
		case errors.Is(err, ErrRefused) && c.Shared != nil && held > head.Size:
			// Another host seals this log, and has shown the witness more.
		case errors.Is(err, ErrRefused):
			c.found(Rewritten, uint64(head.Size)+1, "%s", err)
		default:
			return err
		}
	}
	return nil
}

// headAt is the head of the first entries: of the tiles, or of what was read where
// the tiles are behind.
func (c *comparison) headAt(size int64) (tlog.Hash, error) {
	if size > c.own.Size && !c.differs {
		return c.heads[size], nil
	}
	return c.tree.Root(size)
}

// rangeRoot is the head of a tree that grows leaf by leaf. It holds the complete
// subtrees, largest first.
type rangeRoot struct {
	size     int64
	subtrees []tlog.Hash
}

func (r *rangeRoot) add(h tlog.Hash) { r.addSubtree(0, h) }

// addSubtree adds 2^level leaves at once. As many have to fit behind those that
// are there.
func (r *rangeRoot) addSubtree(level int, h tlog.Hash) {
	for n := r.size >> level; n&1 == 1; n >>= 1 {
		last := len(r.subtrees) - 1
		h = tlog.NodeHash(r.subtrees[last], h)
		r.subtrees = r.subtrees[:last]
	}
	r.subtrees = append(r.subtrees, h)
	r.size += 1 << level
}

func (r *rangeRoot) root() tlog.Hash {
	if r.size == 0 {
		root, _ := tlog.TreeHash(0, nil) // reads nothing
		return root
	}
	h := r.subtrees[len(r.subtrees)-1]
	for i := len(r.subtrees) - 2; i >= 0; i-- {
		h = tlog.NodeHash(r.subtrees[i], h)
	}
	return h
}
