package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/api"
	"postbook.dev/postbook/archive"
	"postbook.dev/postbook/delivery"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/pgcluster"
	"postbook.dev/postbook/internal/sandbox"
	"postbook.dev/postbook/keyring"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/projections"
	"postbook.dev/postbook/web"
	"postbook.dev/postbook/workers"
)

// A server is one process of the platform, in any mix of roles. Its parts are
// started in the order in which they need each other, and stopped in the
// opposite one.
type server struct {
	cfg Config
	log *slog.Logger

	metrics    *metrics
	store      *eventstore.Store
	archive    *archive.Archive   // nil if there is none
	cluster    *pgcluster.Cluster // nil if the database is elsewhere
	owner      string             // URL of the database's owner
	writer     *pgxpool.Pool      // of the read models
	reader     *pgxpool.Pool
	maker      *pgxpool.Pool // of the tables, as their owner: to build and to verify read models
	markKey    []byte
	notary     *notary.Notary // nil without the role workers
	archiver   *archive.Archiver
	dispatcher *workers.Dispatcher
	directory  *directory.Directory
	vault      *vault
	root       keyring.Root
	resolver   *delivery.Resolver
	inbox      *sandbox.Inbox // nil if mail leaves the machine
	api        *api.API
	console    *web.Console
	listener   net.Listener
	smtp       net.Listener // of SMTP submission; nil without the role api

	closers []func(context.Context) error
}

func newServer(cfg Config, log *slog.Logger) *server {
	return &server{cfg: cfg, log: log, metrics: newMetrics(), directory: directory.New()}
}

// start brings everything up that serving needs. After an error, and at the end,
// stop takes it down.
func start(ctx context.Context, cfg Config, log *slog.Logger) (*server, error) {
	tune(ctx, serverShare)
	if err := cfg.whole(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	s := newServer(cfg, log)
	steps := []func(context.Context) error{
		s.openArchive, s.openLog, s.rememberArchive, s.missesArchive, s.openKeys, s.openNotary, s.openDatabase, s.openDelivery, s.openAPI, s.openConsole, s.listen, s.listenSMTP,
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, s.stop())
		}
	}
	return s, nil
}

func (s *server) atEnd(f func(context.Context) error) { s.closers = append(s.closers, f) }

// stop ends what was started, last first.
func (s *server) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i](ctx))
	}
	s.closers = nil
	return errors.Join(errs...)
}

func (s *server) openLog(ctx context.Context) error {
	key, err := markKey(s.cfg)
	if err != nil {
		return err
	}
	s.markKey = key
	c := eventstore.Config{
		Dir:        s.cfg.path("log"),
		URL:        s.cfg.NATSURL,
		Durability: s.cfg.durability(),
		Partitions: s.cfg.Partitions,
		Replicas:   s.cfg.NATSReplicas,
		MarkKey:    key,
		Registry:   catalogue.Registry(),
		Log:        s.log,
		Appended:   s.metrics.appended,
		Refused: func(ctx context.Context, of domain.Stream, c domain.Command, r *domain.Refusal) {
			api.RecordRefusal(ctx, s.store, of, c, r, func(err error) {
				s.log.Error("refusal is not on record", "command", c.Verb(), "error", err)
			})
		},
	}
	if s.archive != nil {
		c.Archive = s.archive
	}
	store, err := eventstore.Open(ctx, c)
	if err != nil {
		return err
	}
	s.store = store
	s.atEnd(func(context.Context) error { return store.Close() })
	if store.Alone() {
		return nil
	}
	return s.checkIdentity(ctx, "mark key", markKeyFile, func() (string, error) {
		sum := sha256.Sum256(append([]byte("postbook mark key\n"), key...))
		return hex.EncodeToString(sum[:8]), nil
	})
}

func (s *server) openKeys(ctx context.Context) error {
	ring, root, err := openRing(ctx, s.store, s.cfg.RootKey)
	if err != nil {
		return err
	}
	s.root = root
	if err := ring.Create(ctx, domain.Platform); err != nil {
		return err
	}
	s.vault = newVault(ring, s.store, s.log)
	s.atEnd(func(ctx context.Context) error {
		s.vault.flush(ctx)
		return nil
	})
	return nil
}

func (s *server) openDelivery(context.Context) error {
	s.resolver = delivery.NewResolver(s.cfg.DNSAddr)
	if s.cfg.Delivery != modeSandbox {
		return nil
	}
	inbox, err := sandbox.Open(sandbox.Config{Addr: "127.0.0.1:0", Dir: s.cfg.path("sandbox"), Hostname: s.cfg.Hostname, Log: s.log})
	if err != nil {
		return err
	}
	s.inbox = inbox
	s.atEnd(func(context.Context) error { return inbox.Close() })
	return nil
}

func (s *server) openAPI(context.Context) error {
	s.api = api.New(api.Config{
		Store:        s.store,
		Directory:    s.directory,
		Tables:       projections.NewTables(s.reader),
		Vault:        s.vault,
		Recipients:   recipients{s.eraser(), s.vault.ring},
		ParseMailbox: parseMailbox,
		ParseDomain:  parseDomain,
		CheckHeader: func(name, value string) error {
			return delivery.CheckHeader(delivery.Header{Name: name, Value: value})
		},
		NewKey:    newSigningKey,
		RateLimit: s.cfg.RateLimit,
		Expected:  s.cfg.expected(),
		Mode:      s.cfg.Delivery,
		Alone:     s.store.Alone(),
		Seal:      s.witnessed,
		Now:       time.Now,
		Log:       s.log,
	})
	s.atEnd(func(context.Context) error {
		s.api.Close()
		return nil
	})
	return nil
}

func (s *server) openConsole(context.Context) error {
	if !s.cfg.runs(roleConsole) {
		return nil
	}
	c := web.Config{
		Store:     s.store,
		Directory: s.directory,
		Tables:    projections.NewTables(s.reader),
		Vault:     s.vault,
		SignIn:    s.signIn,
		Record:    s.api.Record,
		Seal:      s.witnessed,
		Now:       time.Now,
		Log:       s.log,
	}
	if s.inbox != nil {
		c.Inbox = consoleInbox{s.inbox}
	}
	console, err := web.New(c)
	s.console = console
	return err
}

// signIn tells the console in its own words why somebody may not come in.
func (s *server) signIn(ctx context.Context, email, password, ip string) (directory.Person, error) {
	person, err := s.api.SignIn(ctx, email, password, ip)
	e, told := errors.AsType[*api.Error](err)
	switch {
	case told && e.Status == http.StatusUnauthorized:
		return person, web.ErrCredentials
	case told:
		return person, web.Problem{Status: e.Status, Name: e.Name, Text: e.Message}
	}
	return person, err
}

func (s *server) listen(context.Context) error {
	listener, err := net.Listen("tcp", s.cfg.HTTPAddr)
	if err != nil {
		return fmt.Errorf("listen for HTTP (POSTBOOK_HTTP_ADDR): %w", err)
	}
	s.listener = listener
	s.atEnd(func(context.Context) error {
		if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return nil
}

func (s *server) listenSMTP(context.Context) error {
	if !s.cfg.runs(roleAPI) {
		return nil
	}
	if s.cfg.SMTPAddr == "" {
		return nil
	}
	listener, err := net.Listen("tcp", s.cfg.SMTPAddr)
	if err != nil {
		return fmt.Errorf("listen for SMTP submission (POSTBOOK_SMTP_ADDR): %w", err)
	}
	s.smtp = listener
	s.atEnd(func(context.Context) error {
		if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return nil
}

// serveSMTP takes submissions until ctx ends, and then lets those under way end.
func (s *server) serveSMTP(ctx context.Context, group *errgroup.Group) {
	srv := s.api.Submission(s.cfg.Hostname)
	group.Go(func() error {
		if err := srv.Serve(s.smtp); err != nil {
			return fmt.Errorf("serve SMTP: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		ending, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if srv.Shutdown(ending) != nil {
			_ = srv.Close() // whoever is idle has to be told
		}
		_ = s.smtp.Close() // a server that has not come to serve yet does not know it, and would wait at it for ever
		return ctx.Err()
	})
}

// baseURL is where the API answers.
func (s *server) baseURL() string { return "http://" + s.listener.Addr().String() }

// run serves until ctx ends or a part fails. ready is called once everything
// answers.
func (s *server) run(ctx context.Context, ready func(context.Context) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.vault.run(ctx) })
	group.Go(func() error { return s.vault.ring.Run(ctx) })
	group.Go(func() error { return s.followLedger(ctx) })
	group.Go(func() error { return trim(ctx) })
	if s.cluster != nil {
		group.Go(func() error { return s.keepCluster(ctx) })
	}
	if !s.store.Alone() {
		group.Go(func() error { return s.answerForRootKey(ctx) })
	}
	group.Go(func() error {
		select {
		case <-s.store.Done():
			return fmt.Errorf("the log has stopped: %w", s.store.Err())
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	group.Go(func() error {
		select {
		case <-s.store.Repartitioned():
			s.log.Info("the number of partitions has changed; this process starts again")
			return eventstore.ErrRepartitioned
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	head, err := s.store.Head(ctx, eventstore.Ledger)
	if err == nil {
		// Nothing is decided before everything that was decided is known.
		err = s.directory.Await(ctx, head)
	}
	if err == nil {
		err = s.startRoles(ctx, group)
	}
	if err == nil && ready != nil {
		err = ready(ctx)
	}
	if err != nil {
		group.Go(func() error { return err })
	}
	return untilStopped(ctx, group.Wait())
}

func (s *server) startRoles(ctx context.Context, group *errgroup.Group) error {
	if s.cfg.runs(roleProjections) {
		group.Go(func() error { return s.project(ctx) })
	}
	if s.cfg.runs(roleWorkers) {
		if err := s.startWorkers(ctx, group); err != nil {
			return err
		}
		s.startNotary(ctx, group)
		if err := s.startArchiver(ctx, group); err != nil {
			return err
		}
		s.startSnapshots(ctx, group)
	}
	if err := s.serveHTTP(ctx, group); err != nil {
		return err
	}
	if s.smtp != nil {
		s.serveSMTP(ctx, group)
	}
	return s.announce()
}

func (s *server) startWorkers(ctx context.Context, group *errgroup.Group) error {
	sender, err := s.sender()
	if err != nil {
		return err
	}
	verp, err := s.vault.ring.DeriveKey(ctx, "verp")
	if err != nil {
		return err
	}
	snapshots, err := s.store.Bucket(ctx, "open-emails")
	if err != nil {
		return err
	}
	var leases *workers.Leases
	if !s.store.Alone() {
		owners, err := s.store.Bucket(ctx, "owners")
		if err != nil {
			return err
		}
		leases = workers.NewLeases(owners, s.store.Partitions(), s.log)
	}
	s.dispatcher = workers.NewDispatcher(workers.Config{
		Leases:    leases,
		Store:     s.store,
		Directory: s.directory,
		Vault:     s.vault,
		Sender:    sender,
		VERP:      delivery.VERP{Key: verp},
		Hostname:  s.cfg.Hostname,
		Mode:      s.cfg.Delivery,
		Snapshots: snapshots,
		Now:       time.Now,
		Log:       s.log,
	})
	group.Go(func() error { return s.dispatcher.Run(ctx) })
	router, err := workers.NewRouter(workers.RouterConfig{
		Store:     s.store,
		Directory: s.directory,
		Resolver:  s.resolver,
		Expected:  s.cfg.expected(),
		Now:       time.Now,
		Log:       s.log,
	})
	if err != nil {
		return err
	}
	group.Go(func() error { return router.Run(ctx) })
	group.Go(func() error { return s.eraser().Run(ctx) })
	group.Go(func() error { return s.resumeRotation(ctx) })
	return nil
}

func (s *server) sender() (*delivery.Sender, error) {
	c := delivery.Config{
		Hostname:     s.cfg.Hostname,
		Port:         s.cfg.MXPort,
		Resolver:     s.resolver,
		AllowPrivate: s.cfg.MXPrivate,
	}
	switch s.cfg.Delivery {
	case modeSandbox:
		c.Fixed = s.inbox.Addr()
	case modeRelay:
		relay, err := url.Parse(s.cfg.RelayURL)
		if err != nil {
			return nil, errors.New("POSTBOOK_RELAY_URL is not a URL")
		}
		c.Relay = relay
	}
	sender, err := delivery.NewSender(c)
	if err != nil {
		return nil, err
	}
	s.atEnd(func(context.Context) error { return sender.Close() })
	return sender, nil
}

// serveHTTP answers what the process's roles call for. Metrics and health are served
// by any.
func (s *server) serveHTTP(ctx context.Context, group *errgroup.Group) error {
	mux := http.NewServeMux()
	if err := s.serveMetrics(mux); err != nil {
		return err
	}
	mux.Handle("GET /health", s.api.Handler())
	if s.cfg.runs(roleAPI) {
		mux.Handle("/", s.api.Handler())
	}
	if s.console != nil {
		mux.Handle("/console/", s.console.Handler())
		mux.Handle("/console", http.RedirectHandler("/console/", http.StatusSeeOther))
	}
	srv := api.Server(behindProxies(s.cfg.Proxies, mux), s.log)
	if s.console != nil {
		srv.RegisterOnShutdown(s.console.End)
	}
	group.Go(func() error {
		if err := srv.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve HTTP: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		ending, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return errors.Join(srv.Shutdown(ending), ctx.Err())
	})
	return nil
}

// followLedger keeps the directory up to date. A log that is away is asked again.
func (s *server) followLedger(ctx context.Context) error {
	for {
		err := learn(ctx, s.store, s.directory, 0)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, eventstore.ErrUnavailable) {
			return err
		}
		s.log.Warn("the ledger is away", "error", err)
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// learn folds the ledger into a directory, from where that is, up to a sequence or,
// with 0, for ever.
func learn(ctx context.Context, store *eventstore.Store, d *directory.Directory, upTo uint64) error {
	f := eventstore.Following{Log: eventstore.Ledger, After: d.Seq(), StopAt: upTo}
	return store.Follow(ctx, f, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			if e.Err != nil {
				return fmt.Errorf("the ledger cannot be read: %w", e.Err)
			}
			d.Apply(e.Seq, e.Events)
		}
		return nil
	})
}

// learnAll folds what the ledger holds at this moment.
func learnAll(ctx context.Context, store *eventstore.Store, d *directory.Directory) error {
	head, err := store.Head(ctx, eventstore.Ledger)
	if err != nil || head == 0 {
		return err
	}
	return learn(ctx, store, d, head)
}

// everybody is what the ledger says at this moment.
func everybody(ctx context.Context, store *eventstore.Store) (*directory.Directory, error) {
	d := directory.New()
	return d, learnAll(ctx, store, d)
}

func parseMailbox(text string) (api.Mailbox, error) {
	a, err := delivery.ParseAddress(text)
	return api.Mailbox{Name: a.Name, Local: a.Local, Domain: a.Domain}, err
}

// parseDomain checks a domain name as the domain of an address is checked.
func parseDomain(name string) (string, error) {
	a, err := delivery.ParseAddress("postmaster@" + strings.TrimSuffix(name, "."))
	return a.Domain, err
}

// newSigningKey makes an RSA key of 2,048 bits: what every receiver verifies
// (RFC 8301, 3.2), and what fits a DNS record.
func newSigningKey() (pkcs8 []byte, public string, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, "", err
	}
	if pkcs8, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return nil, "", err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	return pkcs8, base64.StdEncoding.EncodeToString(der), err
}
