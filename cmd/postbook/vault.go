package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/keyring"
)

// A vault seals and opens personal data with the keyring, and counts what was
// opened by whom. The counts go to the log once a second: that nothing was
// opened is then as provable as that something was.
type vault struct {
	ring  *keyring.Keyring
	store *eventstore.Store
	log   *slog.Logger

	mu     sync.Mutex
	opened map[opening]*unsealed

	unwritten map[string][]eventstore.Commit // by account; of flush alone
}

type opening struct {
	account, class string
	actor          domain.Actor
}

type unsealed struct {
	by    domain.Authority
	count int
}

func newVault(ring *keyring.Keyring, store *eventstore.Store, log *slog.Logger) *vault {
	return &vault{ring: ring, store: store, log: log, opened: map[opening]*unsealed{}}
}

func (v *vault) Seal(ctx context.Context, account, class, subject string, plain []byte) (domain.Sealed, error) {
	keys, err := v.ring.Account(ctx, account)
	if err != nil {
		return nil, err
	}
	return keys.Seal(keyring.Class(class), subject, plain, bound(account, class, subject))
}

func (v *vault) SealAbout(ctx context.Context, account, class, subject string, recipients []string, plain []byte) (domain.Sealed, error) {
	keys, err := v.ring.Account(ctx, account)
	if err != nil {
		return nil, err
	}
	return keys.SealAbout(keyring.Class(class), subject, recipients, plain, bound(account, class, subject))
}

func (v *vault) SealBeside(ctx context.Context, account, class, subject string, beside, plain []byte) (domain.Sealed, error) {
	keys, err := v.ring.Account(ctx, account)
	if err != nil {
		return nil, err
	}
	return keys.SealBeside(keyring.Class(class), subject, beside, plain, bound(account, class, subject))
}

func (v *vault) Open(ctx context.Context, account, class, subject string, box []byte) ([]byte, error) {
	keys, err := v.ring.Account(ctx, account)
	if err != nil {
		return nil, err
	}
	plain, err := keys.Open(ctx, keyring.Class(class), subject, box, bound(account, class, subject))
	if !errors.Is(err, keyring.ErrErased) {
		v.count(ctx, account, class)
	}
	return plain, err
}

// bound is what a box is sealed to, so that it opens nowhere else.
func bound(account, class, subject string) []byte {
	return []byte(account + "/" + class + "/" + subject)
}

func (v *vault) Index(ctx context.Context, account, address string) (string, error) {
	keys, err := v.ring.Account(ctx, account)
	if err != nil {
		return "", err
	}
	return keys.Index(address), nil
}

func (v *vault) MAC(ctx context.Context, purpose string, data []byte) ([]byte, error) {
	return v.ring.MAC(ctx, purpose, data)
}

func (v *vault) count(ctx context.Context, account, class string) {
	by, ok := domain.OnBehalf(ctx)
	if !ok {
		by = domain.Authority{Actor: domain.Actor{Kind: domain.System, ID: "postbook"}, Account: domain.Platform, Via: domain.ViaWorker, Auth: domain.Internal}
	}
	key := opening{account, class, by.Actor}
	v.mu.Lock()
	defer v.mu.Unlock()
	u := v.opened[key]
	if u == nil {
		u = &unsealed{by: by}
		v.opened[key] = u
	}
	u.count++
}

// run writes the counts until ctx ends. What is counted after that, flush writes when
// nobody opens anything any more.
func (v *vault) run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			v.flush(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// flush writes what was counted. What cannot be written now is written by the next
// call, before what is counted meanwhile: as the same commits, so that they are there
// once if the log has them already.
func (v *vault) flush(ctx context.Context) {
	if !v.write(ctx) {
		return
	}
	v.mu.Lock()
	opened := v.opened
	v.opened = map[opening]*unsealed{}
	v.mu.Unlock()
	v.unwritten = map[string][]eventstore.Commit{}
	for key, u := range opened {
		by := u.by
		id := uuid.Must(uuid.NewV7())
		by.Causation, by.Command = by.Command, id
		v.unwritten[key.account] = append(v.unwritten[key.account], eventstore.Commit{
			Stream: domain.Stream{Account: key.account, Kind: "access", ID: id.String()},
			By:     by,
			Events: []domain.Event{access.Unsealed{Class: key.class, Purpose: string(by.Via), Count: u.count}},
		})
	}
	v.write(ctx)
}

// write reports whether everything is written.
func (v *vault) write(ctx context.Context) bool {
	for account, commits := range v.unwritten {
		if err := v.store.Record(ctx, eventstore.Access, account, commits, false); err != nil {
			v.log.Error("openings of sealed data are not on record", "account", account, "error", err)
			continue
		}
		delete(v.unwritten, account)
	}
	return len(v.unwritten) == 0
}

// openRing opens the keys of a log: those of a server, and those of a command
// beside it.
func openRing(ctx context.Context, store *eventstore.Store, location string) (*keyring.Keyring, keyring.Root, error) {
	root, err := keyring.OpenRoot(ctx, location)
	if err != nil {
		return nil, nil, err
	}
	slate, err := store.Slate(ctx, eventstore.Keysets)
	if err != nil {
		return nil, nil, err
	}
	// Where keysets were before they could be wiped off.
	if err := slate.Adopt(ctx, "keysets"); err != nil {
		return nil, nil, err
	}
	return keyring.New(keysets{slate}, root, keyring.Options{}), root, nil
}

// keysets keeps the keyring's keysets on a slate beside the log.
type keysets struct{ slate *eventstore.Slate }

func (k keysets) Load(ctx context.Context, account string) ([]byte, uint64, error) {
	blob, revision, err := k.slate.Get(ctx, account)
	return blob, revision, asKeyring(err)
}

func (k keysets) Save(ctx context.Context, account string, blob []byte, revision uint64) (uint64, error) {
	revision, err := k.slate.Update(ctx, account, blob, revision)
	return revision, asKeyring(err)
}

func (k keysets) Delete(ctx context.Context, account string, revision uint64) error {
	return asKeyring(k.slate.Delete(ctx, account, revision))
}

func (k keysets) Sweep(ctx context.Context, account string, overwrite bool) error {
	return k.slate.Sweep(ctx, account, overwrite)
}

func (k keysets) Accounts(ctx context.Context) ([]string, error) { return k.slate.Keys(ctx) }

func (k keysets) Watch(ctx context.Context, changed func(account string)) error {
	return k.slate.Watch(ctx, changed)
}

// asKeyring gives the log's errors the names that the keyring knows.
func asKeyring(err error) error {
	switch {
	case errors.Is(err, eventstore.ErrNoEntry):
		return fmt.Errorf("%w: %w", keyring.ErrNotFound, err)
	case errors.Is(err, eventstore.ErrConflict):
		return fmt.Errorf("%w: %w", keyring.ErrConflict, err)
	}
	return err
}
