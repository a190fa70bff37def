// Package keyring holds the keys that personal content is sealed with, and
// forgets them on request.
//
// Keys are in memory while they are used, and the garbage collector decides when
// their bytes are overwritten: whoever can read this process's memory can read
// them.
package keyring

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/domain"
)

// Class is a kind of sealed data. Each has keys of its own.
type Class string

// The classes.
const (
	Recipient Class = "recipient" // about one address: the subject is its blind index
	Envelope  Class = "envelope"  // the subject is the email's id; about its recipients
	Body      Class = "body"      // the subject is the email's id; about its recipients
	Secret    Class = "secret"    // signing keys: the subject is the sender domain's id
	User      Class = "user"      // about a person who signs in: the subject is their id
)

// classes in the order in which a keyset is written.
var classes = []Class{Recipient, Envelope, Body, Secret, User}

// The errors that callers tell apart.
var (
	ErrErased   = domain.ErrErased
	ErrNotFound = errors.New("keyring: there is no such keyset")
	ErrConflict = errors.New("keyring: the keyset was changed by somebody else")
)

// Store keeps wrapped keysets. Its errors are ErrNotFound and ErrConflict, or
// faults.
type Store interface {
	Load(ctx context.Context, account string) (blob []byte, revision uint64, err error)
	Save(ctx context.Context, account string, blob []byte, revision uint64) (newRevision uint64, err error)
	Delete(ctx context.Context, account string, revision uint64) error

	// Sweep makes sure that no earlier revision is left in any file. To overwrite
	// the bytes takes longer, and is needed where the root key goes on opening them.
	Sweep(ctx context.Context, account string, overwrite bool) error

	// Accounts are all that have a keyset.
	Accounts(ctx context.Context) ([]string, error)

	// Watch tells which accounts' keysets have changed; an empty one stands for any.
	Watch(ctx context.Context, changed func(account string)) error
}

// Options of a keyring.
type Options struct {
	CacheAccounts int // keysets in memory; 0 is 10,000
}

// Platform is the account whose keys are the platform's own.
const Platform = "platform"

// Keyring holds the keys of all accounts.
type Keyring struct {
	store   Store
	root    Root
	options Options

	mu       sync.RWMutex
	accounts map[string]*Account
	changes  int // how often something was dropped
}

// New makes a keyring over a store of keysets that root wraps.
func New(store Store, root Root, options Options) *Keyring {
	if options.CacheAccounts == 0 {
		options.CacheAccounts = 10_000
	}
	return &Keyring{store: store, root: root, options: options, accounts: map[string]*Account{}}
}

// Run drops keysets from memory that were changed elsewhere, until ctx ends.
func (k *Keyring) Run(ctx context.Context) error {
	return k.store.Watch(ctx, k.drop)
}

func (k *Keyring) drop(account string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if account == "" {
		clear(k.accounts)
	}
	delete(k.accounts, account)
	k.changes++
}

// Create makes an account's keyset if there is none. Keys that were destroyed are
// not made again.
func (k *Keyring) Create(ctx context.Context, account string) error {
	if _, _, err := k.store.Load(ctx, account); !errors.Is(err, ErrNotFound) {
		return err
	}
	err := k.save(ctx, account, newKeyset(), 0)
	if errors.Is(err, ErrConflict) {
		return nil // somebody else has just made it, or it was destroyed
	}
	return err
}

// save wraps a keyset and keeps it. The root's key may be replaced meanwhile, and
// whoever replaces it may have looked at this keyset before: then it is wrapped
// once more, because the older key is about to be destroyed.
func (k *Keyring) save(ctx context.Context, account string, keys *keyset, revision uint64) error {
	for {
		blob, err := k.root.Wrap(ctx, keys.marshal(), []byte(account))
		if err != nil {
			return fmt.Errorf("keyring: wrap the keyset of %s: %w", account, err)
		}
		revision, err = k.store.Save(ctx, account, blob, revision)
		k.drop(account)
		if err != nil {
			return err
		}
		newest, err := k.root.Newest(ctx, blob, []byte(account))
		if err != nil {
			return fmt.Errorf("keyring: wrap the keyset of %s: %w", account, err)
		}
		if newest {
			return nil
		}
	}
}

// Account returns an account's keys, or ErrErased if they were destroyed.
func (k *Keyring) Account(ctx context.Context, account string) (*Account, error) {
	k.mu.RLock()
	a := k.accounts[account]
	k.mu.RUnlock()
	if a != nil {
		return a, nil
	}
	k.mu.RLock()
	changes := k.changes
	k.mu.RUnlock()
	keys, _, err := k.load(ctx, account)
	if err != nil {
		return nil, err
	}
	a = newAccount(account, keys)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.changes != changes {
		return a, nil // it may have been changed since it was loaded, and is not kept
	}
	if len(k.accounts) >= k.options.CacheAccounts {
		for id := range k.accounts { // any one
			delete(k.accounts, id)
			break
		}
	}
	k.accounts[account] = a
	return a, nil
}

func (k *Keyring) load(ctx context.Context, account string) (*keyset, uint64, error) {
	blob, revision, err := k.store.Load(ctx, account)
	if errors.Is(err, ErrNotFound) {
		return nil, 0, fmt.Errorf("account %s: %w", account, ErrErased)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("keyring: load the keyset of %s: %w", account, err)
	}
	// The account's name is bound to the blob, so that two cannot be swapped.
	plain, err := k.root.Unwrap(ctx, blob, []byte(account))
	if err != nil {
		return nil, 0, fmt.Errorf("keyring: unwrap the keyset of %s: %w", account, err)
	}
	keys, err := unmarshal(plain)
	return keys, revision, err
}

// Forget destroys the keys of subjects, and returns how many there were. What was
// sealed with them can never be opened again.
func (k *Keyring) Forget(ctx context.Context, account string, class Class, subjects ...string) (int, error) {
	destroyed, err := k.forget(ctx, account, class, subjects)
	if err != nil {
		return 0, err
	}
	// An earlier call may have been interrupted before this.
	return destroyed, k.store.Sweep(ctx, account, true)
}

func (k *Keyring) forget(ctx context.Context, account string, class Class, subjects []string) (int, error) {
	for range 100 {
		keys, revision, err := k.load(ctx, account)
		if err != nil {
			return 0, err
		}
		destroyed := 0
		for _, s := range subjects {
			if keys.forget(class, s) {
				destroyed++
			}
		}
		if destroyed == 0 {
			k.drop(account) // somebody else did it, and what is in memory may be older
			return 0, nil
		}
		err = k.save(ctx, account, keys, revision)
		if !errors.Is(err, ErrConflict) {
			return destroyed, err
		}
	}
	return 0, ErrConflict
}

// ForgetRecipient destroys a recipient's keys up to a generation: all that was
// sealed about them is closed for ever. Later ones stay.
func (k *Keyring) ForgetRecipient(ctx context.Context, account, recipient string, generation int) (int, error) {
	var names []string
	for g := range generation + 1 {
		names = append(names, person{recipient, g}.name())
	}
	return k.Forget(ctx, account, Recipient, names...)
}

// ForgetAccount destroys all keys of an account. It reports whether there were any.
func (k *Keyring) ForgetAccount(ctx context.Context, account string) (bool, error) {
	for range 100 {
		_, revision, err := k.store.Load(ctx, account)
		if errors.Is(err, ErrNotFound) {
			k.drop(account)
			return false, k.store.Sweep(ctx, account, true)
		}
		if err != nil {
			return false, err
		}
		err = k.store.Delete(ctx, account, revision)
		k.drop(account)
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			return false, err
		}
		return true, k.store.Sweep(ctx, account, true)
	}
	return false, ErrConflict
}

const rewrapAtOnce = 16

// Rewrap wraps every keyset with the root's newest key, also those that are made
// meanwhile, and returns how many there are. What it has done already it need not
// do again.
func (k *Keyring) Rewrap(ctx context.Context) (int, error) {
	for {
		accounts, err := k.store.Accounts(ctx)
		if err != nil {
			return 0, fmt.Errorf("keyring: list the keysets: %w", err)
		}
		var changed atomic.Bool
		group, all := errgroup.WithContext(ctx)
		group.SetLimit(rewrapAtOnce) // they wait for the disk together
		for _, account := range accounts {
			group.Go(func() error {
				again, err := k.rewrap(all, account)
				if again {
					changed.Store(true)
				}
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return 0, err
		}
		if !changed.Load() {
			return len(accounts), nil
		}
	}
}

// rewrap reports whether there was something to do.
func (k *Keyring) rewrap(ctx context.Context, account string) (bool, error) {
	for range 100 {
		blob, revision, err := k.store.Load(ctx, account)
		if errors.Is(err, ErrNotFound) {
			return false, nil // it was erased
		}
		if err != nil {
			return false, fmt.Errorf("keyring: load the keyset of %s: %w", account, err)
		}
		newest, err := k.root.Newest(ctx, blob, []byte(account))
		if newest || err != nil {
			return false, err
		}
		plain, err := k.root.Unwrap(ctx, blob, []byte(account))
		if err != nil {
			return false, fmt.Errorf("keyring: unwrap the keyset of %s: %w", account, err)
		}
		keys, err := unmarshal(plain)
		if err != nil {
			return false, err
		}
		err = k.save(ctx, account, keys, revision)
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			return false, err
		}
		return true, k.store.Sweep(ctx, account, false)
	}
	return false, ErrConflict
}

// MAC authenticates data with the platform's key, for one purpose.
func (k *Keyring) MAC(ctx context.Context, purpose string, data []byte) ([]byte, error) {
	key, err := k.DeriveKey(ctx, purpose)
	if err != nil {
		return nil, err
	}
	return mac(key, string(data)), nil
}

// DeriveKey returns the platform's key for one purpose, 32 bytes.
func (k *Keyring) DeriveKey(ctx context.Context, purpose string) ([]byte, error) {
	a, err := k.Account(ctx, Platform)
	if err != nil {
		return nil, err
	}
	return mac(a.keys.mac, "purpose/v1|", purpose), nil
}
