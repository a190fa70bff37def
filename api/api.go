// Package api speaks the HTTP API: the Resend-compatible half that customers'
// programs use, and the half that staff use.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// Vault seals and opens personal data. Each opening is put on record.
type Vault interface {
	Seal(ctx context.Context, account, class, subject string, plain []byte) (domain.Sealed, error)
	SealAbout(ctx context.Context, account, class, subject string, recipients []string, plain []byte) (domain.Sealed, error)
	Open(ctx context.Context, account, class, subject string, box []byte) ([]byte, error)
	Index(ctx context.Context, account, address string) (string, error)
	MAC(ctx context.Context, purpose string, data []byte) ([]byte, error)
}

// Mailbox is an address, taken apart.
type Mailbox struct {
	Name   string // display name, may be empty
	Local  string
	Domain string // lower case, A-labels
}

// Addr is the address without its display name.
func (m Mailbox) Addr() string { return m.Local + "@" + m.Domain }

// Config is what the API is built on.
type Config struct {
	Store      *eventstore.Store
	Directory  *directory.Directory
	Tables     *projections.Tables
	Vault      Vault
	Recipients Recipients

	ParseMailbox func(string) (Mailbox, error)
	ParseDomain  func(string) (string, error)                    // lower case, A-labels
	CheckHeader  func(name, value string) error                  // of an email, why a customer may not set it
	NewKey       func() (pkcs8 []byte, public string, err error) // for signing, RSA
	Alone        bool                                            // no other process uses the log: a claim from before this one started is nobody's
	RateLimit    int                                             // requests a second for an account without its own; 0 is none
	Expected     sender.Expected                                 // what customers publish
	Mode         string                                          // of delivery, for /health
	Seal         func() string                                   // how far the logs are witnessed, for /health
	Now          func() time.Time
	Log          *slog.Logger
}

// API answers requests.
type API struct {
	Config
	started  time.Time
	mux      *http.ServeMux
	recorder *recorder
	limiter  *limiter
	staff    *guard
	tries    *tries
	written  *written
	bodies   *bodies
}

// New makes an API. Close it to write what it still has to record.
func New(c Config) *API {
	a := &API{
		Config:   c,
		started:  c.Now(),
		mux:      http.NewServeMux(),
		recorder: newRecorder(c.Store, c.Log),
		limiter:  newLimiter(c.RateLimit, c.Now),
		staff:    newGuard(c.Now),
		tries:    newTries(),
		written:  newWritten(),
		bodies:   newBodies(),
	}
	a.routes()
	return a
}

// Handler answers all requests of the API.
func (a *API) Handler() http.Handler { return a.mux }

// Close writes what is still to be recorded.
func (a *API) Close() { a.recorder.close() }

func (a *API) routes() {
	customers := func(pattern string, scope scope, h handler) {
		a.mux.Handle(pattern, a.endpoint(pattern, a.customer(scope), h))
	}
	customers("POST /emails", sends, a.sendEmail)
	customers("POST /emails/batch", sends, a.sendBatch)
	customers("GET /emails", everything, a.listEmails)
	customers("GET /emails/{id}", everything, a.getEmail)
	customers("PATCH /emails/{id}", everything, a.updateEmail)
	customers("POST /emails/{id}/cancel", everything, a.cancelEmail)

	customers("POST /domains", everything, a.createDomain)
	customers("GET /domains", everything, a.listDomains)
	customers("GET /domains/{id}", everything, a.getDomain)
	customers("PATCH /domains/{id}", everything, a.updateDomain)
	customers("DELETE /domains/{id}", everything, a.deleteDomain)
	customers("POST /domains/{id}/verify", everything, a.verifyDomain)

	customers("POST /api-keys", everything, a.createKey)
	customers("GET /api-keys", everything, a.listKeys)
	customers("DELETE /api-keys/{id}", everything, a.deleteKey)

	customers("GET /logs", everything, a.listLogs)
	customers("GET /logs/{id}", everything, a.getLog)

	staff := func(pattern string, h handler) {
		a.mux.Handle(pattern, a.endpoint(pattern, a.staffMember, h))
	}
	a.mux.Handle("POST /staff/sessions", a.endpoint("POST /staff/sessions", a.stranger, a.createSession))
	staff("POST /staff/accounts/{id}/block", a.blockAccount)
	staff("POST /staff/accounts/{id}/unblock-requests", a.requestUnblock)
	staff("DELETE /staff/accounts/{id}/unblock-requests", a.withdrawUnblock)
	staff("POST /staff/accounts/{id}/unblock", a.unblockAccount)
	staff("GET /staff/accounts/{id}", a.accountStory)
	staff("POST /staff/accounts/{id}/holds", a.placeHold)
	staff("DELETE /staff/accounts/{id}/holds/{hold}", a.liftHold)
	staff("POST /staff/accounts/{id}/erasure-proposals", a.proposeErasure)
	staff("POST /staff/accounts/{id}/erasures", a.erase)

	a.mux.Handle("GET /health", a.endpoint("GET /health", a.stranger, a.health))
	a.mux.Handle("/", a.endpoint("", a.stranger, a.nowhere))
}

// nowhere answers what no route matches: a path that exists with a method that
// does not, or no such path.
func (a *API) nowhere(_ context.Context, r *request) (answer, error) {
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		probe := &http.Request{Method: method, URL: r.URL, Host: r.Host}
		if _, pattern := a.mux.Handler(probe); pattern != "" && pattern != "/" {
			return answer{}, errMethod
		}
	}
	return answer{}, notFound("The requested endpoint does not exist.")
}

// Server is an HTTP server for h that bounds how long anybody can hold a
// connection.
func Server(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       2 * time.Minute, // a body of 40 MB over a slow line
		WriteTimeout:      3 * time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// health says what the platform promises at this moment.
func (a *API) health(ctx context.Context, _ *request) (answer, error) {
	body := map[string]any{
		"status":     "ok",
		"durability": a.Store.Durability(),
		"delivery":   a.Mode,
		"seal":       a.Seal(),
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := a.Store.Healthy(ctx); err != nil {
		return answer{}, err
	}
	if err := a.Tables.Ping(ctx); err != nil {
		body["status"], body["read_models"] = "degraded", "The database cannot be reached. Mail is accepted and sent; reads are refused."
	}
	return answer{status: http.StatusOK, body: body}, nil
}

// command is the authority of a new command by whoever made the request.
func (r *request) command() domain.Authority {
	by := r.by
	by.Command = newID()
	return by
}

// newID draws an id that grows with time.
func newID() uuid.UUID { return uuid.Must(uuid.NewV7()) }
