package eventstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Keysets is the name of the slate of wrapped keysets.
const Keysets = "KEYSETS"

// A Slate keeps small values under keys, each with a revision, like a Bucket; but
// what was replaced or deleted can be wiped off: the server rewrites the block that
// it lies in, with noise in its place. That a Bucket cannot do, whose stream refuses
// deletions.
//
// A value is one message, or, if it is large, parts of it that the message names.
type Slate struct {
	store  *Store
	stream jetstream.Stream
	name   string
	prefix string
}

// The forms of a message: it is the value, it names the value's parts, or it says
// that there is none any more.
const (
	slateWhole   = 0
	slateParts   = 1
	slateDeleted = 2
	slatePart    = 3

	maxSlatePart = 512 << 10
)

// Slate opens a slate, and creates it if it is not there. What an interrupted call
// has left is wiped off.
func (s *Store) Slate(ctx context.Context, name string) (*Slate, error) {
	prefix := strings.ToLower(name) + "."
	err := s.createStream(ctx, jetstream.StreamConfig{
		Name: name, Subjects: []string{prefix + ">"}, Storage: jetstream.FileStorage, Replicas: s.cfg.Replicas,
		Discard: jetstream.DiscardNew, MaxMsgSize: maxMessage, DenyPurge: true,
	})
	if err != nil {
		return nil, err
	}
	stream, err := s.stream(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := s.startSyncing(name); err != nil {
		return nil, err
	}
	l := &Slate{store: s, stream: stream, name: name, prefix: prefix}
	return l, l.sweepAll(ctx)
}

// Adopt takes the values of a bucket over, and removes it.
func (l *Slate) Adopt(ctx context.Context, bucket string) error {
	kv, err := l.store.js.KeyValue(ctx, bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("eventstore: open bucket %s: %w: %w", bucket, ErrUnavailable, err)
	}
	list, err := kv.ListKeys(ctx)
	if err != nil {
		return fmt.Errorf("eventstore: list bucket %s: %w: %w", bucket, ErrUnavailable, err)
	}
	for key := range list.Keys() {
		held, err := kv.Get(ctx, key)
		if err != nil {
			return fmt.Errorf("eventstore: read bucket %s: %w: %w", bucket, ErrUnavailable, err)
		}
		if _, err := l.Update(ctx, key, held.Value(), 0); err != nil && !errors.Is(err, ErrConflict) {
			return err
		}
	}
	if err := l.store.js.DeleteKeyValue(ctx, bucket); err != nil && !errors.Is(err, jetstream.ErrBucketNotFound) {
		return fmt.Errorf("eventstore: remove bucket %s: %w: %w", bucket, ErrUnavailable, err)
	}
	return nil
}

func (l *Slate) subject(key string) string { return l.prefix + "value." + key }
func (l *Slate) parts(key string) string   { return l.prefix + "part." + key }

// Get returns a value and its revision, or ErrNoEntry. The revision of a value that
// was deleted is that of its deletion.
func (l *Slate) Get(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	for range maxTries {
		e, err := l.store.lastOn(ctx, l.name, l.subject(key))
		if err != nil {
			return nil, 0, err
		}
		value, err := l.read(ctx, e.Raw)
		if errors.Is(err, errReplaced) {
			continue // its parts were wiped off meanwhile
		}
		if err != nil {
			return nil, e.Seq, fmt.Errorf("eventstore: get %s: %w", key, err)
		}
		return value, e.Seq, nil
	}
	return nil, 0, fmt.Errorf("eventstore: get %s: %w: it changes all the time", key, ErrUnavailable)
}

var errReplaced = errors.New("the value was replaced")

func (l *Slate) read(ctx context.Context, raw []byte) ([]byte, error) {
	switch {
	case len(raw) > 0 && raw[0] == slateWhole:
		return raw[1:], nil
	case len(raw) > 0 && raw[0] == slateDeleted:
		return nil, ErrNoEntry
	case len(raw) > 0 && raw[0] == slateParts:
		var value []byte
		for _, seq := range partsOf(raw) {
			part, err := l.store.Read(ctx, l.name, seq)
			if errors.Is(err, ErrNoEntry) {
				return nil, errReplaced
			}
			if err != nil {
				return nil, err
			}
			if len(part.Raw) == 0 || part.Raw[0] != slatePart {
				return nil, fmt.Errorf("%s %d is no part of a value", l.name, seq)
			}
			value = append(value, part.Raw[1:]...)
		}
		return value, nil
	}
	return nil, errors.New("this is no value of a slate")
}

// partsOf are the sequences that a message names.
func partsOf(raw []byte) []uint64 {
	var seqs []uint64
	if len(raw) == 0 || raw[0] != slateParts {
		return nil
	}
	for rest := raw[1:]; len(rest) >= 8; rest = rest[8:] {
		seqs = append(seqs, binary.BigEndian.Uint64(rest))
	}
	return seqs
}

// Update replaces the value that has the revision, and returns the new one; 0 means
// that there is none yet, and never was. It returns ErrConflict if somebody was
// faster. The older value stays in the files until Sweep.
func (l *Slate) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	head := append([]byte{slateWhole}, value...)
	if len(value) > maxSlatePart {
		head = []byte{slateParts}
		for rest := value; len(rest) > 0; rest = rest[min(len(rest), maxSlatePart):] {
			part := append([]byte{slatePart}, rest[:min(len(rest), maxSlatePart)]...)
			p := l.store.publish(ctx, true, &nats.Msg{Subject: l.parts(key), Header: nats.Header{}, Data: part})[0]
			if p.err != nil {
				return 0, fmt.Errorf("eventstore: write a part of %s: %w", key, p.err)
			}
			head = binary.BigEndian.AppendUint64(head, p.seq)
		}
	}
	return l.put(ctx, key, head, revision)
}

// Delete takes away the value that has the revision. It cannot be written again by
// somebody who has not seen that.
func (l *Slate) Delete(ctx context.Context, key string, revision uint64) error {
	_, err := l.put(ctx, key, []byte{slateDeleted}, revision)
	return err
}

func (l *Slate) put(ctx context.Context, key string, data []byte, revision uint64) (uint64, error) {
	if !isToken(key) {
		return 0, fmt.Errorf("eventstore: write %q: it is no key", key)
	}
	msg := &nats.Msg{Subject: l.subject(key), Header: nats.Header{}, Data: data}
	msg.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(revision, 10)}
	p := l.store.publish(ctx, true, msg)[0]
	if p.err != nil {
		return 0, fmt.Errorf("eventstore: write %s: %w", key, p.err)
	}
	return p.seq, nil
}

// Sweep removes what is left of a key's earlier values. With overwrite, their bytes
// in the server's files are replaced by noise, and that is on disk when it returns.
func (l *Slate) Sweep(ctx context.Context, key string, overwrite bool) error {
	head, err := l.store.lastOn(ctx, l.name, l.subject(key))
	if err != nil && !errors.Is(err, ErrNoEntry) {
		return err
	}
	kept := map[uint64]bool{head.Seq: true}
	for _, seq := range partsOf(head.Raw) {
		kept[seq] = true
	}
	swept := false
	for _, subject := range []string{l.subject(key), l.parts(key)} {
		for seq := uint64(1); ; seq++ {
			seq, err = l.next(ctx, subject, seq)
			if err != nil {
				return err
			}
			// What is newer than the value may be part of one that is being written.
			if seq == 0 || seq > head.Seq {
				break
			}
			if kept[seq] {
				continue
			}
			if err := l.remove(ctx, seq, overwrite); err != nil {
				return fmt.Errorf("eventstore: wipe off an earlier %s: %w: %w", key, ErrUnavailable, err)
			}
			swept = true
		}
	}
	if !swept || !overwrite {
		return nil
	}
	return l.settle()
}

func (l *Slate) remove(ctx context.Context, seq uint64, overwrite bool) (err error) {
	if overwrite {
		err = l.stream.SecureDeleteMsg(ctx, seq)
	} else {
		err = l.stream.DeleteMsg(ctx, seq)
	}
	if errors.Is(err, jetstream.ErrMsgNotFound) || errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
		if _, gone := l.store.Read(ctx, l.name, seq); errors.Is(gone, ErrNoEntry) {
			return nil // somebody else did it
		}
	}
	return err
}

// next is the first sequence on a subject from one on, or 0.
func (l *Slate) next(ctx context.Context, subject string, from uint64) (uint64, error) {
	e, err := l.store.fromLeader(ctx, l.name, leaderGet{Seq: from, NextOn: subject})
	if errors.Is(err, ErrNoEntry) {
		return 0, nil
	}
	return e.Seq, err
}

// settle makes durable that the server has put rewritten blocks in the place of
// the older ones. It has synced their bytes itself.
func (l *Slate) settle() error {
	if l.store.local == nil || l.store.cfg.Durability != Fsync {
		return nil
	}
	dir := l.store.local.blocks(l.name)
	names, err := fs.Glob(os.DirFS(dir), "*.blk")
	if err != nil {
		return fmt.Errorf("eventstore: sync slate %s: %w", l.name, err)
	}
	for _, name := range append(names, ".") {
		f, err := os.Open(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(l.store.cfg.fsync(f), f.Close())
		}
		if err != nil {
			return fmt.Errorf("eventstore: sync slate %s: %w: %w", l.name, ErrUnavailable, err)
		}
	}
	return nil
}

// sweepAll finishes what was interrupted.
func (l *Slate) sweepAll(ctx context.Context) error {
	info, err := l.stream.Info(ctx, jetstream.WithSubjectFilter(l.prefix+">"))
	if err != nil {
		return fmt.Errorf("eventstore: look at slate %s: %w: %w", l.name, ErrUnavailable, err)
	}
	for subject, n := range info.State.Subjects {
		key, isValue := strings.CutPrefix(subject, l.prefix+"value.")
		if !isValue {
			key = strings.TrimPrefix(subject, l.prefix+"part.")
		}
		if isValue && n == 1 && info.State.Subjects[l.parts(key)] == 0 {
			continue
		}
		if err := l.Sweep(ctx, key, true); err != nil {
			return err
		}
	}
	return nil
}

// Keys are all keys that have or had a value, in no order.
func (l *Slate) Keys(ctx context.Context) ([]string, error) {
	info, err := l.stream.Info(ctx, jetstream.WithSubjectFilter(l.subject("*")))
	if err != nil {
		return nil, fmt.Errorf("eventstore: list slate %s: %w: %w", l.name, ErrUnavailable, err)
	}
	keys := make([]string, 0, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		keys = append(keys, strings.TrimPrefix(subject, l.subject("")))
	}
	return keys, nil
}

// Watch calls changed with the key of each write from now on, until ctx ends. It
// calls it with nothing when it begins, and whenever writes may have gone unseen:
// any key may have changed then.
func (l *Slate) Watch(ctx context.Context, changed func(key string)) error {
	for {
		err := l.watch(ctx, changed)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.store.cfg.Log.Warn("watch a slate again", "slate", l.name, "error", err)
		changed("")
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (l *Slate) watch(ctx context.Context, changed func(key string)) error {
	t, err := l.store.tail(ctx, l.name, jetstream.ConsumerConfig{
		FilterSubject: l.subject("*"), DeliverPolicy: jetstream.DeliverNewPolicy, HeadersOnly: true,
	})
	if err != nil {
		return err
	}
	defer t.close()
	changed("")
	for {
		msg, _, err := t.next()
		if err != nil {
			return err
		}
		changed(strings.TrimPrefix(msg.Subject(), l.subject("")))
	}
}
