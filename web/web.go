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
	"strings"
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
	List(limit int) ([]Received, error)
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
	Inbox     Inbox // nil if mail leaves the machine
	SignIn    func(ctx context.Context, email, password, ip string) (directory.Person, error)
	Seal      func() string // how far the logs are witnessed
	Now       func() time.Time
	Log       *slog.Logger
}

// Console answers requests under /console/.
type Console struct {
	Config
	mux   *http.ServeMux
	pages map[string]*template.Template

	mu      sync.Mutex
	tickets map[string]ticket
}

//go:embed pages static
var files embed.FS

// New makes a console.
func New(c Config) (*Console, error) {
	w := &Console{Config: c, mux: http.NewServeMux(), pages: map[string]*template.Template{}, tickets: map[string]ticket{}}
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
	w.mux.HandleFunc("GET /console/enter", w.enter)
	w.mux.HandleFunc("POST /console/enter", w.signIn)
	w.mux.HandleFunc("POST /console/leave", w.leave)
	w.mux.HandleFunc("GET /console/{$}", w.member("GET /console/", w.emails))
	w.mux.HandleFunc("GET /console/emails/{id}", w.member("GET /console/emails/{id}", w.email))
	w.mux.HandleFunc("GET /console/inbox", w.member("GET /console/inbox", w.inbox))
	w.mux.HandleFunc("GET /console/inbox/{id}", w.member("GET /console/inbox/{id}", w.message))
	w.mux.HandleFunc("GET /console/inbox/{id}/html", w.member("GET /console/inbox/{id}/html", w.messageHTML))
	w.mux.HandleFunc("GET /console/account", w.member("GET /console/account", w.account))
	w.mux.HandleFunc("/console/", func(rw http.ResponseWriter, r *http.Request) {
		w.problem(rw, r, http.StatusNotFound, "There is no such page.")
	})
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

// visit is one request of somebody who is signed in.
type visit struct {
	*http.Request
	by      domain.Authority
	account directory.Account
	csrf    string
}

// view is a page, and what of it discloses something.
type view struct {
	page    string
	title   string
	data    any
	raw     []byte // instead of a page
	csp     string // of raw
	fields  []domain.Field
	objects []string
}

// problemError is a failure that its cause may read.
type problemError struct {
	status int
	text   string
}

func (p problemError) Error() string { return p.text }

// member answers a request of somebody who is signed in. The view is on record
// before it is sent.
func (c *Console) member(route string, show func(context.Context, *visit) (view, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		begun := c.Now()
		person, csrf, ok := c.signedIn(r)
		if !ok {
			http.Redirect(w, r, "/console/enter", http.StatusSeeOther)
			return
		}
		id := uuid.Must(uuid.NewV7())
		v := &visit{Request: r, csrf: csrf, by: domain.Authority{
			Actor: domain.Actor{Kind: person.Kind, ID: person.ID}, Account: person.Account, Role: person.Role,
			Via: domain.ViaConsole, IP: remoteIP(r), Auth: domain.PasswordAuth, At: begun, Command: id, Correlation: id,
		}}
		v.account, _ = c.Directory.Account(person.Account)
		ctx := domain.Within(r.Context(), v.by)
		out, err := show(ctx, v)
		if err == nil {
			err = c.record(ctx, v, route, out, begun)
		}
		if err != nil {
			var told problemError
			switch {
			case errors.As(err, &told):
			case errors.Is(err, projections.ErrUnavailable), errors.Is(err, eventstore.ErrUnavailable):
				told = problemError{http.StatusServiceUnavailable, "The platform cannot be read at the moment. Mail is not affected: it is accepted and sent."}
			default:
				told = problemError{http.StatusInternalServerError, "Something went wrong here."}
				c.Log.Error("console", "request", id, "path", r.URL.Path, "error", err)
			}
			c.problem(w, r, told.status, told.text)
			return
		}
		c.render(w, v, http.StatusOK, out)
	}
}

func (c *Console) record(ctx context.Context, v *visit, route string, out view, begun time.Time) error {
	e := access.Answered{
		Route: route, Method: v.Method, Path: v.URL.Path, Status: http.StatusOK, Fields: out.fields, Form: domain.Plain,
		UserAgent: strings.ToValidUTF8(v.UserAgent()[:min(200, len(v.UserAgent()))], "?"), Took: c.Now().Sub(begun).Microseconds(),
	}
	e.Disclosed(out.objects)
	by := v.by
	by.Command = uuid.Must(uuid.NewV7())
	return c.Store.Record(ctx, eventstore.Access, by.Account, []eventstore.Commit{{
		Stream: domain.Stream{Account: by.Account, Kind: "access", ID: v.by.Command.String()}, By: by, Events: []domain.Event{e},
	}}, false)
}

// frame is what every page knows.
type frame struct {
	Title   string
	Account directory.Account
	CSRF    string
	Path    string
	Sandbox bool
	Seal    string
	Data    any
}

func (c *Console) render(w http.ResponseWriter, v *visit, status int, out view) {
	if out.raw != nil {
		w.Header().Set("Content-Security-Policy", out.csp)
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(out.raw)
		return
	}
	f := frame{Title: out.title, Data: out.data, Sandbox: c.Inbox != nil, Seal: c.Seal()}
	if v != nil {
		f.Account, f.CSRF, f.Path = v.account, v.csrf, v.URL.Path
	}
	var page bytes.Buffer
	if err := c.pages[out.page].Execute(&page, f); err != nil {
		c.Log.Error("console: render", "page", out.page, "error", err)
		http.Error(w, "Something went wrong here.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(page.Bytes())
}

func (c *Console) problem(w http.ResponseWriter, r *http.Request, status int, text string) {
	var v *visit
	if person, csrf, ok := c.signedIn(r); ok {
		v = &visit{Request: r, csrf: csrf}
		v.account, _ = c.Directory.Account(person.Account)
	}
	c.render(w, v, status, view{page: "problem", title: http.StatusText(status), data: text})
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
