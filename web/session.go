package web

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/member"
	"postbook.dev/postbook/eventstore"
)

// session is what the cookie says, signed. Who it is about is looked up at each
// request, so that somebody who has left is out at once.
type session struct {
	ID      string    `json:"id"`
	Person  string    `json:"person"`
	CSRF    string    `json:"csrf"`
	Expires time.Time `json:"expires"`
}

const (
	sessionCookie = "postbook_session"
	entryCookie   = "postbook_entry" // the CSRF token of the sign-in form
	purpose       = "console-session"
)

// signedIn makes the visit that of whoever the cookie is about, if it is good.
func (c *Console) signedIn(v *visit) bool {
	cookie, err := v.Cookie(sessionCookie)
	if err != nil {
		return false
	}
	body, mac, _ := strings.Cut(cookie.Value, ".")
	statement, err1 := base64.RawURLEncoding.DecodeString(body)
	got, err2 := base64.RawURLEncoding.DecodeString(mac)
	if err1 != nil || err2 != nil {
		return false
	}
	want, err := c.Vault.MAC(v.Context(), purpose, statement)
	var s session
	if err != nil || !hmac.Equal(got, want) || json.Unmarshal(statement, &s) != nil || c.Now().After(s.Expires) {
		return false
	}
	person, ok := c.Directory.Person(s.Person)
	if !ok || person.Kind != domain.Member || s.ID == "" || c.Directory.Ended(s.ID) {
		return false
	}
	v.as(person, domain.PasswordAuth)
	v.account, _ = c.Directory.Account(person.Account)
	v.session, v.csrf = s.ID, s.CSRF
	return true
}

// begin signs a person in under a new session, whatever cookie came with the
// request.
func (c *Console) begin(ctx context.Context, v *visit, person directory.Person, auth domain.Strength) (view, error) {
	statement, err := json.Marshal(session{uuid.NewString(), person.ID, rand.Text(), c.Now().Add(directory.SessionAge)})
	if err != nil {
		return view{}, err
	}
	mac, err := c.Vault.MAC(ctx, purpose, statement)
	if err != nil {
		return view{}, err
	}
	v.as(person, auth)
	b64 := base64.RawURLEncoding
	return view{
		status: http.StatusSeeOther, to: "/console/",
		cookies: []*http.Cookie{newCookie(v, sessionCookie, b64.EncodeToString(statement)+"."+b64.EncodeToString(mac), directory.SessionAge)},
		fields:  []domain.Field{"member.session"}, objects: []string{person.ID},
	}, nil
}

// encrypted reports whether the visit came over an encrypted connection: to us, or
// to a proxy in front that is trusted to say so.
func (v *visit) encrypted() bool { return v.TLS != nil || v.URL.Scheme == "https" }

// newCookie is for encrypted connections alone if the visit came over one.
func newCookie(v *visit, name, value string, age time.Duration) *http.Cookie {
	return &http.Cookie{
		Name: name, Value: value, Path: "/console", MaxAge: int(age.Seconds()),
		HttpOnly: true, Secure: v.encrypted(), SameSite: http.SameSiteStrictMode,
	}
}

type entry struct {
	CSRF    string
	Email   string
	Problem string
}

var (
	errTicket = Problem{http.StatusForbidden, "invalid_ticket", "This link was used already, or is too old. Sign in instead."}
	errForm   = Problem{http.StatusForbidden, "invalid_form", "The form was too old. Try again."}
)

// enter shows the sign-in form, or takes a ticket. Who has a ticket was let in by
// whoever holds the data directory.
func (c *Console) enter(ctx context.Context, v *visit) (view, error) {
	secret := v.URL.Query().Get("ticket")
	if secret == "" {
		return form(v, "", Problem{Status: http.StatusOK}), nil
	}
	person, ok := c.redeem(secret)
	if !ok {
		return form(v, "", errTicket), nil
	}
	return c.begin(ctx, v, person, domain.Internal)
}

func form(v *visit, email string, p Problem) view {
	e := entry{CSRF: rand.Text(), Email: email, Problem: p.Text}
	return view{
		status: p.Status, page: "enter", title: "Sign in", data: e, refused: p.Name,
		cookies: []*http.Cookie{newCookie(v, entryCookie, e.CSRF, time.Hour)},
	}
}

func (c *Console) signIn(ctx context.Context, v *visit) (view, error) {
	v.Body = http.MaxBytesReader(nil, v.Body, 8<<10)
	cookie, err := v.Cookie(entryCookie)
	if err != nil || !sameOrigin(v.Request) || !hmac.Equal([]byte(cookie.Value), []byte(v.PostFormValue("csrf"))) {
		return form(v, "", errForm), nil //nolint:nilerr // without its cookie the form is too old
	}
	person, err := c.SignIn(ctx, v.PostFormValue("email"), v.PostFormValue("password"), v.by.IP)
	if p, ok := errors.AsType[Problem](err); ok {
		return form(v, v.PostFormValue("email"), p), nil
	}
	if err != nil {
		return view{}, err
	}
	return c.begin(ctx, v, person, domain.PasswordAuth)
}

// leave ends the session, so that a copy of its cookie is good for nothing.
func (c *Console) leave(ctx context.Context, v *visit) (view, error) {
	v.Body = http.MaxBytesReader(nil, v.Body, 8<<10)
	if !c.signedIn(v) || !sameOrigin(v.Request) || !hmac.Equal([]byte(v.csrf), []byte(v.PostFormValue("csrf"))) {
		return view{}, errForm
	}
	out := member.Command(member.SignOut{Authority: v.by, Session: v.session})
	recorded, err := eventstore.Execute(ctx, c.Store, member.Decider, member.Stream(v.by.Account, v.by.Actor.ID), out)
	if err != nil {
		return view{}, err
	}
	if len(recorded) > 0 {
		if err := c.Directory.Await(ctx, recorded[0].Seq); err != nil {
			return view{}, err
		}
	}
	return view{status: http.StatusSeeOther, to: "/console/enter", cookies: []*http.Cookie{newCookie(v, sessionCookie, "", -time.Second)}}, nil
}

// sameOrigin refuses what another site's page sends. Browsers say where a POST
// comes from.
func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	return origin == "" || origin == "http://"+r.Host || origin == "https://"+r.Host
}
