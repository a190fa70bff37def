package archive

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

// A segment is frames, each compressed by itself, so that one entry can be read
// without the rest. A frame is records:
//
//	4 bytes   length of what follows
//	8         sequence
//	8         time, in nanoseconds since 1970
//	2         length of the subject
//	4         length of the header
//	          subject, header (in its canonical form), body
//
// Numbers are little-endian. What the frames are is in the manifest, an object
// beside the segment. A segment without a manifest does not count.
const (
	recordHead = 26
	recordRest = recordHead - 4 // of the head, behind the length

	frameSize = 256 << 10 // a frame ends behind this, before compression
	maxFrame  = 4 << 20   // one that claims to be larger is not read
)

// Version of the format.
const version = 1

// Manifest describes a segment.
type Manifest struct {
	Version  int       `json:"version"`
	Origin   string    `json:"origin"` // instance and log
	Log      string    `json:"log"`
	First    uint64    `json:"first"`
	Last     uint64    `json:"last"`
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Raw      int64     `json:"raw"`      // bytes of the records
	Bytes    int64     `json:"bytes"`    // of the segment
	SHA256   string    `json:"sha256"`   // of the segment
	Previous string    `json:"previous"` // SHA-256 of the segment before, empty for the first
	Frames   []Frame   `json:"frames"`

	// Checkpoint is a head that covers the segment, and Proof shows that its leaves
	// lie in that head's tree. A log that is not sealed has neither.
	Checkpoint string           `json:"checkpoint,omitempty"`
	Proof      *seal.RangeProof `json:"proof,omitempty"`
}

// Frame is where one lies.
type Frame struct {
	First uint64 `json:"first"` // sequence of its first record
	Off   int64  `json:"off"`
	Len   int64  `json:"len"`
	Raw   int64  `json:"raw"`
}

// errDamaged says that a segment or its manifest is not what was written.
var errDamaged = errors.New("archive: the segment is damaged")

// parseManifest reads a manifest and checks that it holds together, so that whoever
// follows its numbers stays within bounds.
func parseManifest(data []byte) (*Manifest, error) {
	m := &Manifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%w: its manifest cannot be read: %w", errDamaged, err)
	}
	if m.Version != version {
		return nil, fmt.Errorf("%w: its manifest has the version %d", errDamaged, m.Version)
	}
	var off, raw int64
	next := m.First
	for i, f := range m.Frames {
		if f.Off != off || f.Len <= 0 || f.Len > maxFrame+maxFrame/8 || f.Raw < recordHead || f.Raw > maxFrame || f.First < next || i == 0 && f.First != m.First {
			return nil, fmt.Errorf("%w: frame %d of its manifest cannot be", errDamaged, i)
		}
		off, raw, next = off+f.Len, raw+f.Raw, f.First+1
	}
	if m.First == 0 || len(m.Frames) == 0 || m.Last < next-1 || m.Last == math.MaxUint64 || off != m.Bytes || raw != m.Raw {
		return nil, fmt.Errorf("%w: its manifest does not hold together", errDamaged)
	}
	return m, nil
}

// end is the sequence behind the nth frame.
func (m *Manifest) end(n int) uint64 {
	if n+1 < len(m.Frames) {
		return m.Frames[n+1].First
	}
	return m.Last + 1
}

// writer makes a segment in memory.
type writer struct {
	manifest Manifest
	data     []byte
	open     []byte // records of the frame that is not compressed yet
	first    uint64 // sequence of its first
}

var (
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxFrame), zstd.WithDecoderConcurrency(0))
		if err != nil {
			panic(err)
		}
		return d
	})
)

// add puts the next entry into the segment.
func (w *writer) add(e eventstore.Entry) {
	if w.manifest.First == 0 {
		w.manifest.First, w.manifest.From = e.Seq, e.Time.UTC()
	}
	if len(w.open) == 0 {
		w.first = e.Seq
	}
	w.manifest.Last, w.manifest.To = e.Seq, e.Time.UTC()
	w.open = appendRecord(w.open, e)
	if len(w.open) >= frameSize {
		w.flush()
	}
}

func appendRecord(b []byte, e eventstore.Entry) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(recordRest+len(e.Subject)+len(e.Header)+len(e.Raw)))
	b = binary.LittleEndian.AppendUint64(b, e.Seq)
	b = binary.LittleEndian.AppendUint64(b, uint64(e.Time.UnixNano()))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(e.Subject)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.Header)))
	b = append(b, e.Subject...)
	b = append(b, e.Header...)
	return append(b, e.Raw...)
}

func (w *writer) flush() {
	if len(w.open) == 0 {
		return
	}
	off := int64(len(w.data))
	w.data = encoder().EncodeAll(w.open, w.data)
	w.manifest.Frames = append(w.manifest.Frames, Frame{w.first, off, int64(len(w.data)) - off, int64(len(w.open))})
	w.manifest.Raw += int64(len(w.open))
	w.open = w.open[:0]
}

// raw is how many bytes the records have so far.
func (w *writer) raw() int64 { return w.manifest.Raw + int64(len(w.open)) }

// entries is how many there are so far.
func (w *writer) entries() int64 {
	if w.manifest.First == 0 {
		return 0
	}
	return int64(w.manifest.Last - w.manifest.First + 1)
}

// finish completes the segment.
func (w *writer) finish() {
	w.flush()
	w.manifest.Version, w.manifest.Bytes, w.manifest.SHA256 = version, int64(len(w.data)), sum(w.data)
}

func sum(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// readFrame reads the entries of the nth frame from its compressed bytes. It needs
// no more memory than a frame may have.
func (m *Manifest) readFrame(n int, compressed []byte) ([]eventstore.Entry, error) {
	f := m.Frames[n]
	raw, err := decoder().DecodeAll(compressed, make([]byte, 0, f.Raw))
	if err != nil {
		return nil, fmt.Errorf("%w: the frame of %d cannot be unpacked: %w", errDamaged, f.First, err)
	}
	entries, err := parseRecords(m.Log, raw, f.First)
	if err != nil {
		return nil, err
	}
	if f.First+uint64(len(entries)) != m.end(n) {
		return nil, fmt.Errorf("%w: the frame of %d ends at %d", errDamaged, f.First, f.First+uint64(len(entries))-1)
	}
	return entries, nil
}

// parseRecords reads records that follow each other from a sequence on. They stay
// valid as long as raw is not changed.
func parseRecords(log string, raw []byte, first uint64) ([]eventstore.Entry, error) {
	entries := make([]eventstore.Entry, 0, len(raw)/512+1)
	subjects := map[string]string{}
	for next := first; len(raw) > 0; next++ {
		damaged := func(why string) error { return fmt.Errorf("%w: the record of %d %s", errDamaged, next, why) }
		if len(raw) < recordHead {
			return nil, damaged("is cut off")
		}
		length := int64(binary.LittleEndian.Uint32(raw))
		seq, at := binary.LittleEndian.Uint64(raw[4:]), int64(binary.LittleEndian.Uint64(raw[12:]))
		subject, header := int64(binary.LittleEndian.Uint16(raw[20:])), int64(binary.LittleEndian.Uint32(raw[22:]))
		switch {
		case length > int64(len(raw))-4:
			return nil, damaged("is cut off")
		case subject+header > length-recordRest:
			return nil, damaged("has lengths that cannot be")
		case seq != next:
			return nil, damaged(fmt.Sprintf("is of %d", seq))
		}
		rest := raw[recordHead : length+4 : length+4]
		raw = raw[length+4:]
		name, ok := subjects[string(rest[:subject])]
		if !ok {
			name = string(rest[:subject])
			subjects[name] = name
		}
		entries = append(entries, eventstore.Entry{
			Position: domain.Position{Log: log, Seq: seq}, Time: time.Unix(0, at).UTC(), Subject: name,
			Header: rest[subject : subject+header : subject+header], Raw: rest[subject+header:],
		})
	}
	return entries, nil
}

// leafOf is the hash of an entry's leaf.
func leafOf(e eventstore.Entry) seal.Hash { return notary.EntryOf(e).Hash() }
