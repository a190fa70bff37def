package eventstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// A Bucket keeps small values under keys, each with a revision: keysets and
// snapshots, which unlike facts are replaced and forgotten. It is as durable as
// the log.
type Bucket struct {
	store  *Store
	kv     jetstream.KeyValue
	stream string
}

// Bucket opens a bucket, and creates it if it is not there.
func (s *Store) Bucket(ctx context.Context, name string) (*Bucket, error) {
	c := jetstream.KeyValueConfig{Bucket: name, History: 1, Storage: jetstream.FileStorage, Replicas: s.cfg.Replicas, MaxValueSize: maxMessage / 2}
	var kv jetstream.KeyValue
	err := s.untilElected(ctx, electionTime, func(ctx context.Context) (err error) {
		if held, err := s.js.Stream(ctx, "KV_"+name); s.local == nil && err == nil {
			c.Replicas = max(c.Replicas, held.CachedInfo().Config.Replicas)
		}
		kv, err = s.js.CreateOrUpdateKeyValue(ctx, c)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("eventstore: open bucket %s: %w: %w", name, ErrUnavailable, err)
	}
	b := &Bucket{store: s, kv: kv, stream: "KV_" + name}
	if err := s.startSyncing(b.stream); err != nil {
		return nil, err
	}
	return b, nil
}

// Get returns a value and its revision, or ErrNoEntry.
func (b *Bucket) Get(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	if b.store.local == nil {
		return b.getFromLeader(ctx, key)
	}
	e, err := b.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, fmt.Errorf("eventstore: get %s: %w", key, ErrNoEntry)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("eventstore: get %s: %w: %w", key, ErrUnavailable, err)
	}
	return e.Value(), e.Revision(), nil
}

// getFromLeader asks the bucket's leader: what another process has just been told
// is written has to be seen.
func (b *Bucket) getFromLeader(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	m, err := b.store.leaderMessage(ctx, b.stream, leaderGet{LastOn: "$KV." + b.kv.Bucket() + "." + key})
	if err != nil {
		return nil, 0, err
	}
	if bytes.Contains(m.Header, []byte("\r\n"+jetstream.MarkerReasonHeader+":")) || bytes.Contains(m.Header, []byte("\r\nKV-Operation:")) {
		return nil, 0, fmt.Errorf("eventstore: get %s: %w", key, ErrNoEntry) // what is there says that it was deleted
	}
	return m.Data, m.Seq, nil
}

// Put sets a value, whatever was there, and returns its revision.
func (b *Bucket) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	revision, err := b.kv.Put(ctx, key, value)
	return b.kept(ctx, key, revision, err)
}

// Update replaces the value that has the revision, and returns the new one; 0
// means that there is none yet. It returns ErrConflict if somebody was faster.
func (b *Bucket) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	var err error
	if revision == 0 {
		revision, err = b.kv.Create(ctx, key, value)
	} else {
		revision, err = b.kv.Update(ctx, key, value, revision)
	}
	return b.kept(ctx, key, revision, err)
}

// Delete forgets the value that has the revision. No call returns it any more.
// Its bytes stay in the server's files until their block is compacted, so what
// has to be unreadable for whoever has the disk must have been encrypted.
func (b *Bucket) Delete(ctx context.Context, key string, revision uint64) error {
	err := b.kv.Purge(ctx, key, jetstream.LastRevision(revision))
	if err == nil {
		revision, err = b.store.Last(ctx, b.stream, "$KV."+b.kv.Bucket()+"."+key)
	}
	_, err = b.kept(ctx, key, revision, err)
	return err
}

// kept waits until a write is on disk, and sorts what went wrong with it.
func (b *Bucket) kept(ctx context.Context, key string, revision uint64, err error) (uint64, error) {
	api, isAPI := errors.AsType[*jetstream.APIError](err)
	switch {
	case errors.Is(err, jetstream.ErrKeyExists), isAPI && (api.ErrorCode == codeWrongLastSequence || api.ErrorCode == codeWriteUnderWay):
		return 0, fmt.Errorf("eventstore: write %s: %w", key, ErrConflict)
	case errors.Is(err, ErrUnavailable):
		return 0, err
	case err != nil:
		return 0, fmt.Errorf("eventstore: write %s: %w: %w", key, ErrUnavailable, err)
	}
	settled := []published{{seq: revision, stream: b.stream}}
	b.store.waitForDisk(ctx, settled)
	return revision, settled[0].err
}

// Keys are all keys that have a value, in no order.
func (b *Bucket) Keys(ctx context.Context) ([]string, error) {
	list, err := b.kv.ListKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("eventstore: list keys: %w: %w", ErrUnavailable, err)
	}
	var keys []string
	for key := range list.Keys() {
		keys = append(keys, key)
	}
	return keys, nil
}
