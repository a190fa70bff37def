package web

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/directory"
)

// session is what the cookie says, signed. Who it is about is looked up at each
// request, so that somebody who has left is out at once.
type session struct {
	Person  string    `json:"person"`
	CSRF    string    `json:"csrf"`
	Expires time.Time `json:"expires"`
}

const (
	sessionAge    = 12 * time.Hour
	sessionCookie = "postbook_session"
	entryCookie   = "postbook_entry" // the CSRF token of the sign-in form
	purpose       = "console-session"
)

func (c *Console) signedIn(r *http.Request) (directory.Person, string, bool) {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return directory.Person{}, "", false
	}
	body, mac, _ := strings.Cut(cookie.Value, ".")
	statement, err1 := base64.RawURLEncoding.DecodeString(body)
	got, err2 := base64.RawURLEncoding.DecodeString(mac)
	if err1 != nil || err2 != nil {
		return directory.Person{}, "", false
	}
	want, err := c.Vault.MAC(r.Context(), purpose, statement)
	var s session
	if err != nil || !hmac.Equal(got, want) || json.Unmarshal(statement, &s) != nil || c.Now().After(s.Expires) {
		return directory.Person{}, "", false
	}
	person, ok := c.Directory.Person(s.Person)
	return person, s.CSRF, ok && person.Kind == domain.Member
}

// begin signs a person in under a new session, whatever cookie came with the
// request.
func (c *Console) begin(ctx context.Context, w http.ResponseWriter, r *http.Request, person directory.Person) error {
	statement, err := json.Marshal(session{person.ID, rand.Text(), c.Now().Add(sessionAge)})
	if err != nil {
		return err
	}
	mac, err := c.Vault.MAC(ctx, purpose, statement)
	if err != nil {
		return err
	}
	b64 := base64.RawURLEncoding
	c.setCookie(w, r, sessionCookie, b64.EncodeToString(statement)+"."+b64.EncodeToString(mac), sessionAge)
	http.Redirect(w, r, "/console/", http.StatusSeeOther)
	return nil
}

func (c *Console) setCookie(w http.ResponseWriter, r *http.Request, name, value string, age time.Duration) {
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: value, Path: "/console", MaxAge: int(age.Seconds()),
		HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode,
	})
}

type entry struct {
	CSRF    string
	Email   string
	Problem string
}

// enter shows the sign-in form, or takes a ticket.
func (c *Console) enter(w http.ResponseWriter, r *http.Request) {
	if secret := r.URL.Query().Get("ticket"); secret != "" {
		person, ok := c.redeem(secret)
		if ok {
			if err := c.begin(r.Context(), w, r, person); err == nil {
				return
			}
		}
		c.form(w, r, http.StatusForbidden, entry{Problem: "This link was used already, or is too old. Sign in instead."})
		return
	}
	c.form(w, r, http.StatusOK, entry{})
}

func (c *Console) form(w http.ResponseWriter, r *http.Request, status int, e entry) {
	e.CSRF = rand.Text()
	c.setCookie(w, r, entryCookie, e.CSRF, time.Hour)
	c.render(w, nil, status, view{page: "enter", title: "Sign in", data: e})
}

func (c *Console) signIn(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 8<<10)
	cookie, err := r.Cookie(entryCookie)
	if err != nil || !sameOrigin(r) || !hmac.Equal([]byte(cookie.Value), []byte(r.PostFormValue("csrf"))) {
		c.form(w, r, http.StatusForbidden, entry{Problem: "The form was too old. Try again."})
		return
	}
	person, err := c.SignIn(r.Context(), r.PostFormValue("email"), r.PostFormValue("password"), remoteIP(r))
	if err != nil {
		c.form(w, r, http.StatusForbidden, entry{Email: r.PostFormValue("email"), Problem: "The email address or the password is not right."})
		return
	}
	if err := c.begin(r.Context(), w, r, person); err != nil {
		c.problem(w, r, http.StatusServiceUnavailable, "You cannot be signed in at the moment.")
	}
}

func (c *Console) leave(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 8<<10)
	_, csrf, ok := c.signedIn(r)
	if !ok || !sameOrigin(r) || !hmac.Equal([]byte(csrf), []byte(r.PostFormValue("csrf"))) {
		c.problem(w, r, http.StatusForbidden, "The form was too old. Go back and try again.")
		return
	}
	c.setCookie(w, r, sessionCookie, "", -time.Second)
	http.Redirect(w, r, "/console/enter", http.StatusSeeOther)
}

// sameOrigin refuses what another site's page sends. Browsers say where a POST
// comes from.
func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	return origin == "" || origin == "http://"+r.Host || origin == "https://"+r.Host
}
