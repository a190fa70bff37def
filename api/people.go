package api

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/pquerna/otp/totp"
	"golang.org/x/crypto/argon2"
	"golang.org/x/sync/semaphore"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/member"
	"postbook.dev/postbook/domain/staff"
	"postbook.dev/postbook/eventstore"
)

// A guard slows down guessing. It counts failures by address and by remote
// address, and remembers which codes were used.
type guard struct {
	now  func() time.Time
	work *semaphore.Weighted // hashing at the same time: each takes 64 MB

	mu       sync.Mutex
	failures map[string]failures
	codes    map[string]time.Time // used codes, until they are no longer valid
}

type failures struct {
	count int
	since time.Time
}

// The rule against guessing: this many failures in this time, then no more
// tries until the time is over.
const (
	guesses     = 10
	guessWindow = 15 * time.Minute
	hashAtOnce  = 2
)

func newGuard(now func() time.Time) *guard {
	return &guard{now: now, work: semaphore.NewWeighted(hashAtOnce), failures: map[string]failures{}, codes: map[string]time.Time{}}
}

func (g *guard) allows(keys ...string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range keys {
		if f := g.failures[k]; f.count >= guesses && g.now().Sub(f.since) < guessWindow {
			return false
		}
	}
	return true
}

func (g *guard) failed(keys ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	for k, f := range g.failures {
		if now.Sub(f.since) >= guessWindow {
			delete(g.failures, k)
		}
	}
	for _, k := range keys {
		f := g.failures[k]
		if f.count == 0 {
			f.since = now
		}
		f.count++
		g.failures[k] = f
	}
}

// fresh reports whether a code was not used before, and marks it as used.
func (g *guard) fresh(person, code string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	for k, until := range g.codes {
		if now.After(until) {
			delete(g.codes, k)
		}
	}
	key := person + " " + code
	if _, used := g.codes[key]; used {
		return false
	}
	g.codes[key] = now.Add(2 * time.Minute)
	return true
}

// Argon2id, the second choice of RFC 9106, 4: 64 MB, three passes.
const (
	argonTime    = 3
	argonMemory  = 64 << 10
	argonThreads = 4
	argonKey     = 32
	argonSalt    = 16
)

func hashPassword(password string) string {
	salt := make([]byte, argonSalt)
	_, _ = rand.Read(salt) // never fails
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonKey)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads, b64.EncodeToString(salt), b64.EncodeToString(key))
}

// matches reports whether password is the one that hash was made of. It takes as
// long for a hash that cannot be read.
func matches(hash, password string) bool {
	parts := strings.Split(hash, "$")
	salt, want := make([]byte, argonSalt), []byte(nil)
	if len(parts) == 6 && parts[1] == "argon2id" {
		if s, err := base64.RawStdEncoding.DecodeString(parts[4]); err == nil {
			salt = s
		}
		want, _ = base64.RawStdEncoding.DecodeString(parts[5]) // an unreadable one matches nothing
	}
	got := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonThreads, argonKey)
	return subtle.ConstantTimeCompare(got, want) == 1
}

// proof is what somebody shows to sign in.
type proof struct {
	email, password, code, ip string
}

// SignIn finds the member of a customer's account whose password this is.
func (a *API) SignIn(ctx context.Context, email, password, ip string) (directory.Person, error) {
	return a.signIn(ctx, domain.Member, proof{email: email, password: password, ip: ip})
}

// signIn does the same work for somebody who does not exist.
func (a *API) signIn(ctx context.Context, kind domain.ActorKind, p proof) (directory.Person, error) {
	keys := []string{string(kind) + " " + lower(p.email), "ip " + p.ip}
	if !a.staff.allows(keys...) {
		return directory.Person{}, &Error{429, "Too many attempts to sign in. Try again later.", "rate_limit_exceeded"}
	}
	var person directory.Person
	for _, candidate := range a.Directory.People(kind) {
		index, err := a.Vault.Index(ctx, candidate.Account, lower(p.email))
		if err != nil {
			return person, err
		}
		if subtle.ConstantTimeCompare([]byte(index), []byte(candidate.Index)) == 1 {
			person = candidate
		}
	}
	if err := a.staff.work.Acquire(ctx, 1); err != nil {
		return directory.Person{}, errUnavailable
	}
	ok := matches(person.Password, p.password) && person.ID != ""
	a.staff.work.Release(1)
	if ok && kind == domain.Staff {
		var err error
		if ok, err = a.secondFactor(ctx, person, p.code); err != nil {
			return directory.Person{}, err
		}
	}
	if !ok {
		a.staff.failed(keys...)
		return directory.Person{}, errStaffLogin
	}
	return person, nil
}

func (a *API) secondFactor(ctx context.Context, person directory.Person, code string) (bool, error) {
	secret, err := a.Vault.Open(ctx, person.Account, classUser, person.ID, person.TOTP)
	if err != nil {
		return false, fmt.Errorf("open the second factor of %s: %w", person.ID, err)
	}
	// One step of 30 seconds to either side (RFC 6238, 5.2), each code once.
	ok, err := totp.ValidateCustom(code, string(secret), a.Now().UTC(), totp.ValidateOpts{Period: 30, Skew: 1, Digits: 6})
	if err != nil {
		return false, nil //nolint:nilerr // a code of the wrong form is a wrong code
	}
	return ok && a.staff.fresh(person.ID, code), nil
}

const minPassword = 12 // characters

func checkPerson(email, password string) error {
	switch {
	case !strings.Contains(email, "@"):
		return invalid("The `email` must be an email address.")
	case len(password) < minPassword:
		return invalid("The `password` must be at least %d characters long.", minPassword)
	}
	return nil
}

// JoinStaff makes somebody a member of staff. The secret of their second factor
// is in the result, and else only sealed in the log.
func (a *API) JoinStaff(ctx context.Context, by domain.Authority, email, password string, role domain.Role) (id, secret string, err error) {
	if err := checkPerson(email, password); err != nil {
		return "", "", err
	}
	key, err := totp.Generate(totp.GenerateOpts{Issuer: "Postbook", AccountName: email})
	if err != nil {
		return "", "", fmt.Errorf("make a second factor: %w", err)
	}
	id, secret = newID().String(), key.Secret()
	join := staff.Join{Authority: by, As: role, Password: hashPassword(password)}
	if join.Email, join.Index, err = a.sealPerson(ctx, domain.Platform, id, email); err != nil {
		return "", "", err
	}
	if join.TOTP, err = a.Vault.Seal(ctx, domain.Platform, classUser, id, []byte(secret)); err != nil {
		return "", "", err
	}
	recorded, err := eventstore.Execute(ctx, a.Store, staff.Decider, staff.Stream(id), staff.Command(join))
	if err != nil {
		return "", "", err
	}
	return id, secret, a.settled(ctx, domain.Platform, recorded)
}

// JoinMember lets somebody use the console of an account.
func (a *API) JoinMember(ctx context.Context, by domain.Authority, account, email, password string) (id string, err error) {
	if err := checkPerson(email, password); err != nil {
		return "", err
	}
	id = newID().String()
	join := member.Join{Authority: by, As: domain.MemberAdmin, Password: hashPassword(password)}
	if join.Email, join.Index, err = a.sealPerson(ctx, account, id, email); err != nil {
		return "", err
	}
	recorded, err := eventstore.Execute(ctx, a.Store, member.Decider, member.Stream(account, id), member.Command(join))
	if err != nil {
		return "", err
	}
	return id, a.settled(ctx, account, recorded)
}

func (a *API) sealPerson(ctx context.Context, account, id, email string) (sealed domain.Sealed, index string, err error) {
	if sealed, err = a.Vault.Seal(ctx, account, classUser, id, []byte(lower(email))); err != nil {
		return nil, "", err
	}
	index, err = a.Vault.Index(ctx, account, lower(email))
	return sealed, index, err
}
