package keyring

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Root wraps keysets. It is the one key that is not in the log.
type Root interface {
	Wrap(ctx context.Context, plain, aad []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}

// OpenRoot opens the root key at a location: the path of a file, with or without
// file://, or vault+https://host/v1/transit/NAME?token_file=PATH for the transit
// engine of Vault or OpenBao.
func OpenRoot(_ context.Context, location string) (Root, error) {
	u, err := url.Parse(location)
	if err != nil {
		return nil, fmt.Errorf("keyring: the root key's location is not a path or URL: %w", err)
	}
	switch u.Scheme {
	case "", "file":
		return openFile(u.Path)
	case "vault+https", "vault+http":
		return openVault(u)
	}
	return nil, fmt.Errorf("keyring: the root key's location begins with %s://; it can be a path, file://, vault+https:// or, on loopback, vault+http://", u.Scheme)
}

// fileRoot is a key in a file.
type fileRoot struct{ key []byte }

// openFile reads a key of 32 bytes, and makes one if there is none. It refuses a
// file that others may read.
func openFile(path string) (Root, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createFile(path)
	}
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
	return fileRoot{key}, nil
}

// createFile writes a new key. It is on disk before anything is sealed with it.
func createFile(path string) (Root, error) {
	key := make([]byte, seedSize)
	_, _ = rand.Read(key) // never fails
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keyring: make the root key: %w", err)
	}
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, fmt.Errorf("keyring: write the root key: %w", err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("keyring: write the root key: %w", err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return nil, fmt.Errorf("keyring: write the root key: %w", err)
	}
	return fileRoot{key}, nil
}

// Wrap encrypts a keyset.
func (r fileRoot) Wrap(_ context.Context, plain, aad []byte) ([]byte, error) {
	gcm, err := gcmOf(r.key)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, gcm.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return gcm.Seal(nonce, nonce, plain, aad), nil
}

// Unwrap decrypts a keyset.
func (r fileRoot) Unwrap(_ context.Context, wrapped, aad []byte) ([]byte, error) {
	gcm, err := gcmOf(r.key)
	if err != nil {
		return nil, err
	}
	if len(wrapped) < gcm.NonceSize() {
		return nil, errKeyset
	}
	plain, err := gcm.Open(nil, wrapped[:gcm.NonceSize()], wrapped[gcm.NonceSize():], aad)
	if err != nil {
		return nil, errors.New("the root key is not the one that it was wrapped with, or it was changed")
	}
	return plain, nil
}

// vaultRoot is a key in the transit engine of Vault or OpenBao, which never
// leaves it.
type vaultRoot struct {
	base   string // …/v1/transit
	name   string
	token  string
	client *http.Client
}

const vaultTimeout = 10 * time.Second

func openVault(u *url.URL) (Root, error) {
	scheme := strings.TrimPrefix(u.Scheme, "vault+")
	if host := u.Hostname(); scheme == "http" && host != "127.0.0.1" && host != "::1" && host != "localhost" {
		return nil, errors.New("keyring: the root key's service is asked in the clear: use vault+https://")
	}
	path := strings.TrimSuffix(u.Path, "/")
	slash := strings.LastIndex(path, "/")
	if slash < 1 {
		return nil, errors.New("keyring: the root key's location has to be vault+https://host/v1/transit/NAME?token_file=PATH")
	}
	token, err := os.ReadFile(u.Query().Get("token_file"))
	if err != nil {
		return nil, fmt.Errorf("keyring: read the token of the root key's service (token_file): %w", err)
	}
	return vaultRoot{
		base: scheme + "://" + u.Host + path[:slash], name: path[slash+1:],
		token: strings.TrimSpace(string(token)), client: &http.Client{Timeout: vaultTimeout},
	}, nil
}

// Wrap encrypts a keyset.
func (r vaultRoot) Wrap(ctx context.Context, plain, aad []byte) ([]byte, error) {
	var answer struct{ Ciphertext string }
	err := r.call(ctx, "encrypt", map[string]string{"plaintext": base64.StdEncoding.EncodeToString(plain), "associated_data": base64.StdEncoding.EncodeToString(aad)}, &answer)
	return []byte(answer.Ciphertext), err
}

// Unwrap decrypts a keyset.
func (r vaultRoot) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	var answer struct{ Plaintext string }
	err := r.call(ctx, "decrypt", map[string]string{"ciphertext": string(wrapped), "associated_data": base64.StdEncoding.EncodeToString(aad)}, &answer)
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(answer.Plaintext)
}

func (r vaultRoot) call(ctx context.Context, verb string, body map[string]string, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.base+"/"+verb+"/"+url.PathEscape(r.name), bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", r.token)
	resp, err := r.client.Do(req)
	if err != nil {
		return fmt.Errorf("%s with the root key's service: %w", verb, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return fmt.Errorf("%s with the root key's service: %w", verb, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s with the root key's service: it answered %s", verb, resp.Status)
	}
	var envelope struct{ Data json.RawMessage }
	if err := json.Unmarshal(answer, &envelope); err != nil {
		return fmt.Errorf("%s with the root key's service: %w", verb, err)
	}
	return json.Unmarshal(envelope.Data, into)
}
