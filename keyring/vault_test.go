package keyring

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// transit answers as the transit engine's documentation says that it does.
type transit struct {
	mu      sync.Mutex
	newest  int
	minimum int // of decryption
	trimmed int // versions below are gone
}

func (v *transit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var m map[string]any
	if err := json.NewDecoder(r.Body).Decode(&m); err != nil || r.Header.Get("X-Vault-Token") != "token" {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	text := func(name string) string { s, _ := m[name].(string); return s }
	number := func(name string) int { n, _ := m[name].(float64); return int(n) }
	data := map[string]string{}
	switch path := strings.TrimPrefix(r.URL.Path, "/v1/transit/"); path {
	case "encrypt/kek":
		data["ciphertext"] = fmt.Sprintf("vault:v%d:%s.%s", v.newest, text("plaintext"), text("associated_data"))
	case "decrypt/kek":
		version, err := versionOf(text("ciphertext"))
		_, body, _ := strings.Cut(strings.TrimPrefix(text("ciphertext"), "vault:"), ":")
		plain, aad, _ := strings.Cut(body, ".")
		if err != nil || version < v.minimum || version < v.trimmed || aad != text("associated_data") {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		data["plaintext"] = plain
	case "keys/kek/rotate":
		v.newest++
		w.WriteHeader(http.StatusNoContent)
		return
	case "keys/kek/config":
		v.minimum = number("min_decryption_version")
		w.WriteHeader(http.StatusNoContent)
		return
	case "keys/kek/trim":
		if number("min_available_version") > v.minimum {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		v.trimmed = number("min_available_version")
		w.WriteHeader(http.StatusNoContent)
		return
	default:
		http.NotFound(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"data": data})
}

func TestTheKeyOfAServiceIsReplaced(t *testing.T) {
	service := &transit{newest: 3, minimum: 1}
	srv := httptest.NewServer(service)
	defer srv.Close()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	location := "vault+" + srv.URL + "/v1/transit/kek?token_file=" + url.QueryEscape(token)
	store := newMemory()
	k := New(store, mustRoot(t, location), Options{})
	for _, id := range []string{"a", "b"} {
		if err := k.Create(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	before := store.blobs["a"]
	root := mustRoot(t, location)
	from, to, err := root.Next(t.Context())
	if err != nil || from != "v3" || to != "v4" {
		t.Fatalf("from %q to %q, %v", from, to, err)
	}
	for range 2 { // as after an interruption
		if err := root.Switch(t.Context(), to); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := New(store, root, Options{}).Rewrap(t.Context()); n != 2 || err != nil {
		t.Fatalf("%d keysets, %v", n, err)
	}
	for range 2 {
		if err := root.Retire(t.Context(), to); err != nil {
			t.Fatal(err)
		}
	}
	if service.newest != 4 || service.trimmed != 4 {
		t.Errorf("the service holds versions %d to %d", service.trimmed, service.newest)
	}
	fresh := New(store, root, Options{})
	for _, id := range []string{"a", "b"} {
		if _, err := fresh.Account(t.Context(), id); err != nil || !strings.HasPrefix(string(store.blobs[id]), "vault:v4:") {
			t.Errorf("%s: %v", id, err)
		}
	}
	if _, err := root.Unwrap(t.Context(), before, []byte("a")); err == nil {
		t.Error("what an older version has wrapped opens still")
	}
}
