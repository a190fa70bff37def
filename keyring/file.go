package keyring

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// fileRoot is a key in a file. While it is replaced there are more files beside
// it: FILE.next holds the key that will be switched to, and FILE.previous the one
// that only opens from then on. FILE itself is there at every moment.
type fileRoot struct {
	path string

	mu   sync.Mutex
	keys [][]byte // the newest first
}

func (r *fileRoot) nextPath() string     { return r.path + ".next" }
func (r *fileRoot) previousPath() string { return r.path + ".previous" }

// openFile reads the key, and makes one if there is none.
func openFile(path string) (Root, error) {
	r := &fileRoot{path: path}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if _, err := createKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return r, r.reload()
}

// reload reads the files again: another process may have replaced the key.
func (r *fileRoot) reload() error {
	newest, err := readKey(r.path)
	if err != nil {
		return err
	}
	keys := [][]byte{newest}
	previous, err := readKey(r.previousPath())
	if err == nil {
		keys = append(keys, previous)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r.mu.Lock()
	r.keys = keys
	r.mu.Unlock()
	return nil
}

func (r *fileRoot) held() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys
}

// readKey reads a key of 32 bytes. It refuses a file that others may read.
func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("keyring: open the root key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("keyring: open the root key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("keyring: others may read the root key %s (mode %o): take that back with `chmod 600 %s`, and consider it known", path, info.Mode().Perm(), path)
	}
	key, err := io.ReadAll(io.LimitReader(f, seedSize+1))
	if err != nil {
		return nil, fmt.Errorf("keyring: read the root key: %w", err)
	}
	if len(key) != seedSize {
		return nil, fmt.Errorf("keyring: the root key %s holds %d bytes, not %d", path, len(key), seedSize)
	}
	return key, nil
}

// partPattern is what the names of keys that are being written end with.
const partPattern = ".*.part"

// createKey writes a new key. It is on disk, whole, before anything is sealed
// with it.
func createKey(path string) ([]byte, error) {
	key := make([]byte, seedSize)
	_, _ = rand.Read(key) // never fails
	// The name is one that no file has: what a killed process has left may be the
	// second name of a key that is in use.
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+partPattern)
	if err != nil {
		return nil, fmt.Errorf("keyring: make the root key: %w", err)
	}
	part := f.Name()
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("keyring: write the root key: %w", err)
	}
	// A link fails if somebody else was faster, and a rename would not.
	if err := errors.Join(os.Link(part, path), os.Remove(part), syncDir(path)); err != nil {
		return nil, fmt.Errorf("keyring: write the root key: %w", err)
	}
	return key, nil
}

// syncDir makes the names beside a file durable.
func syncDir(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Wrap encrypts a keyset with the key that is in the file now.
func (r *fileRoot) Wrap(_ context.Context, plain, aad []byte) ([]byte, error) {
	if err := r.reload(); err != nil {
		return nil, err
	}
	gcm, err := gcmOf(mac(r.held()[0], labelEncrypt))
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, gcm.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return gcm.Seal(nonce, nonce, plain, aad), nil
}

// Unwrap decrypts a keyset. If no key that is known opens it, the files are read
// again.
func (r *fileRoot) Unwrap(_ context.Context, wrapped, aad []byte) ([]byte, error) {
	for _, key := range r.held() {
		if plain, err := unwrap(key, wrapped, aad); err == nil {
			return plain, nil
		}
	}
	if err := r.reload(); err != nil {
		return nil, err
	}
	for _, key := range r.held() {
		if plain, err := unwrap(key, wrapped, aad); err == nil {
			return plain, nil
		}
	}
	return nil, errors.New("the root key is not the one that it was wrapped with, or it was changed")
}

func unwrap(key, wrapped, aad []byte) ([]byte, error) {
	gcm, err := gcmOf(mac(key, labelEncrypt))
	if err != nil {
		return nil, err
	}
	if len(wrapped) < gcm.NonceSize() {
		return nil, errKeyset
	}
	return gcm.Open(nil, wrapped[:gcm.NonceSize()], wrapped[gcm.NonceSize():], aad)
}

// Newest reports whether the key that is in the file now has wrapped something.
func (r *fileRoot) Newest(_ context.Context, wrapped, aad []byte) (bool, error) {
	if err := r.reload(); err != nil {
		return false, err
	}
	_, err := unwrap(r.held()[0], wrapped, aad)
	return err == nil, nil
}

// fingerprint names a key, and says nothing else about it.
func fingerprint(key []byte) string {
	sum := sha256.Sum256(append([]byte("postbook/root-key/v1\x00"), key...))
	return hex.EncodeToString(sum[:8])
}

// Next writes the key that will be switched to beside the one in use.
func (r *fileRoot) Next(context.Context) (from, to string, err error) {
	if err := r.reload(); err != nil {
		return "", "", err
	}
	if len(r.held()) > 1 {
		return "", "", fmt.Errorf("keyring: %s is still there: what it wraps was not wrapped anew, so the key cannot be replaced again yet", r.previousPath())
	}
	next, err := readKey(r.nextPath())
	if errors.Is(err, fs.ErrNotExist) {
		next, err = createKey(r.nextPath())
	}
	if err != nil {
		return "", "", err
	}
	return fingerprint(r.held()[0]), fingerprint(next), nil
}

// Sees reports whether the key called to lies beside the one in use, or in its place.
func (r *fileRoot) Sees(_ context.Context, to string) (bool, error) {
	for _, path := range []string{r.nextPath(), r.path} {
		key, err := readKey(path)
		if err == nil && fingerprint(key) == to {
			return true, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

// Switch keeps today's key under another name, where it only opens, and puts the
// next one in its place. Each step leaves a file of the key's name.
func (r *fileRoot) Switch(_ context.Context, to string) error {
	if err := r.reload(); err != nil {
		return err
	}
	if fingerprint(r.held()[0]) == to {
		return nil
	}
	next, err := readKey(r.nextPath())
	if err != nil {
		return fmt.Errorf("keyring: the key %s, which is to be the newest, is gone: %w", to, err)
	}
	if fingerprint(next) != to {
		return fmt.Errorf("keyring: %s does not hold the key %s, which is to be the newest", r.nextPath(), to)
	}
	err = os.Link(r.path, r.previousPath())
	if errors.Is(err, fs.ErrExist) {
		// An earlier try was interrupted, or it is something that nobody knows.
		var previous []byte
		if previous, err = readKey(r.previousPath()); err == nil && !bytes.Equal(previous, r.held()[0]) {
			err = fmt.Errorf("%s holds another key", r.previousPath())
		}
	}
	if err != nil {
		return fmt.Errorf("keyring: keep the older root key: %w", err)
	}
	if err := syncDir(r.path); err != nil {
		return fmt.Errorf("keyring: keep the older root key: %w", err)
	}
	if err := errors.Join(os.Rename(r.nextPath(), r.path), syncDir(r.path)); err != nil {
		return fmt.Errorf("keyring: put the newer root key in place: %w", err)
	}
	return r.reload()
}

// Retire overwrites the older key, and then removes it; and names that killed
// processes have left.
func (r *fileRoot) Retire(_ context.Context, to string) error {
	if err := r.reload(); err != nil {
		return err
	}
	if fingerprint(r.held()[0]) != to {
		return fmt.Errorf("keyring: %s does not hold the key %s, so no other is destroyed", r.path, to)
	}
	dir, base := filepath.Split(r.path)
	left, err := fs.Glob(os.DirFS(filepath.Clean(dir)), base+partPattern)
	for _, name := range left {
		err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
	}
	if err != nil {
		return fmt.Errorf("keyring: remove what was left beside the root key: %w", err)
	}
	f, err := os.OpenFile(r.previousPath(), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("keyring: destroy the older root key: %w", err)
	}
	noise := make([]byte, seedSize)
	_, _ = rand.Read(noise) // never fails
	_, err = f.WriteAt(noise, 0)
	if err := errors.Join(err, f.Sync(), f.Close(), os.Remove(r.previousPath()), syncDir(r.path)); err != nil {
		return fmt.Errorf("keyring: destroy the older root key: %w", err)
	}
	return r.reload()
}

// LockFile keeps two processes from replacing the root key at the same time. The
// kernel gives the lock up when the process ends.
func LockFile(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keyring: lock the root key: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("keyring: another process replaces the root key: %w", err), f.Close())
	}
	return f.Close, nil
}
