package eventstore

// Copies of whole streams, with the sequence and the time of every entry: these
// are part of what is sealed, so entries that were published again would not be
// the same. The server makes copies and takes them (JetStream's snapshot and
// restore) while it serves, alone or in a cluster. A copy holds exactly what a
// stream held at one moment, record by record, and the places that durable
// consumers had in it; it is an archive of nats-server, compressed with S2.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats-server/v2/server/archive"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"postbook.dev/postbook/domain"
)

// StreamCopy says what a copy of a stream holds.
type StreamCopy struct {
	Stream  string          `json:"stream"`
	Entries uint64          `json:"entries"`
	Bytes   uint64          `json:"bytes"` // that they take in the server's files
	First   uint64          `json:"first"`
	Last    uint64          `json:"last"`
	Config  json.RawMessage `json:"config"` // as the server has it
}

// Streams names every stream that the server holds, whoever made it.
func (s *Store) Streams(ctx context.Context) ([]string, error) {
	list := s.js.StreamNames(ctx)
	var names []string
	for name := range list.Name() {
		names = append(names, name)
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("eventstore: list streams: %w: %w", ErrUnavailable, err)
	}
	slices.Sort(names)
	return names, nil
}

const (
	copyChunk   = 256 << 10 // bytes
	copySilence = 30 * time.Second
	copyAgain   = 50 * time.Millisecond // until somebody who is not there is asked again
	copyEnd     = 10 * time.Minute      // for the server to put in place what it was given
)

// CopyStream writes a stream as it is at one moment. What is written is read as
// it passes, so that a copy that ends without an error can be read to its end.
// The server waits for a slow writer; it needs a few megabytes, whatever the
// stream holds.
func (s *Store) CopyStream(ctx context.Context, stream string, to io.Writer, progress func(done, total uint64)) (StreamCopy, error) {
	nc := s.links[followLink].nc
	sub, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		return StreamCopy{}, fmt.Errorf("eventstore: copy %s: %w: %w", stream, ErrUnavailable, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // which also ends the server's part
	var answer struct {
		Config json.RawMessage    `json:"config"`
		State  server.StreamState `json:"state"`
	}
	request := server.JSApiStreamSnapshotRequest{DeliverSubject: sub.Subject, ChunkSize: copyChunk}
	if err := s.ask(ctx, fmt.Sprintf(server.JSApiStreamSnapshotT, stream), request, &answer); err != nil {
		return StreamCopy{}, fmt.Errorf("eventstore: copy %s: %w", stream, err)
	}
	c := StreamCopy{Stream: stream, Bytes: answer.State.Bytes, First: answer.State.FirstSeq, Last: answer.State.LastSeq, Config: answer.Config}

	checking, toCheck := io.Pipe()
	checked := make(chan error, 1)
	go func() {
		err := readCopy(checking, func(*archive.Header, []byte) error {
			c.Entries++
			progress(c.Entries, answer.State.Msgs)
			return nil
		})
		if err == nil {
			_, err = io.Copy(io.Discard, checking)
		}
		_ = checking.CloseWithError(err) // never fails
		checked <- err
	}()
	err = receiveCopy(ctx, sub, io.MultiWriter(to, toCheck))
	_ = toCheck.CloseWithError(err) // never fails; nil is the end
	if unread := <-checked; err == nil {
		err = unread
	}
	if err != nil {
		return StreamCopy{}, fmt.Errorf("eventstore: copy %s: %w", stream, err)
	}
	return c, nil
}

// receiveCopy writes the chunks that the server sends, and tells it of each.
func receiveCopy(ctx context.Context, sub *nats.Subscription, to io.Writer) error {
	for {
		patient, cancel := context.WithTimeout(ctx, copySilence)
		msg, err := sub.NextMsgWithContext(patient)
		cancel()
		if err != nil {
			return fmt.Errorf("%w: wait for the server: %w", ErrUnavailable, err)
		}
		if len(msg.Data) == 0 {
			if status := msg.Header.Get("Status"); status != "" && status != "204" {
				return fmt.Errorf("%w: the server gave up: %s", ErrUnavailable, msg.Header.Get("Description"))
			}
			return nil
		}
		if _, err := to.Write(msg.Data); err != nil {
			return err
		}
		if msg.Reply != "" {
			if err := msg.Respond(nil); err != nil {
				return fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
		}
	}
}

// ask puts a question to the server that the client library has no method for.
func (s *Store) ask(ctx context.Context, subject string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	data, err := heard(ctx, s.nc, subject, body, copySilence)
	if err != nil {
		return err
	}
	return readAnswer(data, answer)
}

// heard asks until somebody has heard the question. What one server of a cluster
// listens to, another learns a moment later, and answers until then that nobody
// is there.
func heard(ctx context.Context, nc *nats.Conn, subject string, question []byte, within time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		reply, err := nc.RequestWithContext(ctx, subject, question)
		if err == nil {
			return reply.Data, nil
		}
		if !errors.Is(err, nats.ErrNoResponders) {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		case <-time.After(copyAgain):
		}
	}
}

func readAnswer(data []byte, answer any) error {
	var refused struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(data, &refused); err != nil {
		return fmt.Errorf("%w: read the server's answer: %w", ErrUnavailable, err)
	}
	if refused.Error != nil {
		return fmt.Errorf("the server refuses: %w", refused.Error)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(data, answer)
}

// ReadCopy hands over the entries of a copy of a log, undecoded and in order. It
// is an error if the copy does not end as a whole one does. The bytes of an entry
// are valid until each returns.
func ReadCopy(from io.Reader, log string, each func(Entry) error) error {
	err := readCopy(from, func(h *archive.Header, data []byte) error {
		return each(Entry{
			Position: domain.Position{Log: log, Seq: h.Sequence}, Time: time.Unix(0, h.Timestamp).UTC(), Subject: h.Name,
			Header: canonicalHeaderOf(data[:h.HeaderSize]), Raw: data[h.HeaderSize:],
		})
	})
	if err != nil {
		return fmt.Errorf("eventstore: read a copy of %s: %w", log, err)
	}
	return nil
}

func readCopy(from io.Reader, each func(h *archive.Header, data []byte) error) error {
	records := archive.NewReader(s2.NewReader(from))
	var data []byte
	for {
		h, err := records.Next()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // a whole one says where it ends
		}
		if err != nil {
			return err
		}
		if h.Sequence == 0 {
			if h.Name == "" {
				return nil
			}
			continue // the state of the stream, or of a consumer
		}
		size := h.HeaderSize + h.PayloadSize
		if h.HeaderSize < 0 || h.PayloadSize < 0 || size > maxRecord {
			return fmt.Errorf("%w: the lengths of record %d cannot be true", ErrDamaged, h.Sequence)
		}
		data = slices.Grow(data[:0], int(size))[:size]
		if _, err := io.ReadFull(records, data); err != nil {
			return fmt.Errorf("%w: record %d: %w", ErrDamaged, h.Sequence, err)
		}
		if err := each(h, data); err != nil {
			return err
		}
	}
}

// Vacant is a server that takes copies of streams, before anything else works on
// it.
type Vacant struct{ store *Store }

// OpenVacant starts the embedded server, or connects, and makes no streams.
func OpenVacant(c Config) (*Vacant, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Store{cfg: c, url: c.URL}
	if err := s.reach(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &Vacant{s}, nil
}

// Streams names every stream that is there already.
func (v *Vacant) Streams(ctx context.Context) ([]string, error) { return v.store.Streams(ctx) }

// Drop removes a stream that an earlier try has left.
func (v *Vacant) Drop(ctx context.Context, stream string) error {
	if err := v.store.js.DeleteStream(ctx, stream); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("eventstore: remove %s: %w: %w", stream, ErrUnavailable, err)
	}
	return nil
}

// Close shuts down what OpenVacant has started.
func (v *Vacant) Close() error { return v.store.Close() }

// Restore makes a stream out of its copy, on as many servers of a cluster as it
// was, or on replicas if that is not 0. It is on disk when Settle has returned.
func (v *Vacant) Restore(ctx context.Context, c StreamCopy, from io.Reader, replicas int) error {
	err := v.restore(ctx, c, from, replicas)
	if err != nil {
		return fmt.Errorf("eventstore: restore %s: %w", c.Stream, err)
	}
	return nil
}

func (v *Vacant) restore(ctx context.Context, c StreamCopy, from io.Reader, replicas int) error {
	request := server.JSApiStreamRestoreRequest{State: server.StreamState{Msgs: c.Entries, Bytes: c.Bytes, FirstSeq: c.First, LastSeq: c.Last}}
	if err := json.Unmarshal(c.Config, &request.Config); err != nil {
		return fmt.Errorf("read its configuration: %w", err)
	}
	if replicas > 0 {
		request.Config.Replicas = replicas
	}
	var answer server.JSApiStreamRestoreResponse
	if err := v.store.ask(ctx, fmt.Sprintf(server.JSApiStreamRestoreT, c.Stream), request, &answer); err != nil {
		return err
	}
	nc := v.store.links[firstWriteLink].nc
	chunk := make([]byte, min(copyChunk, nc.MaxPayload()/2))
	for {
		n, err := io.ReadFull(from, chunk)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err // the server gives up when nothing comes any more
		}
		wait := copySilence
		if n == 0 {
			wait = copyEnd
		}
		reply, err := heard(ctx, nc, answer.DeliverSubject, chunk[:n], wait)
		if err != nil {
			return err
		}
		if n > 0 && len(reply) == 0 {
			continue
		}
		var made server.JSApiStreamCreateResponse
		if err := readAnswer(reply, &made); err != nil {
			return err
		}
		if n > 0 || made.StreamInfo == nil {
			return fmt.Errorf("%w: the server ended before it had everything", ErrUnavailable)
		}
		return c.compare(made.StreamInfo)
	}
}

// compare checks that a stream holds what its copy does. What was to expire may
// have expired, and what was due may have gone out.
func (c StreamCopy) compare(made *server.StreamInfo) error {
	st, config := made.State, made.Config
	expires := config.MaxAge > 0 || config.AllowMsgTTL || config.AllowMsgSchedules
	if st.LastSeq < c.Last || !expires && (st.LastSeq != c.Last || st.Msgs != c.Entries) {
		return fmt.Errorf("it has %d entries up to %d, and its copy %d up to %d", st.Msgs, st.LastSeq, c.Entries, c.Last)
	}
	return nil
}

// Settle brings every file of an embedded server's directory to the disk. The
// server has to be closed.
func Settle(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
	if err != nil {
		return fmt.Errorf("eventstore: bring the log to the disk: %w", err)
	}
	return nil
}
