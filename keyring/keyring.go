// Package keyring holds the keys that personal content is sealed with, and
// forgets them on request.
//
// Keys are in memory while they are used, and the garbage collector decides when
// their bytes are overwritten: whoever can read this process's memory can read
// them.
package keyring

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// Class is a kind of sealed data. Each has keys of its own.
type Class string

// The classes.
const (
	Recipient Class = "recipient" // about one address: the subject is its blind index
	Envelope  Class = "envelope"  // the subject is the email's id
	Body      Class = "body"      // the subject is the email's id
	Secret    Class = "secret"    // signing keys: the subject is the sender domain's id
	User      Class = "user"      // about a person who signs in: the subject is their id
)

// classes in the order in which a keyset is written.
var classes = []Class{Recipient, Envelope, Body, Secret, User}

// The errors that callers tell apart.
var (
	ErrErased   = errors.New("keyring: the key was destroyed")
	ErrNotFound = errors.New("keyring: there is no such keyset")
	ErrConflict = errors.New("keyring: the keyset was changed by somebody else")
)

// Store keeps wrapped keysets. Its errors are ErrNotFound and ErrConflict, or
// faults.
type Store interface {
	Load(ctx context.Context, account string) (blob []byte, revision uint64, err error)
	Save(ctx context.Context, account string, blob []byte, revision uint64) (newRevision uint64, err error)
	Delete(ctx context.Context, account string, revision uint64) error
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
	delete(k.accounts, account)
	k.mu.Unlock()
}

// Create makes an account's keyset if there is none.
func (k *Keyring) Create(ctx context.Context, account string) error {
	if _, _, err := k.store.Load(ctx, account); !errors.Is(err, ErrNotFound) {
		return err
	}
	blob, err := k.root.Wrap(ctx, newKeyset().marshal(), []byte(account))
	if err != nil {
		return fmt.Errorf("keyring: wrap the keyset of %s: %w", account, err)
	}
	_, err = k.store.Save(ctx, account, blob, 0)
	if errors.Is(err, ErrConflict) {
		return nil // somebody else has just made it
	}
	return err
}

// Account returns an account's keys, or ErrErased if they were destroyed.
func (k *Keyring) Account(ctx context.Context, account string) (*Account, error) {
	k.mu.RLock()
	a := k.accounts[account]
	k.mu.RUnlock()
	if a != nil {
		return a, nil
	}
	keys, _, err := k.load(ctx, account)
	if err != nil {
		return nil, err
	}
	a = &Account{id: account, keys: keys}
	k.mu.Lock()
	defer k.mu.Unlock()
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
		return nil, 0, fmt.Errorf("%w: account %s", ErrErased, account)
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

// Forget destroys the keys of subjects. What was sealed with them can never be
// opened again.
func (k *Keyring) Forget(ctx context.Context, account string, class Class, subjects ...string) error {
	for range 100 {
		keys, revision, err := k.load(ctx, account)
		if err != nil {
			return err
		}
		changed := false
		for _, s := range subjects {
			changed = keys.forget(class, s) || changed
		}
		if !changed {
			return nil
		}
		blob, err := k.root.Wrap(ctx, keys.marshal(), []byte(account))
		if err != nil {
			return fmt.Errorf("keyring: wrap the keyset of %s: %w", account, err)
		}
		_, err = k.store.Save(ctx, account, blob, revision)
		k.drop(account)
		if !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return ErrConflict
}

// ForgetAccount destroys all keys of an account.
func (k *Keyring) ForgetAccount(ctx context.Context, account string) error {
	_, revision, err := k.store.Load(ctx, account)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	err = k.store.Delete(ctx, account, revision)
	k.drop(account)
	return err
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

// Account is the keys of one account.
type Account struct {
	id   string
	keys *keyset
}

// Index is the blind index of an address: the same for the same address in the
// same account, and no way back. Hex of 8 bytes.
func (a *Account) Index(address string) string {
	return hex.EncodeToString(mac(a.keys.index, "email/v1|", strings.ToLower(address))[:8])
}

// A box is a version, a nonce, a commitment to the key, and the ciphertext.
// AES-GCM alone lets one ciphertext open under two keys to two texts; the
// commitment does not.
const (
	boxVersion   = 1
	nonceSize    = 12
	commitSize   = 16
	boxOverhead  = 1 + nonceSize + commitSize
	labelEncrypt = "encrypt/v1"
	labelCommit  = "commit/v1"
)

// Seal encrypts plain for a subject, and binds it to aad.
func (a *Account) Seal(class Class, subject string, plain, aad []byte) ([]byte, error) {
	key, err := a.keys.key(class, subject)
	if err != nil {
		return nil, err
	}
	box := make([]byte, boxOverhead, boxOverhead+len(plain)+16)
	box[0] = boxVersion
	nonce := box[1 : 1+nonceSize]
	_, _ = rand.Read(nonce) // never fails
	copy(box[1+nonceSize:], mac(key, labelCommit, string(nonce))[:commitSize])
	gcm, err := gcmOf(key)
	if err != nil {
		return nil, err
	}
	return gcm.Seal(box, nonce, plain, aad), nil
}

// Open decrypts a box, or returns ErrErased if its key was destroyed.
func (a *Account) Open(_ context.Context, class Class, subject string, box, aad []byte) ([]byte, error) {
	key, err := a.keys.key(class, subject)
	if err != nil {
		return nil, err
	}
	if len(box) < boxOverhead || box[0] != boxVersion {
		return nil, errors.New("keyring: this is not a sealed box")
	}
	nonce := box[1 : 1+nonceSize]
	if !hmac.Equal(box[1+nonceSize:boxOverhead], mac(key, labelCommit, string(nonce))[:commitSize]) {
		return nil, errors.New("keyring: the box was sealed with another key")
	}
	gcm, err := gcmOf(key)
	if err != nil {
		return nil, err
	}
	plain, err := gcm.Open(nil, nonce, box[boxOverhead:], aad)
	if err != nil {
		return nil, errors.New("keyring: the box was changed, or belongs elsewhere")
	}
	return plain, nil
}

func gcmOf(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(mac(key, labelEncrypt))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
