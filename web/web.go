// Package web is the console, rendered on the server.
package web

import (
	"bytes"
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// Vault opens personal data. Each opening is put on record.
type Vault interface {
	Open(ctx context.Context, account, class, subject string, box []byte) ([]byte, error)
	MAC(ctx context.Context, purpose string, data []byte) ([]byte, error)
}

// Inbox is what the sandbox has received.
type Inbox interface {
	List(before string, limit int) ([]Received, error) // the newest; before is the id of the last one of the page above
	Get(id string) (Received, error)
}

// Received is a message in the sandbox. All of it comes from outside.
type Received struct {
	ID          string
	At          time.Time
	From, To    string
	Subject     string
	MessageID   string
	Text, HTML  string
	Signature   string
	Attachments []string
	Raw         string
	Size        int64
}

// ErrNotFound is an Inbox's answer about a message that it does not have.
var ErrNotFound = errors.New("web: no such message")

// Config is what the console is built on.
type Config struct {
	Store     *eventstore.Store
	Directory *directory.Directory
	Tables    *projections.Tables
	Vault     Vault
	Inbox     Inbox                                                                           // nil if mail leaves the machine
	SignIn    func(ctx context.Context, email, password, ip string) (directory.Person, error) // a Problem, if it is theirs
	Record    func(ctx context.Context, by domain.Authority, e access.Answered, wait bool) error
	Seal      func() string // how far the logs are witnessed
	Now       func() time.Time
	Log       *slog.Logger
}

// Console answers requests under /console/.
type Console struct {
	Config
	mux   *http.ServeMux
	pages map[string]*template.Template

	ended <-chan struct{} // closed by end
	end   func()

	mu      sync.Mutex
	tickets map[string]ticket
}

//go:embed pages static
var files embed.FS

// New makes a console.
func New(c Config) (*Console, error) {
	w := &Console{Config: c, mux: http.NewServeMux(), pages: map[string]*template.Template{}, tickets: map[string]ticket{}}
	ended := make(chan struct{})
	w.ended, w.end = ended, sync.OnceFunc(func() { close(ended) })
	for _, name := range []string{"enter", "emails", "email", "inbox", "message", "account", "problem"} {
		page, err := template.New("layout.html").Funcs(functions).ParseFS(files, "pages/layout.html", "pages/parts.html", "pages/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("web: page %s: %w", name, err)
		}
		w.pages[name] = page
	}
	static, err := fs.Sub(files, "static")
	if err != nil {
		return nil, fmt.Errorf("web: static files: %w", err)
	}
	w.mux.Handle("GET /console/static/", http.StripPrefix("/console/static/", cached(http.FileServerFS(static))))
	pages := func(pattern string, show func(context.Context, *visit) (view, error)) {
		w.mux.HandleFunc(pattern, w.answer(pattern, show))
	}
	pages("GET /console/enter", w.enter)
	pages("POST /console/enter", w.signIn)
	pages("POST /console/leave", w.leave)
	pages("GET /console/{$}", w.member(news(w, w.readEmails, w.emails)))
	pages("GET /console/emails/{id}", w.member(news(w, w.readEmail, w.email)))
	pages("GET /console/inbox", w.member(news(w, w.readInbox, w.inbox)))
	pages("GET /console/inbox/{id}", w.member(w.message))
	pages("GET /console/inbox/{id}/html", w.member(w.messageHTML))
	pages("GET /console/account", w.member(w.account))
	w.mux.HandleFunc("/console/", w.answer("", w.nowhere))
	return w, nil
}

// Handler answers all requests under /console/.
func (c *Console) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		// No script, style or image but our own; no framing by others.
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; frame-src 'self'; form-action 'self'; frame-ancestors 'self'; base-uri 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		c.mux.ServeHTTP(w, r)
	})
}

func cached(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=300")
		h.ServeHTTP(w, r)
	})
}

// visit is one request, and whoever made it.
type visit struct {
	*http.Request
	by      domain.Authority
	account directory.Account
	session string // id; this and csrf are empty for whoever is not signed in
	csrf    string
	seen    string // what state of the page is shown

	inbox inboxRead // what was found when it was looked for last
}

// as makes the visit somebody's.
func (v *visit) as(person directory.Person, auth domain.Strength) {
	v.by.Actor = domain.Actor{Kind: person.Kind, ID: person.ID}
	v.by.Account, v.by.Role, v.by.Auth = person.Account, person.Role, auth
}

// view is a page, and what of it discloses something.
type view struct {
	status  int // 0 is 200
	page    string
	title   string
	data    any
	raw     []byte // instead of a page
	csp     string // of raw
	to      string // instead of a page: where to go on
	cookies []*http.Cookie
	refused string // stable name of why it is not what was asked for
	fields  []domain.Field
	objects []string
}

// Problem is a failure that its cause may read. Its name is stable.
type Problem struct {
	Status     int
	Name, Text string
}

func (p Problem) Error() string { return p.Text }

// ErrCredentials is the answer to whoever cannot prove who they are.
var ErrCredentials = Problem{http.StatusForbidden, "invalid_credentials", "The email address or the password is not right."}

func notFound(text string) error { return Problem{http.StatusNotFound, "not_found", text} }

// answer shows a page, and puts the request on record. What discloses something is
// on record before it is sent.
func (c *Console) answer(route string, show func(context.Context, *visit) (view, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id := uuid.Must(uuid.NewV7())
		v := &visit{Request: r, by: domain.Authority{
			Actor: domain.Actor{Kind: domain.Anonymous, ID: "anonymous"}, Account: domain.Platform,
			Via: domain.ViaConsole, IP: remoteIP(r), Auth: domain.NoAuth, At: c.Now(), Command: id, Correlation: id,
		}}
		out, err := show(r.Context(), v)
		if err == nil && len(out.fields) > 0 {
			err = c.record(v, route, out, true)
		}
		if err != nil {
			out = c.problem(v, err)
		}
		c.render(w, v, out)
		if err != nil || len(out.fields) == 0 {
			if err := c.record(v, route, out, false); err != nil {
				c.Log.Error("request is not on record", "request", id, "route", route, "error", err)
			}
		}
	}
}

// member answers a request of somebody who is signed in.
func (c *Console) member(show func(context.Context, *visit) (view, error)) func(context.Context, *visit) (view, error) {
	return func(ctx context.Context, v *visit) (view, error) {
		if !c.signedIn(v) {
			return outside(), nil
		}
		return show(domain.Within(ctx, v.by), v)
	}
}

// outside is what somebody sees who is not signed in.
func outside() view {
	return view{status: http.StatusSeeOther, to: "/console/enter", refused: "missing_session"}
}

func (c *Console) nowhere(_ context.Context, v *visit) (view, error) {
	c.signedIn(v)
	return view{}, notFound("There is no such page.")
}

func (c *Console) record(v *visit, route string, out view, wait bool) error {
	e := access.Answered{
		Route: route, Method: v.Method, Path: v.URL.Path, Status: out.code(), Error: out.refused, Fields: out.fields,
		UserAgent: v.UserAgent(), Took: c.Now().Sub(v.by.At).Microseconds(),
	}
	if len(out.fields) > 0 {
		e.Form = domain.Plain
	}
	e.Disclosed(out.objects)
	return c.Record(v.Context(), v.by, e, wait)
}

func (out view) code() int {
	if out.status == 0 {
		return http.StatusOK
	}
	return out.status
}

// frame is what every page knows.
type frame struct {
	Title   string
	Account directory.Account
	CSRF    string
	Path    string
	Sandbox bool
	Seal    string
	Seen    string // what a part of the page that looks again has shown already
	Data    any
}

func (c *Console) render(w http.ResponseWriter, v *visit, out view) {
	for _, cookie := range out.cookies {
		http.SetCookie(w, cookie)
	}
	switch {
	case out.to != "" && v.Header.Get("HX-Request") != "": // all of the page goes there, and not a part of it
		w.Header().Set("HX-Redirect", out.to)
		w.WriteHeader(out.code())
		return
	case out.to != "":
		http.Redirect(w, v.Request, out.to, out.code())
		return
	case out.raw != nil:
		w.Header().Set("Content-Security-Policy", out.csp)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(out.raw)
		return
	case out.page == "":
		w.WriteHeader(out.code())
		return
	}
	var page bytes.Buffer
	f := frame{Title: out.title, Data: out.data, Account: v.account, CSRF: v.csrf, Path: v.URL.Path, Sandbox: c.Inbox != nil, Seal: c.Seal(), Seen: v.seen}
	if err := c.pages[out.page].Execute(&page, f); err != nil {
		c.Log.Error("console: render", "page", out.page, "error", err)
		http.Error(w, "Something went wrong here.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(out.code())
	_, _ = w.Write(page.Bytes())
}

// problem is the page about a failure. A fault is logged, and shown without
// details.
func (c *Console) problem(v *visit, err error) view {
	told, mine := errors.AsType[Problem](err)
	switch {
	case mine:
	case errors.Is(err, projections.ErrUnavailable), errors.Is(err, eventstore.ErrUnavailable):
		told = Problem{http.StatusServiceUnavailable, "service_unavailable", "The platform cannot be read at the moment. Mail is not affected: it is accepted and sent."}
	default:
		told = Problem{http.StatusInternalServerError, "application_error", "Something went wrong here."}
		if !errors.Is(err, context.Canceled) {
			c.Log.Error("console", "request", v.by.Command, "path", v.URL.Path, "error", err)
		}
	}
	return view{status: told.Status, page: "problem", title: http.StatusText(told.Status), data: told.Text, refused: told.Name}
}

func remoteIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// ticket lets somebody in once.
type ticket struct {
	person  string
	expires time.Time
}

const ticketAge = 10 * time.Minute

// Ticket returns the path of a page that signs a person in, once.
func (c *Console) Ticket(_ context.Context, person string) (string, error) {
	secret := rand.Text()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tickets[secret] = ticket{person, c.Now().Add(ticketAge)}
	return "/console/enter?ticket=" + secret, nil
}

func (c *Console) redeem(secret string) (directory.Person, bool) {
	c.mu.Lock()
	t, ok := c.tickets[secret]
	delete(c.tickets, secret)
	c.mu.Unlock()
	if !ok || c.Now().After(t.expires) {
		return directory.Person{}, false
	}
	return c.Directory.Person(t.person)
}
