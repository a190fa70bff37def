package api

import (
	"context"
	"encoding/hex"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"postbook.dev/postbook/domain"
)

// scope is what a key has to be allowed to do.
type scope int

const (
	everything scope = iota
	sends
)

// purposeAPIKey is what the hash of a token is made for.
const purposeAPIKey = "apikey"

// customer identifies a customer's program by its API key, and counts the
// request against its account's limit.
func (a *API) customer(needs scope) identify {
	return func(ctx context.Context, h http.Header, r *request) error {
		token, ok := bearer(r.Header)
		if !ok {
			return errMissingKey
		}
		hash, err := a.hash(ctx, token)
		if err != nil {
			return err
		}
		// The directory is searched by the hash: how long that takes says nothing
		// about a token that is not known.
		key, ok := a.Directory.Key(hash)
		if !ok {
			return errInvalidKey
		}
		r.key = key
		r.by.Actor = domain.Actor{Kind: domain.APIKey, ID: key.ID}
		r.by.Account, r.by.Role, r.by.Auth, r.by.AuthAt = key.Account, key.Permission, domain.KeyAuth, r.by.At
		account, _ := a.Directory.Account(key.Account)
		if err := a.limiter.take(h, key.Account, account.RateLimit); err != nil {
			return err
		}
		if needs == everything && key.Permission != domain.FullAccess {
			return errRestricted
		}
		return nil
	}
}

// bearer is the token of a request, if it has one. The scheme is in letters of
// either case (RFC 9110, section 11.1).
func bearer(h http.Header) (token string, ok bool) {
	scheme, token, _ := strings.Cut(h.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	return token, strings.EqualFold(scheme, "Bearer") && token != ""
}

func (a *API) hash(ctx context.Context, token string) (string, error) {
	mac, err := a.Vault.MAC(ctx, purposeAPIKey, []byte(token))
	return hex.EncodeToString(mac), err
}

// stranger lets anybody in.
func (a *API) stranger(context.Context, http.Header, *request) error { return nil }

// limiter counts the requests of each account in windows of one second.
type limiter struct {
	fallback int
	now      func() time.Time

	mu     sync.Mutex
	window int64
	used   map[string]int
}

func newLimiter(fallback int, now func() time.Time) *limiter {
	return &limiter{fallback: fallback, now: now, used: map[string]int{}}
}

// unlimited is what the headers say where there is no limit: clients read a
// number.
const unlimited = 1_000_000

// take counts one request, and tells the caller in the headers where they stand.
func (l *limiter) take(h http.Header, account string, own int) error {
	limit := own
	if limit == 0 {
		limit = l.fallback
	}
	if limit == 0 {
		limit = unlimited
	}
	l.mu.Lock()
	if window := l.now().Unix(); window != l.window {
		l.window = window
		clear(l.used)
	}
	l.used[account]++
	used := l.used[account]
	l.mu.Unlock()

	h.Set("Ratelimit-Limit", strconv.Itoa(limit))
	h.Set("Ratelimit-Remaining", strconv.Itoa(max(limit-used, 0)))
	h.Set("Ratelimit-Reset", "1")
	h.Set("Ratelimit-Policy", strconv.Itoa(limit)+";w=1")
	if used > limit {
		h.Set("Retry-After", "1")
		return limited(limit)
	}
	return nil
}
