package delivery

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// patience is how long a test waits for what has to happen: it only ever passes
// when something is wrong.
const patience = 10 * time.Second

// server is a scripted TCP server, for manners that no library offers.
type server struct {
	addr string
	ln   net.Listener
	done sync.WaitGroup

	stopping chan struct{} // is closed when the test ends

	mu     sync.Mutex
	open   map[net.Conn]bool
	conns  int      // connections that were accepted
	heard  []string // command lines of all connections
	bodies []string // messages as they came, dots still doubled
}

// peer is the server's side of one connection.
type peer struct {
	net.Conn
	r *bufio.Reader
	s *server
	n int // of the connection, from 1
}

// serve runs handle for each connection until the test ends. addr may be empty.
func serve(t testing.TB, addr string, handle func(*peer)) *server {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: ln.Addr().String(), ln: ln, open: map[net.Conn]bool{}, stopping: make(chan struct{})}
	s.done.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.open[c] = true
			s.conns++
			p := &peer{Conn: c, r: bufio.NewReaderSize(c, 64<<10), s: s, n: s.conns}
			s.mu.Unlock()
			s.done.Go(func() {
				handle(p)
				s.mu.Lock()
				delete(s.open, c)
				s.mu.Unlock()
				_ = c.Close()
			})
		}
	})
	t.Cleanup(s.stop)
	return s
}

func (s *server) stop() {
	close(s.stopping)
	_ = s.ln.Close()
	s.mu.Lock()
	for c := range s.open {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
}

func (s *server) port() int { return s.ln.Addr().(*net.TCPAddr).Port }

// commands are the lines that were heard so far.
func (s *server) commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.heard)
}

func (s *server) messages() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bodies)
}

func (s *server) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// count is how many commands began with prefix.
func (s *server) count(prefix string) int {
	n := 0
	for _, line := range s.commands() {
		if strings.HasPrefix(line, prefix) {
			n++
		}
	}
	return n
}

func (p *peer) say(text string) {
	if !strings.HasSuffix(text, "\r\n") {
		text += "\r\n"
	}
	_, _ = p.Write([]byte(text))
}

// hear reads a command line; it is "" when the client is gone.
func (p *peer) hear() string {
	line, err := p.r.ReadString('\n')
	if err != nil {
		return ""
	}
	line = strings.TrimSuffix(line, "\r\n")
	p.s.mu.Lock()
	p.s.heard = append(p.s.heard, line)
	p.s.mu.Unlock()
	return line
}

// message reads up to the dot; ok is false when the client is gone before.
func (p *peer) message() (ok bool) {
	var body strings.Builder
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		body.WriteString(line)
	}
	p.s.mu.Lock()
	p.s.bodies = append(p.s.bodies, body.String())
	p.s.mu.Unlock()
	return true
}

// hang says nothing until the client is gone.
func (p *peer) hang() {
	for p.hear() != "" {
	}
}

// manners is how a scripted server behaves. replies has what it says to a line
// that begins so ("" is the greeting, "." the end of a message), where that is
// not the usual; "HANG" and "CLOSE" do that.
type manners struct {
	extensions string // of EHLO, one a line
	secured    string // of EHLO in TLS; the same if empty
	replies    map[string]string
	tls        *tls.Config
	atHang     func() // called when it begins to hang
}

func (m manners) reply(line, usual string) string {
	best, reply := -1, usual
	for prefix, r := range m.replies {
		exact := prefix == "" || prefix == "."
		if (line == prefix || !exact && strings.HasPrefix(line, prefix)) && len(prefix) > best {
			best, reply = len(prefix), r
		}
	}
	return reply
}

// answer says a reply, and whether the session goes on.
func (m manners) answer(p *peer, reply string) bool {
	switch reply {
	case "CLOSE":
		return false
	case "HANG":
		if m.atHang != nil {
			m.atHang()
		}
		p.hang()
		return false
	}
	p.say(reply)
	return !strings.HasPrefix(reply, "421")
}

func (m manners) speak(p *peer) {
	inTLS := false
	if !m.answer(p, m.reply("", "220 mx.test ESMTP")) {
		return
	}
	for {
		line := p.hear()
		if line == "" {
			return
		}
		verb, _, _ := strings.Cut(line, " ")
		usual := "250 2.0.0 Ok"
		switch verb {
		case "EHLO":
			usual = "250-mx.test"
			extensions := m.extensions
			if inTLS && m.secured != "" {
				extensions = m.secured
			}
			for e := range strings.SplitSeq(extensions, "\n") {
				usual += "\r\n250-" + e
			}
			usual += "\r\n250 HELP"
		case "STARTTLS":
			usual = "220 2.0.0 Go on"
		case "DATA":
			usual = "354 Go on"
		case "QUIT":
			usual = "221 2.0.0 Bye"
		case "AUTH":
			usual = "235 2.7.0 Welcome"
		}
		reply := m.reply(line, usual)
		if !m.answer(p, reply) || verb == "QUIT" {
			return
		}
		switch {
		case verb == "STARTTLS" && strings.HasPrefix(reply, "220"):
			secure := tls.Server(p.Conn, m.tls)
			if secure.Handshake() != nil {
				return
			}
			inTLS = true
			p.Conn = secure
			p.r.Reset(secure)
		case verb == "DATA" && strings.HasPrefix(reply, "354"):
			if !p.message() || !m.answer(p, m.reply(".", "250 2.0.0 Taken")) {
				return
			}
		}
	}
}

// relay is the configuration that sends all mail to a server.
func relay(t testing.TB, scheme, user, addr string) Config {
	t.Helper()
	u := &url.URL{Scheme: scheme, Host: addr}
	if user != "" {
		u.User = url.UserPassword(user, "s3cret-word")
	}
	return Config{Hostname: "sender.test", Relay: u}
}

func newSender(t testing.TB, c Config) *Sender {
	t.Helper()
	s, err := NewSender(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

var (
	envelope = Envelope{From: "bounces+1@send.acme.test", To: "jane@rcpt.test"}
	letter   = []byte("From: a@acme.test\r\nSubject: hello\r\n\r\nHello.\r\n")
)

// send is Send with a guard against hanging for ever.
func send(t testing.TB, s *Sender) Result { return sendTo(t, s, envelope) }

func sendTo(t testing.TB, s *Sender, env Envelope) Result {
	t.Helper()
	return within(t, func() Result { return s.Send(t.Context(), env, letter, nil) })
}

func within[T any](t testing.TB, do func() T) T {
	t.Helper()
	done := make(chan T, 1)
	go func() { done <- do() }()
	select {
	case got := <-done:
		return got
	case <-time.After(patience):
		t.Fatal("it hangs")
		panic("unreachable")
	}
}

// certificate is for 127.0.0.1 and the names, signed by itself.
func certificate(t testing.TB, names ...string) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: names, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	if len(names) == 0 {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
}

// nameServer is a DNS server on UDP and TCP.
type nameServer struct {
	addr string

	mu      sync.Mutex
	records map[string][]dns.RR
	failing map[string]bool // names that are answered with SERVFAIL
	silent  map[string]bool // names that are not answered
	asked   map[string]int  // by "TYPE name"
}

// serveDNS answers with records in the form of zone files. A name without any is
// NXDOMAIN; one with others is NODATA.
func serveDNS(t testing.TB, records ...string) *nameServer {
	t.Helper()
	n := &nameServer{records: map[string][]dns.RR{}, failing: map[string]bool{}, silent: map[string]bool{}, asked: map[string]int{}}
	n.set(t, records...)
	var packets net.PacketConn
	var streams net.Listener
	for range 20 { // the port that UDP gets may be taken for TCP
		var err error
		if packets, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		n.addr = packets.LocalAddr().String()
		if streams, err = net.Listen("tcp", n.addr); err == nil {
			break
		}
		_ = packets.Close()
	}
	if streams == nil {
		t.Fatal("no port is free for both UDP and TCP")
	}
	for _, srv := range []*dns.Server{{PacketConn: packets, Handler: n}, {Listener: streams, Handler: n}} {
		ready := make(chan struct{})
		stopped := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(ready) }
		go func() {
			defer close(stopped)
			_ = srv.ActivateAndServe()
		}()
		<-ready
		t.Cleanup(func() {
			_ = srv.Shutdown()
			<-stopped
		})
	}
	return n
}

// set replaces all records.
func (n *nameServer) set(t testing.TB, records ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.records)
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.ToLower(rr.Header().Name)
		n.records[name] = append(n.records[name], rr)
	}
}

func (n *nameServer) fail(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failing[name] = true
}

func (n *nameServer) hush(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent[name] = true
}

func (n *nameServer) count(question string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked[question]
}

func (n *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, kind := strings.ToLower(q.Question[0].Name), q.Question[0].Qtype
	n.asked[dns.TypeToString[kind]+" "+name]++
	m := new(dns.Msg)
	m.SetReply(q)
	m.Authoritative, m.RecursionAvailable = true, true
	switch {
	case n.silent[name]:
		return
	case n.failing[name]:
		m.Rcode = dns.RcodeServerFailure
	case len(n.records[name]) == 0:
		m.Rcode = dns.RcodeNameError
	default:
		for range 8 { // follow aliases
			alias := ""
			for _, rr := range n.records[name] {
				if c, ok := rr.(*dns.CNAME); ok {
					alias = strings.ToLower(c.Target)
				}
				if rr.Header().Rrtype == kind || rr.Header().Rrtype == dns.TypeCNAME {
					m.Answer = append(m.Answer, rr)
				}
			}
			if name = alias; alias == "" {
				break
			}
		}
	}
	if w.LocalAddr().Network() == "udp" {
		m.Truncate(dns.MinMsgSize)
	}
	_ = w.WriteMsg(m)
}
