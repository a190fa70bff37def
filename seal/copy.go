package seal

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// CopyLog copies the seal of a log into another folder as its newest checkpoint
// has it, while somebody goes on sealing: a checkpoint that is read first is
// covered by whatever tiles are read after it.
func CopyLog(from, to string, trusted Verifiers, origin string) (Checkpoint, error) {
	c, err := copyLog(from, to, trusted, origin)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("seal: copy the seal of %s: %w", origin, err)
	}
	return c, nil
}

func copyLog(from, to string, trusted Verifiers, origin string) (Checkpoint, error) {
	// What witnesses have cosigned is never newer than the newest checkpoint.
	witnessed, err := ReadWitnessed(from)
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := ReadCheckpoint(from, trusted, origin)
	if err != nil {
		return Checkpoint{}, err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return Checkpoint{}, err
	}
	for n := 0; n == 0 || c.Size>>(tileHeight*n) > 0; n++ {
		if err := copyTiles(filepath.Join(from, levelFile(n)), filepath.Join(to, levelFile(n)), c.Size>>(tileHeight*n)*tlog.HashSize); err != nil {
			return Checkpoint{}, err
		}
	}
	tree, err := ReadTree(to)
	if err != nil {
		return Checkpoint{}, err
	}
	defer tree.Close()
	if root, err := tree.Root(c.Size); err != nil || root != c.Root {
		return Checkpoint{}, errors.Join(fmt.Errorf("%w: its tiles do not lead to the head that was signed", ErrBroken), err)
	}
	if witnessed != nil {
		if err := WriteFile(filepath.Join(to, witnessedFile), witnessed, 0o600); err != nil {
			return Checkpoint{}, err
		}
	}
	return c, WriteFile(filepath.Join(to, checkpointFile), c.Note, 0o600)
}

func copyTiles(from, to string, size int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(out, in, size)
	return errors.Join(err, out.Sync(), out.Close())
}

// documentVersion begins what is signed of a document, so that it is never taken
// for a checkpoint.
const documentVersion = "postbook.document/v1"

func documentText(name string, document []byte) string {
	sum := sha256.Sum256(document)
	return documentVersion + "\n" + name + "\n" + hex.EncodeToString(sum[:]) + "\n"
}

// SignDocument signs a document, apart from it: a note of its name and its
// SHA-256.
func (k *Keys) SignDocument(name string, document []byte, now time.Time) ([]byte, error) {
	var signers []note.Signer
	for _, key := range k.Signing(now) {
		s, err := note.NewSigner(key.secret)
		if err != nil {
			return nil, errDamaged
		}
		signers = append(signers, s)
	}
	signed, err := note.Sign(&note.Note{Text: documentText(name, document)}, signers...)
	if err != nil {
		return nil, fmt.Errorf("seal: sign %s: %w", name, err)
	}
	return signed, nil
}

// CheckDocument checks that a document of that name was signed by a key that is
// trusted.
func (v Verifiers) CheckDocument(name string, document, signed []byte) error {
	n, err := note.Open(signed, note.VerifierList(v.Log...))
	if err != nil {
		return fmt.Errorf("seal: %s is signed by no key that is trusted: %w", name, err)
	}
	if n.Text != documentText(name, document) {
		return fmt.Errorf("seal: %s is not the one that was signed, but %q is", name, strings.TrimSpace(n.Text))
	}
	return nil
}
