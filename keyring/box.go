package keyring

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Account is the keys of one account.
type Account struct {
	id   string
	keys *keyset

	// derived holds keys that were used last: an email is sealed with its recipient's
	// three times when it is taken in, and opened with all of its keys moments later.
	// It goes when the keyset does, which is whenever anything in it was forgotten.
	derived *lru.Cache[derivation, []byte]
}

type derivation struct {
	class   Class
	subject string
}

// maxDerived bounds the keys of one account that are kept, to about 16 kB.
const maxDerived = 128

func newAccount(id string, keys *keyset) *Account {
	derived, err := lru.New[derivation, []byte](maxDerived)
	if err != nil {
		panic(err) // a size below one
	}
	return &Account{id: id, keys: keys, derived: derived}
}

// key derives the key of a subject, or returns ErrErased. It must not be changed.
func (a *Account) key(class Class, subject string) ([]byte, error) {
	of := derivation{class, subject}
	if key, ok := a.derived.Get(of); ok {
		return key, nil
	}
	key, err := a.keys.key(class, subject)
	if err != nil {
		return nil, err
	}
	a.derived.Add(of, key)
	return key, nil
}

// Index is the blind index of an address: the same for the same address in the
// same account, and no way back. Hex of 8 bytes.
func (a *Account) Index(address string) string {
	return hex.EncodeToString(mac(a.keys.index, "email/v1|", strings.ToLower(address))[:8])
}

// A box is a version, whom it is about, a nonce, a commitment to the key, and the
// ciphertext. AES-GCM alone lets one ciphertext open under two keys to two texts;
// the commitment does not.
//
// A plain box is sealed with the key of its subject alone. A box about people is
// sealed with a key that is made of its subject's and of each of theirs: it opens
// while all of them are there, and to forget any one of these people is to forget
// every box that is about them, whenever it was made.
const (
	plainBox     = 1
	boxAbout     = 2
	nonceSize    = 12
	commitSize   = 16
	labelEncrypt = "encrypt/v1"
	labelCommit  = "commit/v1"
	labelAbout   = "about/v1"

	maxAbout       = 255
	maxGenerations = 1 << 16
)

// person is somebody whom a box is about. Somebody who was forgotten can be
// written to again later: they get a key of the next generation, which opens
// nothing from before.
type person struct {
	subject    string
	generation int
}

// name is the subject's name in the tree of keys.
func (p person) name() string {
	if p.generation == 0 {
		return p.subject
	}
	return fmt.Sprintf("%s\x00%d", p.subject, p.generation)
}

// Generation is that of a recipient's key which is alive.
func (a *Account) Generation(recipient string) int {
	p := person{subject: recipient}
	for p.generation < maxGenerations {
		if above(a.keys.trees[Recipient], leaf(p.name())) >= 0 {
			break
		}
		p.generation++
	}
	return p.generation
}

// Seal encrypts plain for a subject, and binds it to aad. For a recipient the
// subject is the blind index.
func (a *Account) Seal(class Class, subject string, plain, aad []byte) ([]byte, error) {
	if class == Recipient {
		return a.SealAbout(class, subject, []string{subject}, plain, aad)
	}
	key, err := a.key(class, subject)
	if err != nil {
		return nil, err
	}
	return seal([]byte{plainBox}, key, plain, aad)
}

// SealAbout encrypts plain for a subject, about the recipients of these blind
// indexes.
func (a *Account) SealAbout(class Class, subject string, recipients []string, plain, aad []byte) ([]byte, error) {
	recipients = slices.Compact(slices.Sorted(slices.Values(recipients)))
	if len(recipients) > maxAbout {
		return nil, fmt.Errorf("keyring: a box is about at most %d recipients", maxAbout)
	}
	people := make([]person, len(recipients))
	for i, r := range recipients {
		people[i] = person{r, a.Generation(r)}
	}
	return a.sealAbout(class, subject, people, plain, aad)
}

// SealBeside encrypts plain as the box beside it was, about the same people and
// with keys of the same generation. If those were destroyed it returns ErrErased:
// what belongs to something that was forgotten is not sealed with a newer key.
func (a *Account) SealBeside(class Class, subject string, beside, plain, aad []byte) ([]byte, error) {
	people, _, err := about(beside)
	if err != nil {
		return nil, err
	}
	if beside[0] == plainBox {
		key, err := a.key(class, subject)
		if err != nil {
			return nil, err
		}
		return seal([]byte{plainBox}, key, plain, aad)
	}
	return a.sealAbout(class, subject, people, plain, aad)
}

func (a *Account) sealAbout(class Class, subject string, people []person, plain, aad []byte) ([]byte, error) {
	head := []byte{boxAbout, byte(len(people))}
	for _, p := range people {
		if len(p.subject) > 255 || p.generation >= maxGenerations {
			return nil, fmt.Errorf("keyring: %q is no blind index", p.subject)
		}
		head = append(append(head, byte(len(p.subject))), p.subject...)
		head = binary.BigEndian.AppendUint16(head, uint16(p.generation))
	}
	key, err := a.keyAbout(class, subject, people, head)
	if err != nil {
		return nil, err
	}
	return seal(head, key, plain, aad)
}

// keyAbout makes a key of the subject's and of each person's. A recipient's own
// boxes have no other subject than the recipient.
func (a *Account) keyAbout(class Class, subject string, people []person, head []byte) ([]byte, error) {
	parts := []string{labelAbout, string(class), string(head)}
	if class != Recipient {
		key, err := a.key(class, subject)
		if err != nil {
			return nil, err
		}
		parts = append(parts, string(key))
	}
	for _, p := range people {
		key, err := a.key(Recipient, p.name())
		if err != nil {
			return nil, err
		}
		parts = append(parts, string(key))
	}
	if class == Recipient && (len(people) != 1 || people[0].subject != subject) {
		return nil, errBelongsElsewhere
	}
	return mac(a.keys.mac, parts...), nil
}

var (
	errNoBox            = errors.New("keyring: this is not a sealed box")
	errBelongsElsewhere = errors.New("keyring: the box was changed, or belongs elsewhere")
)

// about reads whom a box is about, and how long its head is.
func about(box []byte) (people []person, head int, err error) {
	if len(box) == 0 || box[0] != plainBox && box[0] != boxAbout {
		return nil, 0, errNoBox
	}
	if box[0] == plainBox {
		return nil, 1, nil
	}
	if len(box) < 2 {
		return nil, 0, errNoBox
	}
	head = 2
	for range box[1] {
		if len(box) < head+1 || len(box) < head+1+int(box[head])+2 {
			return nil, 0, errNoBox
		}
		end := head + 1 + int(box[head])
		people = append(people, person{string(box[head+1 : end]), int(binary.BigEndian.Uint16(box[end:]))})
		head = end + 2
	}
	return people, head, nil
}

// Plain reports whether a box is about nobody: to forget what is in it, the key of
// its subject has to be destroyed.
func Plain(box []byte) bool { return len(box) > 0 && box[0] == plainBox }

// seal encrypts plain with a key, after the head of its box.
func seal(head, key, plain, aad []byte) ([]byte, error) {
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce) // never fails
	gcm, commitment, err := lock(key, nonce)
	if err != nil {
		return nil, err
	}
	box := make([]byte, 0, len(head)+nonceSize+commitSize+len(plain)+gcm.Overhead())
	box = append(append(append(box, head...), nonce...), commitment...)
	return gcm.Seal(box, nonce, plain, aad), nil
}

// Check returns ErrErased if a key that a box needs was destroyed.
func (a *Account) Check(class Class, subject string, box []byte) error {
	_, _, err := a.keyOf(class, subject, box)
	return err
}

// keyOf derives the key of a box, and tells how long the box's head is.
func (a *Account) keyOf(class Class, subject string, box []byte) (key []byte, head int, err error) {
	people, head, err := about(box)
	switch {
	case err != nil:
		return nil, 0, err
	case box[0] == plainBox:
		key, err = a.key(class, subject)
	default:
		key, err = a.keyAbout(class, subject, people, box[:head])
	}
	return key, head, err
}

// Open decrypts a box, or returns ErrErased if a key that it needs was destroyed.
func (a *Account) Open(_ context.Context, class Class, subject string, box, aad []byte) ([]byte, error) {
	key, head, err := a.keyOf(class, subject, box)
	if err != nil {
		return nil, err
	}
	body := head + nonceSize + commitSize
	if len(box) < body {
		return nil, errNoBox
	}
	nonce := box[head : head+nonceSize]
	gcm, commitment, err := lock(key, nonce)
	if err != nil {
		return nil, err
	}
	if !hmac.Equal(box[head+nonceSize:body], commitment) {
		return nil, errors.New("keyring: the box was sealed with another key")
	}
	plain, err := gcm.Open(nil, nonce, box[body:], aad)
	if err != nil {
		return nil, errBelongsElsewhere
	}
	return plain, nil
}

// lock makes of a box's key what encrypts it, and the commitment to the key.
func lock(key, nonce []byte) (cipher.AEAD, []byte, error) {
	h := hmac.New(sha256.New, key) // once for both: it costs as much as what is sealed
	h.Write([]byte(labelEncrypt))
	gcm, err := gcmOf(h.Sum(nil))
	h.Reset()
	h.Write([]byte(labelCommit))
	h.Write(nonce)
	return gcm, h.Sum(nil)[:commitSize], err
}

func gcmOf(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
