package eventstore

// Reading a log whose server does not run, straight from its block files. The
// server repairs what it opens: it cuts a block where a record is damaged, and
// with that destroys what an auditor wants to see. What is here only reads.
//
// The format is that of nats-server's file store (server/filestore.go): records
// of a 22-byte head (length with a bit for headers, sequence, time, length of the
// subject), subject, header, body, and a HighwayHash-64 of all that under a key
// made of the stream's name and the block's number. Tests hold it to the server.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/highwayhash"
	"github.com/nats-io/nats-server/v2/server"

	"postbook.dev/postbook/domain"
)

const (
	recordHead     = 22
	recordSum      = 8
	hasHeader      = 1 << 31 // in a record's length
	wasErased      = 1 << 63 // in a record's sequence
	isTombstone    = 1 << 62 // in a record's sequence
	maxRecord      = 32 << 20
	headerVersion  = "NATS/1.0\r\n"
	blockExtension = ".blk"
)

var (
	// ErrDamaged says that a record of a block file is not as it was written.
	ErrDamaged = errors.New("eventstore: the record is damaged")

	// ErrRemoved says that a record has the server remove an entry when it next starts,
	// even if the entry still lies there.
	ErrRemoved = errors.New("eventstore: the entry is marked as removed")
)

// Blocks is a log at rest.
type Blocks struct {
	log   string
	dir   string
	files []int
}

// OpenBlocks finds the block files of a log in the directory of an embedded
// server that does not run.
func OpenBlocks(dir, log string) (*Blocks, error) {
	b := &Blocks{log: log, dir: blocksDir(dir, log)}
	var err error
	b.files, err = blockNumbers(b.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("eventstore: there is no log %s in %s: %w", log, dir, ErrNoEntry)
	}
	if err != nil {
		return nil, fmt.Errorf("eventstore: read the log %s: %w", log, err)
	}
	return b, nil
}

// blockNumbers are the numbers of the block files in a directory, in order.
func blockNumbers(dir string) ([]int, error) {
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var held []int
	for _, n := range names {
		number, ok := strings.CutSuffix(n.Name(), blockExtension)
		if i, err := strconv.Atoi(number); ok && err == nil {
			held = append(held, i)
		}
	}
	slices.Sort(held)
	return held, nil
}

// blockPath is the file of a block.
func blockPath(dir string, number int) string {
	return filepath.Join(dir, strconv.Itoa(number)+blockExtension)
}

// blockSum is the hash of a block's records.
func blockSum(log string, number int) (hash.Hash64, error) {
	key := sha256.Sum256(fmt.Appendf(nil, "%s-%d", log, number))
	sum, err := highwayhash.New64(key[:])
	if err != nil {
		return nil, fmt.Errorf("eventstore: read a block of %s: %w", log, err)
	}
	return sum, nil
}

// lies reports whether an open file is still the one of its name: the server may have
// removed or rewritten a block whose messages expired.
func lies(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(open, named)
}

// LogsAtRest lists the logs in the directory of an embedded server that carry
// events.
func LogsAtRest(dir string) ([]string, error) {
	found, err := os.ReadDir(filepath.Dir(filepath.Dir(blocksDir(dir, Ledger))))
	if err != nil {
		return nil, fmt.Errorf("eventstore: look for logs: %w", err)
	}
	var logs []string
	for _, e := range found {
		if e.IsDir() && carriesEvents(e.Name()) {
			logs = append(logs, e.Name())
		}
	}
	return logs, nil
}

// blocksDir is where a server with its data in dir keeps a stream's block files.
func blocksDir(dir, stream string) string {
	return filepath.Join(dir, server.JetStreamStoreDir, server.DEFAULT_GLOBAL_ACCOUNT, "streams", stream, "msgs")
}

// Count is how many block files there are.
func (b *Blocks) Count() int { return len(b.files) }

// Read hands over the entries of the nth block file, undecoded and as they lie
// there. Err of an entry says that it is damaged, and then nothing of it is known,
// not even its sequence; or that the one of that sequence is removed (ErrRemoved),
// which comes where that was written. Behind one whose length cannot be true,
// nothing more of the file can be read. The bytes of an entry are valid until each
// returns. A block may be read beside others.
func (b *Blocks) Read(ctx context.Context, n int, each func(Entry) error) error {
	number := b.files[n]
	data, sum, err := b.load(n)
	if err != nil {
		return err
	}
	last := n == len(b.files)-1
	for len(data) > 0 {
		record, ok := cutRecord(&data)
		if !ok {
			if last {
				return nil // a write that a crash cut off, which nobody was promised
			}
			return each(Entry{Position: domain.Position{Log: b.log}, Err: fmt.Errorf("%w: block %d cannot be read from here on", ErrDamaged, number)})
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := record.entry(b.log, sum)
		if errors.Is(err, errNoEntry) {
			continue
		}
		if errors.Is(err, ErrDamaged) && last && len(data) == 0 {
			return nil // likewise
		}
		e.Err = err
		if err := each(e); err != nil {
			return err
		}
	}
	return nil
}

// load reads the nth block file, and makes the hash of its records.
func (b *Blocks) load(n int) ([]byte, hash.Hash64, error) {
	data, err := os.ReadFile(b.path(n))
	if err != nil {
		return nil, nil, fmt.Errorf("eventstore: read a block of %s: %w", b.log, err)
	}
	sum, err := blockSum(b.log, b.files[n])
	return data, sum, err
}

// path is the nth block file.
func (b *Blocks) path(n int) string {
	return blockPath(b.dir, b.files[n])
}

// record is the bytes of one record: head, and what follows it.
type record []byte

// cutRecord takes the first record off data, if its lengths can be true.
func cutRecord(data *[]byte) (record, bool) {
	d := *data
	if len(d) < recordHead+recordSum {
		return nil, false
	}
	length := int(binary.LittleEndian.Uint32(d) &^ hasHeader)
	if length < recordHead+recordSum || length > len(d) || length > maxRecord {
		return nil, false
	}
	*data = d[length:]
	return d[:length], true
}

var errNoEntry = errors.New("the record keeps a place")

// seq is the record's sequence, with the bits that say what it is.
func (r record) seq() uint64 { return binary.LittleEndian.Uint64(r[4:]) }

// layout says where the subject ends, and where header and body begin.
func (r record) layout() (subjectEnd, bodyStart int, withHeader bool) {
	subjectEnd = recordHead + int(binary.LittleEndian.Uint16(r[20:]))
	withHeader = binary.LittleEndian.Uint32(r)&hasHeader != 0
	if withHeader {
		return subjectEnd, subjectEnd + 4, true
	}
	return subjectEnd, subjectEnd, false
}

// check holds a record against its checksum.
func (r record) check(sum hash.Hash64) error {
	subjectEnd, bodyStart, _ := r.layout()
	end := len(r) - recordSum
	if bodyStart > end {
		return fmt.Errorf("%w: its lengths do not fit", ErrDamaged)
	}
	sum.Reset()
	sum.Write(r[4:20])
	sum.Write(r[recordHead:subjectEnd])
	sum.Write(r[bodyStart:end])
	var made [recordSum]byte
	if !bytes.Equal(sum.Sum(made[:0]), r[end:]) {
		return fmt.Errorf("%w: its checksum does not hold", ErrDamaged)
	}
	return nil
}

// entry reads a record. Its checksum is part of what is checked.
func (r record) entry(log string, sum hash.Hash64) (Entry, error) {
	e := Entry{Position: domain.Position{Log: log}} // without a place until it is known to be sound
	if err := r.check(sum); err != nil {
		return e, err
	}
	seq := r.seq()
	if seq == 0 || seq&wasErased != 0 {
		return e, errNoEntry
	}
	if seq&isTombstone != 0 {
		e.Seq = seq &^ isTombstone
		return e, ErrRemoved
	}
	subjectEnd, bodyStart, withHeader := r.layout()
	end := len(r) - recordSum
	e.Seq, e.Time = seq, time.Unix(0, int64(binary.LittleEndian.Uint64(r[12:]))).UTC()
	if withHeader {
		length := int(binary.LittleEndian.Uint32(r[subjectEnd:]))
		if bodyStart+length > end {
			return e, fmt.Errorf("%w: its lengths do not fit", ErrDamaged)
		}
		e.Header = canonicalHeaderOf(r[bodyStart : bodyStart+length])
		bodyStart += length
	}
	e.Subject, e.Raw = string(r[recordHead:subjectEnd]), r[bodyStart:end:end]
	return e, nil
}

// canonicalHeader writes a message's header with its keys in order: a line for
// each value.
func canonicalHeader(header map[string][]string) []byte {
	lines := make([]string, 0, len(header))
	for key, values := range header {
		for _, v := range values {
			lines = append(lines, key+": "+v+"\n")
		}
	}
	slices.SortStableFunc(lines, strings.Compare)
	return []byte(strings.Join(lines, ""))
}

// canonicalHeaderOf is canonicalHeader of a header as NATS writes it.
func canonicalHeaderOf(raw []byte) []byte {
	raw = bytes.TrimPrefix(raw, []byte(headerVersion))
	lines := make([]string, 0, 8)
	for len(raw) > 0 {
		line, rest, _ := bytes.Cut(raw, []byte("\r\n"))
		raw = rest
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue // the empty line at the end
		}
		lines = append(lines, string(key)+": "+string(bytes.TrimLeft(value, " \t"))+"\n")
	}
	slices.Sort(lines)
	return []byte(strings.Join(lines, ""))
}
