package seal

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	tdnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// Key signs checkpoints: an Ed25519 key in the form of C2SP signed-note.
type Key struct {
	secret string // PRIVATE+KEY+<name>+<hash>+<key>
	Public string // <name>+<hash>+<key>
	Since  time.Time
}

// Keys are the keys of an instance, newest first. The newest signs, and for
// Overlap the one before it too, so that whoever knows only the old one has time
// to learn of the new.
type Keys struct {
	Instance string // names it, and its keys
	all      []Key
	path     string
}

// Overlap is how long a key goes on signing beside its successor.
const Overlap = 30 * 24 * time.Hour

// OpenKeys reads an instance's keys, and makes the first if there is none. The
// file is apart from the keys of the data: neither opens the other's.
func OpenKeys(path string, now time.Time) (*Keys, error) {
	k := &Keys{path: path}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		var id [6]byte
		_, _ = rand.Read(id[:]) // never fails
		k.Instance = "postbook/" + hex.EncodeToString(id[:])
		return k, k.Rotate(now)
	}
	if err != nil {
		return nil, fmt.Errorf("seal: open the signing keys: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("seal: %s may be read by others (mode %04o): make it 0600", path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("seal: open the signing keys: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		key, err := parseKey(strings.TrimSpace(line))
		if err != nil {
			return nil, fmt.Errorf("seal: %s: %w", path, err)
		}
		k.all = append(k.all, key)
	}
	if len(k.all) == 0 {
		return nil, fmt.Errorf("seal: %s holds no key", path)
	}
	k.Instance, _, _ = strings.Cut(k.all[0].Public, "+")
	return k, nil
}

func parseKey(line string) (Key, error) {
	since, secret, ok := strings.Cut(line, " ")
	at, err := time.Parse(time.RFC3339, since)
	if !ok || err != nil {
		return Key{}, errors.New("a line is a time and a key")
	}
	// Its errors would quote the key, which is secret.
	parts := strings.SplitN(secret, "+", 5)
	if len(parts) != 5 {
		return Key{}, errDamaged
	}
	seed, err := base64.StdEncoding.DecodeString(parts[4])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return Key{}, errDamaged
	}
	private := ed25519.NewKeyFromSeed(seed[1:])
	public, err := note.NewEd25519VerifierKey(parts[2], private.Public().(ed25519.PublicKey)) //nolint:errcheck // it is one
	if _, bad := note.NewSigner(secret); err != nil || bad != nil {
		return Key{}, errDamaged
	}
	return Key{secret: secret, Public: public, Since: at}, nil
}

var errDamaged = errors.New("a key is damaged")

// signers sign a checkpoint's text: one the head, and one the head together with
// the time (C2SP tlog-cosignature).
func (k Key) signers() ([]note.Signer, error) {
	plain, err := note.NewSigner(k.secret)
	if err != nil {
		return nil, errDamaged
	}
	timed, err := tdnote.NewSignerForCosignatureV1(k.secret)
	if err != nil {
		return nil, errDamaged
	}
	return []note.Signer{plain, timed}, nil
}

// Rotate makes a new key, which signs from now on.
func (k *Keys) Rotate(now time.Time) error {
	secret, public, err := note.GenerateKey(rand.Reader, k.Instance)
	if err != nil {
		return fmt.Errorf("seal: make a signing key: %w", err)
	}
	all := append([]Key{{secret, public, now.UTC().Truncate(time.Second)}}, k.all...)
	var text strings.Builder
	for _, key := range all {
		fmt.Fprintf(&text, "%s %s\n", key.Since.Format(time.RFC3339), key.secret)
	}
	if err := WriteFile(k.path, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("seal: keep the signing keys: %w", err)
	}
	k.all = all
	return nil
}

// Signing are the keys that sign at a time.
func (k *Keys) Signing(now time.Time) []Key {
	if len(k.all) > 1 && now.Sub(k.all[0].Since) < Overlap {
		return k.all[:2]
	}
	return k.all[:1]
}

// Public are all keys that ever signed, newest first, as C2SP signed-note writes
// them.
func (k *Keys) Public() []string {
	keys := make([]string, len(k.all))
	for i, key := range k.all {
		keys[i] = key.Public
	}
	return keys
}

// Verifiers are the public keys that are trusted.
type Verifiers struct {
	Log       []note.Verifier // that sign as the log: two for each key
	Witnesses []note.Verifier
}

// ParseVerifiers reads public keys in the form of C2SP signed-note: those of an
// instance, and those of witnesses. One that is given twice counts once: a note
// cannot be opened with two keys of one name and hash.
func ParseVerifiers(log, witnesses []string) (Verifiers, error) {
	var v Verifiers
	keys := once(log)
	if len(keys) == 0 {
		return v, errors.New("seal: no public key of a log was given")
	}
	for _, key := range keys {
		plain, err := note.NewVerifier(key)
		if err != nil {
			return v, fmt.Errorf("seal: %q is no public key of a log: %w", key, err)
		}
		timed, err := tdnote.NewVerifierForCosignatureV1(key)
		if err != nil {
			return v, fmt.Errorf("seal: %q is no public key of a log: %w", key, err)
		}
		v.Log = append(v.Log, plain, timed)
	}
	for _, key := range once(witnesses) {
		w, err := tdnote.NewVerifierForCosignatureV1(key)
		if err != nil {
			return v, fmt.Errorf("seal: %q is no public key of a witness: %w", key, err)
		}
		v.Witnesses = append(v.Witnesses, w)
	}
	return v, nil
}

// once is the keys in their order, each of them once. One text may hold several, as a
// file of keys does after a rotation.
func once(texts []string) (kept []string) {
	for _, t := range texts {
		for _, key := range strings.Fields(t) {
			if !slices.Contains(kept, key) {
				kept = append(kept, key)
			}
		}
	}
	return kept
}
