package delivery

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Config says how mail leaves this host. With Relay or Fixed all of it goes
// there; else to the mail servers of each recipient's domain.
type Config struct {
	Hostname     string    // what this host calls itself in EHLO
	Port         int       // of the recipients' mail servers; 0 is 25
	Relay        *url.URL  // smtp://user:password@host:port, or smtps://
	Fixed        string    // host:port of a server that takes everything, in the clear
	Resolver     *Resolver // nil is the system's
	AllowPrivate bool      // also connect to loopback and private addresses, for tests
	TLS          *tls.Config

	MaxConnsPerHost    int           // 0 is 20, or 100 with Relay or Fixed
	MaxMessagesPerConn int           // 0 is 100
	IdleTimeout        time.Duration // of a connection that waits for its next message; 0 is 10 s
	Timeouts           Timeouts
}

// Envelope is who a transaction is between (RFC 5321, 2.3.1).
type Envelope struct {
	From, To   string
	RequireTLS bool // with a certificate that proves the server's name; never in the clear
}

// Sender hands messages over, and keeps connections for the next ones. It may be
// used from many goroutines.
type Sender struct {
	cfg Config

	broken reputation // hosts whose STARTTLS failed: they are spoken to in the clear
	mute   reputation // hosts that let us wait for nothing: they are not asked

	mu     sync.Mutex
	hosts  map[string]*hostConns
	closed bool
}

// reputation is what holds of some hosts for a while.
type reputation struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func (r *reputation) holds(h host) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.until[h.key()])
}

func (r *reputation) note(h host, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.until == nil || len(r.until) >= 10_000 {
		r.until = map[string]time.Time{}
	}
	r.until[h.key()] = time.Now().Add(d)
}

func (r *reputation) forget(h host) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.until, h.key())
}

// hostConns are the connections with one server.
type hostConns struct {
	key   string // among a Sender's hosts
	slots chan struct{}
	idle  []*conn
	users int // that hold or wait for a slot
}

const (
	tlsBroken = time.Hour        // how long a server whose STARTTLS failed is not asked again
	notAsked  = 30 * time.Second // how long a server that did not answer is left alone: each try holds up other mail
)

// maxHosts bounds the servers that one transaction tries.
const maxHosts = 5

// NewSender checks the configuration. It connects to nobody yet.
func NewSender(c Config) (*Sender, error) {
	if _, err := hostnames.ToASCII(c.Hostname); err != nil || c.Hostname == "" {
		return nil, fmt.Errorf("delivery: %q is not a host name for EHLO", c.Hostname)
	}
	if c.Relay != nil && (c.Relay.Scheme != "smtp" && c.Relay.Scheme != "smtps" || c.Relay.Hostname() == "") {
		return nil, errors.New("delivery: a relay is smtp://host:port or smtps://host:port")
	}
	if c.Port == 0 {
		c.Port = 25
	}
	if c.Resolver == nil {
		c.Resolver = NewResolver("")
	}
	if c.MaxConnsPerHost == 0 {
		c.MaxConnsPerHost = 20
		if c.Relay != nil || c.Fixed != "" {
			c.MaxConnsPerHost = 100 // all mail goes there, and whoever runs it is ours
		}
	}
	if c.MaxMessagesPerConn == 0 {
		c.MaxMessagesPerConn = 100
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = 10 * time.Second
	}
	c.Timeouts = c.Timeouts.withDefaults()
	return &Sender{cfg: c, hosts: map[string]*hostConns{}}, nil
}

// Close ends the connections that wait. Transactions that are under way go on.
func (s *Sender) Close() error {
	s.mu.Lock()
	s.closed = true
	var idle []*conn
	for _, h := range s.hosts {
		idle = append(idle, h.idle...)
		h.idle = nil
	}
	s.mu.Unlock()
	for _, c := range idle {
		c.quit()
	}
	return nil
}

// Send is one transaction for one recipient. before, if not nil, is called when
// a connection is ready, just before the first byte of the transaction goes out:
// if it fails, nothing is sent and the result is Deferred in PhaseHeld.
func (s *Sender) Send(ctx context.Context, env Envelope, message []byte, before func() error) Result {
	began := time.Now()
	result := s.send(ctx, env, message, before)
	result.Duration = time.Since(began)
	result.Text = clip(result.Text)
	return result
}

func (s *Sender) send(ctx context.Context, env Envelope, message []byte, before func() error) Result {
	_, domain, _ := strings.Cut(env.To, "@")
	if strings.ContainsAny(env.From+env.To, "<>\r\n \x00") || domain == "" {
		return Result{Outcome: Bounced, Phase: PhaseRoute, Enhanced: "5.1.3", Text: "The address cannot be sent to.", Bounce: Bounce{"Permanent", "NoEmail"}}
	}
	early, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.Sending)
	defer cancel()
	hosts, failed := s.route(early, domain)
	if failed != nil {
		return *failed
	}
	var last Result
	for _, h := range hosts {
		var next bool
		last, next = s.sendTo(ctx, early, h, env, message, before)
		if !next || early.Err() != nil {
			return last
		}
	}
	return last
}

// sendTo tries one host. next says that another one may be tried: nothing was
// said about the recipient yet. early ends before ctx, if the end of the message has
// not left by then.
func (s *Sender) sendTo(ctx, early context.Context, h host, env Envelope, message []byte, before func() error) (result Result, next bool) {
	pool := s.enter(h.key())
	defer s.leave(pool)
	select {
	case pool.slots <- struct{}{}:
		defer func() { <-pool.slots }()
	case <-early.Done():
		return h.failed(PhaseConnect, early.Err()), false
	}
	for {
		c, fresh, f := s.connection(early, h, pool, env.RequireTLS)
		if f != nil {
			return h.fault(nil, f), true
		}
		c.until, _ = early.Deadline()
		if limit, err := strconv.Atoi(strings.TrimSpace(c.extended["SIZE"])); err == nil && limit > 0 && len(message) > limit {
			s.keep(ctx, pool, c)
			return Result{
				Outcome: Bounced, Phase: PhaseMail, Enhanced: "5.3.4", Host: c.host, IP: c.ip, TLS: c.tls,
				Text: fmt.Sprintf("The message has %d bytes and the server takes %d.", len(message), limit), Bounce: Bounce{"Permanent", "MessageTooLarge"},
			}, false
		}
		if before != nil {
			if err := before(); err != nil {
				s.keep(ctx, pool, c)
				return Result{Outcome: Deferred, Phase: PhaseHeld, Text: err.Error(), Bounce: Bounce{"Transient", "General"}}, false
			}
		}
		r, f := c.transact(ctx, env, message)
		switch {
		case f == nil:
			s.keep(ctx, pool, c)
			return Result{Outcome: Delivered, Phase: PhaseDot, Code: r.code, Enhanced: r.enhanced, Text: r.text, Host: c.host, IP: c.ip, TLS: c.tls}, false
		case !fresh && f.phase == PhaseMail && (f.err != nil || f.reply.code == 421) && ctx.Err() == nil:
			// The server closed the connection while it waited: that says nothing.
			_ = c.Close()
			continue
		case f.reply.code != 0 && f.reply.code != 421 && s.reset(ctx, c):
			s.keep(ctx, pool, c)
		default:
			_ = c.Close()
		}
		result := h.fault(c, f)
		if c.fallen && f.phase == PhaseMail && f.reply.code/100 == 5 {
			// It may refuse only because there is no TLS, in whatever words.
			s.broken.forget(h)
			result.Outcome, result.Bounce = Deferred, Bounce{"Transient", "General"}
			return result, true
		}
		// A verdict about the recipient, or a message that may have left, ends it.
		silent := f.phase == PhaseMail || f.phase == PhaseRcpt || f.phase == PhaseData
		return result, silent && (f.err != nil || f.reply.code == 421 || aboutSession(f.reply))
	}
}

// reset ends a transaction that was refused, so that the connection can have
// another.
func (s *Sender) reset(ctx context.Context, c *conn) bool {
	defer c.interruptible(ctx)()
	_, f := c.command(ctx, PhaseMail, 30*time.Second, 2, "RSET")
	return f == nil
}

// enter gives the connections with a host, and keeps them while they are used.
func (s *Sender) enter(key string) *hostConns {
	s.mu.Lock()
	defer s.mu.Unlock()
	pool := s.hosts[key]
	if pool == nil {
		pool = &hostConns{key: key, slots: make(chan struct{}, s.cfg.MaxConnsPerHost)}
		s.hosts[key] = pool
	}
	pool.users++
	return pool
}

func (s *Sender) leave(pool *hostConns) {
	s.mu.Lock()
	defer s.mu.Unlock()
	pool.users--
	s.forget(pool)
}

// forget lets go of a host that nobody uses; the caller holds the lock.
func (s *Sender) forget(pool *hostConns) {
	if pool.users == 0 && len(pool.idle) == 0 && s.hosts[pool.key] == pool {
		delete(s.hosts, pool.key)
	}
}

// keep lets a connection wait for its next message, for a short time. One whose
// caller gave up may be interrupted late, and is not kept.
func (s *Sender) keep(ctx context.Context, pool *hostConns, c *conn) {
	c.idle = time.Now()
	s.mu.Lock()
	if s.closed || ctx.Err() != nil || c.sent >= s.cfg.MaxMessagesPerConn {
		s.mu.Unlock()
		c.quit()
		return
	}
	pool.idle = append(pool.idle, c)
	s.mu.Unlock()
	time.AfterFunc(s.cfg.IdleTimeout, func() { s.expire(pool, c) })
}

func (s *Sender) expire(pool *hostConns, c *conn) {
	s.mu.Lock()
	for i, held := range pool.idle {
		if held == c && time.Since(c.idle) >= s.cfg.IdleTimeout {
			pool.idle = append(pool.idle[:i], pool.idle[i+1:]...)
			s.forget(pool)
			s.mu.Unlock()
			c.quit()
			return
		}
	}
	s.mu.Unlock()
}

// connection is one that waits, or a new one.
func (s *Sender) connection(ctx context.Context, h host, pool *hostConns, secure bool) (c *conn, fresh bool, f *fault) {
	s.mu.Lock()
	for i := len(pool.idle) - 1; i >= 0; i-- {
		if c := pool.idle[i]; !secure || c.proven {
			pool.idle = append(pool.idle[:i], pool.idle[i+1:]...)
			s.mu.Unlock()
			return c, false, nil
		}
	}
	s.mu.Unlock()
	if s.mute.holds(h) {
		return nil, true, &fault{phase: PhaseConnect, err: errMute}
	}

	if h.fixed {
		c, f = s.dial(ctx, h, tlsNever)
		return c, true, f
	}
	if h.user != nil || h.implicit || secure {
		c, f = s.dial(ctx, h, tlsVerified)
		return c, true, f
	}
	if !s.broken.holds(h) {
		c, f = s.dial(ctx, h, tlsAny)
		if f == nil || f.phase != PhaseTLS || ctx.Err() != nil {
			return c, true, f
		}
		if f.reply.code/100 != 4 { // which says that it will work again
			s.broken.note(h, tlsBroken)
		}
	}
	// Opportunistic TLS (RFC 7435): better in the clear than not at all.
	c, f = s.dial(ctx, h, tlsNever)
	if f == nil {
		c.fallen = true
	}
	return c, true, f
}

// errMute keeps one server that does not answer from holding up the mail to others.
var errMute = errors.New("the server did not answer a moment ago")

// tlsWish is how a session is to be protected.
type tlsWish int

const (
	tlsNever    tlsWish = iota
	tlsAny              // if offered, with any certificate
	tlsVerified         // with a certificate for the host's name
)

// dial opens a session on the first of the host's addresses that answers.
func (s *Sender) dial(ctx context.Context, h host, wish tlsWish) (*conn, *fault) {
	addrs, err := s.addrs(ctx, h)
	if err != nil {
		return nil, &fault{phase: PhaseConnect, err: err}
	}
	var f *fault
	for i, ip := range addrs {
		if i == 3 {
			break
		}
		var c *conn
		if c, f = s.session(ctx, h, ip, wish); f == nil {
			return c, nil
		}
		if f.phase == PhaseTLS || ctx.Err() != nil {
			return nil, f
		}
	}
	if s.cfg.Relay == nil && !h.fixed && f.timedOut() {
		s.mute.note(h, notAsked)
	}
	return nil, f
}

func (s *Sender) session(ctx context.Context, h host, ip netip.Addr, wish tlsWish) (*conn, *fault) {
	t := s.cfg.Timeouts
	dialer := net.Dialer{Timeout: t.Connect}
	raw, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(ip.String(), strconv.Itoa(h.port)))
	if err != nil {
		return nil, &fault{phase: PhaseConnect, err: err}
	}
	c := &conn{Conn: raw, raw: raw, r: bufio.NewReaderSize(raw, maxReplyLine+2), w: bufio.NewWriterSize(raw, 16<<10), host: h.name, ip: ip.String(), timeouts: t}
	defer c.interruptible(ctx)()
	if f := s.open(ctx, c, h, wish); f != nil {
		_ = c.Close()
		return nil, f
	}
	c.proven = wish == tlsVerified && c.tls != ""
	return c, nil
}

func (s *Sender) open(ctx context.Context, c *conn, h host, wish tlsWish) *fault {
	if h.implicit {
		if f := c.handshake(ctx, s.tlsConfig(h, wish)); f != nil {
			return f
		}
	}
	if _, f := c.command(ctx, PhaseGreeting, s.cfg.Timeouts.Greeting, 2, ""); f != nil {
		return f
	}
	if f := c.hello(ctx, s.cfg.Hostname); f != nil {
		return f
	}
	_, offered := c.extended["STARTTLS"]
	ip := net.ParseIP(c.ip)
	switch {
	case h.implicit || wish == tlsNever:
	case offered:
		if f := c.startTLS(ctx, s.cfg.Hostname, s.tlsConfig(h, wish)); f != nil {
			f.phase = PhaseTLS
			return f
		}
	case wish == tlsVerified && !(h.user != nil && ip.IsLoopback()):
		return &fault{phase: PhaseTLS, err: errors.New("the server offers no TLS, and it is required")}
	}
	if h.user == nil {
		return nil
	}
	return c.authenticate(ctx, h.user)
}

func (s *Sender) tlsConfig(h host, wish tlsWish) *tls.Config {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.cfg.TLS != nil {
		config = s.cfg.TLS.Clone()
	}
	config.ServerName = h.name
	config.InsecureSkipVerify = wish != tlsVerified // opportunistic: the alternative is no TLS at all (RFC 7435)
	return config
}
