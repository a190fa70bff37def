package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
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

// A guard slows down guessing. It counts attempts before they are tried, so that
// many at once are no more than one after the other, and forgets those that
// succeed.
type guard struct {
	now  func() time.Time
	work *semaphore.Weighted // hashing at the same time: each takes 64 MB

	mu       sync.Mutex
	attempts map[attempt]attempts
	swept    time.Time // when attempts that are over were removed last
}

// attempt is what attempts are counted by. What strangers name is hashed: it may
// be long, and it may be somebody's address.
type attempt struct {
	kind    domain.ActorKind
	address [sha256.Size]byte // zero for all from one remote address
	ip      string
}

type attempts struct {
	count int
	since time.Time
}

// The rule against guessing: this many failures for one address from one remote
// address in this time, then no more tries until the time is over. Others may
// share the remote address, so what comes from there is only slowed down, apart
// for staff and for members.
const (
	guesses     = 10
	guessWindow = 15 * time.Minute
	guessPause  = time.Second
	hashAtOnce  = 2
)

func newGuard(now func() time.Time) *guard {
	return &guard{now: now, work: semaphore.NewWeighted(hashAtOnce), attempts: map[attempt]attempts{}}
}

func attemptsOf(kind domain.ActorKind, p proof) [2]attempt {
	ip := network(p.ip)
	return [2]attempt{{kind, sha256.Sum256([]byte(lower(p.email))), ip}, {kind: kind, ip: ip}}
}

// network is the address that somebody has, and of IPv6 the 64 bits that they do
// not choose themselves (RFC 4291, 2.5.1).
func network(ip string) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil || addr.Is4() || addr.Is4In6() {
		return ip
	}
	prefix, err := addr.WithZone("").Prefix(64)
	if err != nil {
		return ip
	}
	return prefix.String()
}

// begin counts an attempt, and says how long it has to wait or that it may not be
// made.
func (g *guard) begin(kind domain.ActorKind, p proof) (wait time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	g.sweep(now)
	keys := attemptsOf(kind, p)
	if g.recent(keys[0], now).count >= guesses {
		return 0, false
	}
	if g.recent(keys[1], now).count >= guesses {
		wait = guessPause
	}
	for _, k := range keys {
		f := g.recent(k, now)
		f.count++
		g.attempts[k] = f
	}
	return wait, true
}

// recent is what was counted in the window that is open at a time.
func (g *guard) recent(k attempt, now time.Time) attempts {
	f, ok := g.attempts[k]
	if !ok || now.Sub(f.since) >= guessWindow {
		return attempts{since: now}
	}
	return f
}

func (g *guard) sweep(now time.Time) {
	if now.Sub(g.swept) < time.Minute {
		return
	}
	g.swept = now
	for k, f := range g.attempts {
		if now.Sub(f.since) >= guessWindow {
			delete(g.attempts, k)
		}
	}
}

// giveBack takes back the count of an attempt that was no guess.
func (g *guard) giveBack(kind domain.ActorKind, p proof) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range attemptsOf(kind, p) {
		f, ok := g.attempts[k]
		switch {
		case !ok: // its window is over
		case f.count <= 1:
			delete(g.attempts, k)
		default:
			f.count--
			g.attempts[k] = f
		}
	}
}

// turn waits for the attempt's pause, and then until it may hash. Whoever gets a
// turn gives it back to g.work.
func (g *guard) turn(ctx context.Context, wait time.Duration) error {
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return g.work.Acquire(ctx, 1)
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

	by domain.Authority // of the request of a member of staff
}

// SignIn finds the member of a customer's account whose password this is.
func (a *API) SignIn(ctx context.Context, email, password, ip string) (directory.Person, error) {
	return a.signIn(ctx, domain.Member, proof{email: email, password: password, ip: ip})
}

// signIn does the same work for somebody who does not exist.
func (a *API) signIn(ctx context.Context, kind domain.ActorKind, p proof) (directory.Person, error) {
	wait, ok := a.staff.begin(kind, p)
	if !ok {
		return directory.Person{}, &Error{429, "Too many attempts to sign in. Try again later.", "rate_limit_exceeded"}
	}
	var found []directory.Person // somebody may be a member of several accounts
	for _, candidate := range a.Directory.People(kind) {
		index, err := a.Vault.Index(ctx, candidate.Account, lower(p.email))
		if err != nil {
			a.staff.giveBack(kind, p)
			return directory.Person{}, err
		}
		if subtle.ConstantTimeCompare([]byte(index), []byte(candidate.Index)) == 1 {
			found = append(found, candidate)
		}
	}
	if len(found) == 0 {
		found = append(found, directory.Person{})
	}
	if err := a.staff.turn(ctx, wait); err != nil {
		a.staff.giveBack(kind, p)
		return directory.Person{}, errUnavailable
	}
	at := slices.IndexFunc(found, func(candidate directory.Person) bool {
		return matches(candidate.Password, p.password) && candidate.ID != ""
	})
	a.staff.work.Release(1)
	if at < 0 {
		return directory.Person{}, errStaffLogin
	}
	person := found[at]
	if kind == domain.Staff {
		if err := a.secondFactor(ctx, person, p); err != nil {
			return directory.Person{}, err
		}
	}
	a.staff.giveBack(kind, p)
	return person, nil
}

const codeStep = 30 // seconds that a code is for (RFC 6238, 5.2)

// secondFactor takes a member of staff's code, each once: that it was taken is in the
// log, where other processes see it too.
func (a *API) secondFactor(ctx context.Context, person directory.Person, p proof) error {
	secret, err := a.Vault.Open(ctx, person.Account, classUser, person.ID, person.TOTP)
	if err != nil {
		return fmt.Errorf("open the second factor of %s: %w", person.ID, err)
	}
	now := a.Now()
	step, err := stepOf(string(secret), p.code, now)
	if err != nil {
		return fmt.Errorf("read the second factor of %s: %w", person.ID, err)
	}
	if step == 0 {
		return errStaffLogin
	}
	by := p.by
	by.Actor, by.Role, by.Auth, by.AuthAt = domain.Actor{Kind: domain.Staff, ID: person.ID}, person.Role, domain.SecondFactor, by.At
	_, err = eventstore.Execute(ctx, a.Store, staff.Decider, staff.Stream(person.ID), staff.Command(staff.SignIn{Authority: by, Step: step}))
	if r := domain.Refused(err); r != nil && r.Code == domain.Taken {
		return &Error{http.StatusUnauthorized, r.Message, errStaffLogin.Name}
	}
	return err
}

// stepOf is the step of time that a code is for: the present one, or one to either side
// (RFC 6238, 5.2). It is 0 if the code is for none of them.
func stepOf(secret, shown string, now time.Time) (int64, error) {
	if len(shown) != 6 || strings.Trim(shown, "0123456789") != "" {
		return 0, nil
	}
	present, found := now.Unix()/codeStep, int64(0)
	for step := present - 1; step <= present+1; step++ {
		want, err := totp.GenerateCode(secret, time.Unix(step*codeStep, 0))
		if err != nil {
			return 0, err
		}
		if subtle.ConstantTimeCompare([]byte(want), []byte(shown)) == 1 {
			found = step
		}
	}
	return found, nil
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
	if err := a.joinsOnce(domain.Staff, domain.Platform, join.Index); err != nil {
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
	if err := a.joinsOnce(domain.Member, account, join.Index); err != nil {
		return "", err
	}
	recorded, err := eventstore.Execute(ctx, a.Store, member.Decider, member.Stream(account, id), member.Command(join))
	if err != nil {
		return "", err
	}
	return id, a.settled(ctx, account, recorded)
}

// joinsOnce refuses somebody who is there already: one who left with one identity
// would stay with the other.
func (a *API) joinsOnce(kind domain.ActorKind, account, index string) error {
	for _, p := range a.Directory.People(kind) {
		if p.Account == account && p.Index == index {
			return invalid("Somebody with this `email` has joined already.")
		}
	}
	return nil
}

func (a *API) sealPerson(ctx context.Context, account, id, email string) (sealed domain.Sealed, index string, err error) {
	if sealed, err = a.Vault.Seal(ctx, account, classUser, id, []byte(lower(email))); err != nil {
		return nil, "", err
	}
	index, err = a.Vault.Index(ctx, account, lower(email))
	return sealed, index, err
}
