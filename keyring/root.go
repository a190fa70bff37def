package keyring

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Root wraps keysets. It is the one key that is not in the log. It can be replaced
// while processes use it: they open with the older key too, until it is destroyed,
// and wrap with the newer one as soon as it is there.
type Root interface {
	Wrap(ctx context.Context, plain, aad []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)

	// Newest reports whether the newest key has wrapped something.
	Newest(ctx context.Context, wrapped, aad []byte) (bool, error)

	// Next gets a newer key ready, and says how it and today's are called. Called
	// again before the switch, it says the same.
	Next(ctx context.Context) (from, to string, err error)
	// Sees reports whether the key called to is where this process will find it once
	// it is the newest.
	Sees(ctx context.Context, to string) (bool, error)
	// Switch makes the key called to the newest. Once that is so, it does nothing.
	Switch(ctx context.Context, to string) error
	// Retire destroys all keys but the newest, which is called to.
	Retire(ctx context.Context, to string) error
}

// OpenRoot opens the root key at a location: the path of a file, with or without
// file://, or vault+https://host/v1/transit/NAME?token_file=PATH for the transit
// engine of Vault or OpenBao.
func OpenRoot(_ context.Context, location string) (Root, error) {
	if path, ok := RootFile(location); ok {
		return openFile(path)
	}
	u, err := url.Parse(location)
	if err != nil {
		return nil, fmt.Errorf("keyring: the root key's location is not a path or URL: %w", err)
	}
	switch u.Scheme {
	case "vault+https", "vault+http":
		return openVault(u)
	}
	return nil, fmt.Errorf("keyring: the root key's location begins with %s://; it can be a path, file://, vault+https:// or, on loopback, vault+http://", u.Scheme)
}

// RootFile is the path of the file that a location of OpenRoot names, as it is
// written: with file:// too, a percent sign or a hash is part of it. What begins with
// another scheme names none.
func RootFile(location string) (path string, ok bool) {
	if path, ok = strings.CutPrefix(location, "file:"); ok {
		return strings.TrimPrefix(path, "//"), true
	}
	scheme, _, colon := strings.Cut(location, ":")
	return location, !colon || strings.Contains(scheme, "/")
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

// Newest reports whether the newest version of the key has wrapped something. What
// the service wraps says which version that is.
func (r vaultRoot) Newest(ctx context.Context, wrapped, aad []byte) (bool, error) {
	now, err := r.Wrap(ctx, []byte{0}, aad)
	if err != nil {
		return false, err
	}
	held, err1 := versionOf(string(wrapped))
	newest, err2 := versionOf(string(now))
	return held == newest, errors.Join(err1, err2)
}

// versionOf reads the version out of vault:v7:… or v7.
func versionOf(text string) (int, error) {
	text = strings.TrimPrefix(text, "vault:")
	text, _, _ = strings.Cut(text, ":")
	n, err := strconv.Atoi(strings.TrimPrefix(text, "v"))
	if err != nil || n < 1 {
		return 0, errors.New("keyring: the root key's service does not say which version of the key it has used")
	}
	return n, nil
}

// Next says which version comes next. The service makes it when it is switched to.
func (r vaultRoot) Next(ctx context.Context) (from, to string, err error) {
	now, err := r.Wrap(ctx, []byte{0}, nil)
	if err != nil {
		return "", "", err
	}
	n, err := versionOf(string(now))
	return fmt.Sprintf("v%d", n), fmt.Sprintf("v%d", n+1), err
}

// Sees is always so: the service is one.
func (r vaultRoot) Sees(context.Context, string) (bool, error) { return true, nil }

// Switch has the service make the next version, if it is not there yet.
func (r vaultRoot) Switch(ctx context.Context, to string) error {
	from, _, err := r.Next(ctx)
	if err != nil {
		return err
	}
	held, err1 := versionOf(from)
	wanted, err2 := versionOf(to)
	if err := errors.Join(err1, err2); err != nil || held >= wanted {
		return err
	}
	return r.send(ctx, "keys/"+url.PathEscape(r.name)+"/rotate", map[string]any{}, nil)
}

// Retire has the service destroy all versions before the one called to.
func (r vaultRoot) Retire(ctx context.Context, to string) error {
	n, err := versionOf(to)
	if err != nil {
		return err
	}
	key := "keys/" + url.PathEscape(r.name)
	if err := r.send(ctx, key+"/config", map[string]any{"min_decryption_version": n, "min_encryption_version": n}, nil); err != nil {
		return err
	}
	return r.send(ctx, key+"/trim", map[string]any{"min_available_version": n}, nil)
}

func (r vaultRoot) call(ctx context.Context, verb string, body map[string]string, into any) error {
	return r.send(ctx, verb+"/"+url.PathEscape(r.name), body, into)
}

// send asks the service. Without into, an answer without content is enough.
func (r vaultRoot) send(ctx context.Context, path string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.base+"/"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", r.token)
	resp, err := r.client.Do(req)
	if err != nil {
		return fmt.Errorf("%s with the root key's service: %w", path, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	if err != nil {
		return fmt.Errorf("%s with the root key's service: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK && (into != nil || resp.StatusCode != http.StatusNoContent) {
		return fmt.Errorf("%s with the root key's service: it answered %s", path, resp.Status)
	}
	if into == nil {
		return nil
	}
	var envelope struct{ Data json.RawMessage }
	if err := json.Unmarshal(answer, &envelope); err != nil {
		return fmt.Errorf("%s with the root key's service: %w", path, err)
	}
	return json.Unmarshal(envelope.Data, into)
}
