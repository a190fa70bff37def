package delivery

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// mailbox is a server with good manners.
type mailbox struct {
	addr string

	mu     sync.Mutex
	got    []delivered
	conns  int
	now    int // connections that are open
	most   int // that were open at the same time
	logins []string
}

type delivered struct {
	from, to, hello string
	data            []byte
	secure          bool
}

func newMailbox(t testing.TB, change func(*smtp.Server)) *mailbox {
	t.Helper()
	m := &mailbox{}
	srv := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.conns++
		m.now++
		m.most = max(m.most, m.now)
		return &session{m: m, c: c}, nil
	}))
	srv.Domain = "mx.test"
	srv.ErrorLog = log.New(io.Discard, "", 0)
	if change != nil {
		change(srv)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.addr = ln.Addr().String()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-stopped
	})
	return m
}

func (m *mailbox) all() []delivered {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.got)
}

func (m *mailbox) connections() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.conns
}

type session struct {
	m        *mailbox
	c        *smtp.Conn
	from, to string
}

func (s *session) Reset() {}

func (s *session) Logout() error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.now--
	return nil
}

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.from = from
	return nil
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.to = to
	if strings.HasPrefix(to, "nobody@") {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "No such user"}
	}
	return nil
}

func (s *session) Data(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	_, secure := s.c.TLSConnectionState()
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.got = append(s.m.got, delivered{s.from, s.to, s.c.Hostname(), data, secure})
	return nil
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		s.m.mu.Lock()
		defer s.m.mu.Unlock()
		s.m.logins = append(s.m.logins, user+" "+password)
		if user != "postbook" || password != "s3cret-word" {
			return errors.New("wrong")
		}
		return nil
	}), nil
}

func TestAMessageArrivesAsItWasBuilt(t *testing.T) {
	box := newMailbox(t, nil)
	_, port, _ := net.SplitHostPort(box.addr)
	dns := serveDNS(t, "rcpt.test. 60 IN MX 10 mx.rcpt.test.", "mx.rcpt.test. 60 IN A 127.0.0.1")
	s := newSender(t, Config{Hostname: "sender.test", Port: number(t, port), Resolver: NewResolver(dns.addr), AllowPrivate: true})
	m := plain()
	m.Text = ".\r\n..\r\n.a\r\n\r\n.\r\nQUIT\r\n."
	m.Attachments = []Attachment{{Filename: "a.bin", Content: bytes.Repeat([]byte{1, 2, 3}, 100_000)}}
	raw, _ := build(t, m)
	for i, message := range [][]byte{raw, []byte(".\r\n"), []byte("\r\n.\r\n.\r\n"), []byte("no end"), []byte("a\r\n.x\r\n..\r\n...\r\n.")} {
		got := within(t, func() Result { return s.Send(t.Context(), envelope, message, nil) })
		if got.Outcome != Delivered || got.Phase != PhaseDot || got.Code != 250 || got.Enhanced != "2.0.0" || got.Text == "" ||
			got.Host != "mx.rcpt.test" || got.IP != "127.0.0.1" || got.TLS != "" || got.Duration <= 0 || got.Bounce != (Bounce{}) {
			t.Errorf("%+v", got)
		}
		want := message
		if !bytes.HasSuffix(want, []byte("\r\n")) {
			want = append(bytes.Clone(want), "\r\n"...)
		}
		all := box.all()
		if len(all) != i+1 {
			t.Fatalf("%d messages arrived and not %d", len(all), i+1)
		}
		if d := all[i]; d.from != envelope.From || d.to != envelope.To || d.hello != "sender.test" || !bytes.Equal(d.data, want) {
			t.Errorf("%.60q came as %.60q from %s to %s by %s", want, d.data, d.from, d.to, d.hello)
		}
	}
}

func number(t testing.TB, text string) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestConnectionsAreUsedAgainAndNotForEver(t *testing.T) {
	box := newMailbox(t, nil)
	c := relay(t, "smtp", "", box.addr)
	c.MaxMessagesPerConn = 3
	s := newSender(t, c)
	for i := range 7 {
		// A refused recipient does not cost the connection.
		env, want := envelope, Delivered
		if i == 1 {
			env.To, want = "nobody@rcpt.test", Bounced
		}
		if got := sendTo(t, s, env); got.Outcome != want {
			t.Fatalf("%+v", got)
		}
	}
	if n := box.connections(); n != 3 {
		t.Errorf("7 transactions, at most 3 on a connection, took %d connections", n)
	}
}

func TestManyAtOnceShareFewConnections(t *testing.T) {
	box := newMailbox(t, nil)
	c := relay(t, "smtp", "", box.addr)
	c.MaxConnsPerHost = 3
	s := newSender(t, c)
	var all sync.WaitGroup
	for i := range 60 {
		all.Go(func() {
			got := s.Send(t.Context(), Envelope{From: "a@acme.test", To: fmt.Sprintf("r%d@rcpt.test", i)}, letter, nil)
			if got.Outcome != Delivered {
				t.Errorf("%+v", got)
			}
		})
	}
	all.Wait()
	seen := map[string]bool{}
	for _, d := range box.all() {
		seen[d.to] = true
	}
	box.mu.Lock()
	defer box.mu.Unlock()
	if len(seen) != 60 || len(box.got) != 60 || box.most > 3 {
		t.Errorf("%d messages for %d recipients over %d connections at once", len(box.got), len(seen), box.most)
	}
}

func TestIdleConnectionsAreClosedWithGoodManners(t *testing.T) {
	left := make(chan struct{}, 10)
	srv := serve(t, "", func(p *peer) {
		manners{}.speak(p)
		left <- struct{}{}
	})
	c := relay(t, "smtp", "", srv.addr)
	c.IdleTimeout = 20 * time.Millisecond
	s := newSender(t, c)
	for i := 1; i <= 2; i++ {
		if got := send(t, s); got.Outcome != Delivered {
			t.Fatalf("%+v", got)
		}
		within(t, func() struct{} { return <-left })
		if srv.count("QUIT") != i || srv.connections() != i {
			t.Errorf("%d connections, heard %q", srv.connections(), srv.commands())
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.hosts) != 0 {
		t.Errorf("%d hosts are remembered though nothing is open: memory would grow with every host ever spoken to", len(s.hosts))
	}
}

func TestCloseEndsWhatWaits(t *testing.T) {
	left := make(chan struct{}, 10)
	srv := serve(t, "", func(p *peer) {
		manners{}.speak(p)
		left <- struct{}{}
	})
	s := newSender(t, relay(t, "smtp", "", srv.addr))
	send(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	within(t, func() struct{} { return <-left })
	// What is still sent afterwards leaves no connection behind.
	if got := send(t, s); got.Outcome != Delivered {
		t.Errorf("%+v", got)
	}
	within(t, func() struct{} { return <-left })
	if srv.count("QUIT") != 2 {
		t.Errorf("heard %q", srv.commands())
	}
}

func TestWhatIsSaid(t *testing.T) {
	size := fmt.Sprint(" SIZE=", len(letter))
	mail, rcpt := "MAIL FROM:<"+envelope.From+">", "RCPT TO:<"+envelope.To+">"
	for _, c := range []struct {
		name, extensions string
		replies          map[string]string
		want             []string
	}{
		{"little", "8BITMIME", nil, []string{"EHLO sender.test", mail, rcpt, "DATA"}},
		{"pipelining and size", "PIPELINING\nSIZE 1000000", nil, []string{"EHLO sender.test", mail + size, rcpt, "DATA"}},
		{"size without a limit", "SIZE", nil, []string{"EHLO sender.test", mail + size, rcpt, "DATA"}},
		{"size of nought is no limit", "SIZE 0", nil, []string{"EHLO sender.test", mail + size, rcpt, "DATA"}},
		{"lower case", "size 1000\npipelining", nil, []string{"EHLO sender.test", mail + size, rcpt, "DATA"}},
		{"no EHLO", "", map[string]string{"EHLO": "502 5.5.1 What?"}, []string{"EHLO sender.test", "HELO sender.test", mail, rcpt, "DATA"}},
		{"no EHLO, and angry", "", map[string]string{"EHLO": "500 Error"}, []string{"EHLO sender.test", "HELO sender.test", mail, rcpt, "DATA"}},
		{"many lines", strings.Repeat("X-NOISE\n", 90) + "PIPELINING", nil, []string{"EHLO sender.test", mail, rcpt, "DATA"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := serve(t, "", manners{extensions: c.extensions, replies: c.replies}.speak)
			s := newSender(t, relay(t, "smtp", "", srv.addr))
			if got := send(t, s); got.Outcome != Delivered {
				t.Fatalf("%+v", got)
			}
			if !slices.Equal(srv.commands(), c.want) {
				t.Errorf("heard %q and not %q", srv.commands(), c.want)
			}
			if !slices.Equal(srv.messages(), []string{string(letter)}) {
				t.Errorf("got %q", srv.messages())
			}
		})
	}
}

// A server that answers only when it has heard all three commands shows that they
// come together; one that does not offer it must get them one by one.
func TestPipelining(t *testing.T) {
	for _, offered := range []bool{true, false} {
		alone := make(chan bool, 3)
		srv := serve(t, "", func(p *peer) {
			p.say("220 mx.test")
			p.hear()
			if offered {
				p.say("250-mx.test\r\n250 PIPELINING")
			} else {
				p.say("250 mx.test")
			}
			for i := range 3 {
				p.hear()
				if !offered {
					// Nothing more comes before the answer.
					_ = p.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
					_, err := p.r.Peek(1)
					alone <- err != nil
					_ = p.SetReadDeadline(time.Time{})
					p.say([]string{"250 Ok", "250 Ok", "354 Go on"}[i])
				}
			}
			if offered {
				p.say("250 Ok\r\n250 Ok\r\n354 Go on")
			}
			p.message()
			p.say("250 Taken")
			p.hear()
		})
		s := newSender(t, relay(t, "smtp", "", srv.addr))
		if got := send(t, s); got.Outcome != Delivered {
			t.Fatalf("%+v", got)
		}
		for range len(alone) {
			if !<-alone {
				t.Error("a command came before the one before it was answered")
			}
		}
	}
}

func TestMessagesThatAreTooLargeAreNotSent(t *testing.T) {
	for _, extensions := range []string{"SIZE 10", "PIPELINING\nsize 10"} {
		srv := serve(t, "", manners{extensions: extensions}.speak)
		s := newSender(t, relay(t, "smtp", "", srv.addr))
		for range 2 {
			got := within(t, func() Result {
				return s.Send(t.Context(), envelope, letter, func() error {
					t.Error("it is said to begin")
					return nil
				})
			})
			if got.Outcome != Bounced || got.Enhanced != "5.3.4" || got.Bounce != (Bounce{"Permanent", "MessageTooLarge"}) || got.IP != "127.0.0.1" {
				t.Errorf("%+v", got)
			}
		}
		if !slices.Equal(srv.commands(), []string{"EHLO sender.test"}) {
			t.Errorf("heard %q", srv.commands())
		}
	}
}

func TestBeforeIsAskedWhenAllIsReadyAndNothingIsSaid(t *testing.T) {
	srv := serve(t, "", manners{extensions: "PIPELINING"}.speak)
	s := newSender(t, relay(t, "smtp", "", srv.addr))
	refusal := errors.New("the account is over its limit")
	asked := 0
	for _, answer := range []error{refusal, refusal, nil} {
		got := within(t, func() Result {
			return s.Send(t.Context(), envelope, letter, func() error {
				asked++
				if !slices.Equal(srv.commands(), []string{"EHLO sender.test"}) {
					t.Errorf("before is called when %q was heard", srv.commands())
				}
				return answer
			})
		})
		if answer == nil && got.Outcome != Delivered || answer != nil && (got.Outcome != Deferred || got.Phase != PhaseHeld || got.Text != refusal.Error() || got.Code != 0) {
			t.Errorf("%v gives %+v", answer, got)
		}
	}
	if asked != 3 || srv.count("EHLO") != 1 || srv.count("MAIL") != 1 {
		t.Errorf("asked %d times, heard %q", asked, srv.commands())
	}

	// Without a connection there is nothing to ask.
	s = newSender(t, relay(t, "smtp", "", "127.0.0.1:1"))
	got := s.Send(t.Context(), envelope, letter, func() error {
		t.Error("it is asked without a connection")
		return nil
	})
	if got.Outcome != Deferred || got.Phase != PhaseConnect {
		t.Errorf("%+v", got)
	}
}

func TestEnvelopesThatWouldBeCommandsAreRefused(t *testing.T) {
	srv := serve(t, "", manners{}.speak)
	s := newSender(t, relay(t, "smtp", "", srv.addr))
	for _, env := range []Envelope{
		{"a@acme.test", "b@rcpt.test>\r\nRCPT TO:<c@rcpt.test", false},
		{"a@acme.test> X=Y", "b@rcpt.test", false},
		{"a@acme.test\n", "b@rcpt.test", false},
		{"a@acme.test", "b@rcpt.test\x00", false},
		{"a@acme.test", "b c@rcpt.test", false},
		{"a@acme.test", "b", false},
		{"a@acme.test", "", false},
		{"a@acme.test", "b@", false},
	} {
		if got := sendTo(t, s, env); got.Outcome != Bounced || got.Enhanced != "5.1.3" {
			t.Errorf("%+q: %+v", env.From+" "+env.To, got)
		}
	}
	if n := srv.connections(); n != 0 {
		t.Errorf("%d connections", n)
	}
	// A bounce of our own has no return path.
	if got := sendTo(t, s, Envelope{To: "b@rcpt.test"}); got.Outcome != Delivered || srv.count("MAIL FROM:<>") != 1 {
		t.Errorf("%+v, heard %q", got, srv.commands())
	}
}

func TestTheSandboxTakesEverything(t *testing.T) {
	box := newMailbox(t, nil)
	s := newSender(t, Config{Hostname: "sender.test", Fixed: box.addr})
	if got := sendTo(t, s, Envelope{From: "a@acme.test", To: "b@does-not-exist.test"}); got.Outcome != Delivered || got.IP != "127.0.0.1" {
		t.Errorf("%+v", got)
	}
	s = newSender(t, Config{Hostname: "sender.test", Fixed: "no port"})
	if got := send(t, s); got.Outcome != Deferred || got.Phase != PhaseRoute {
		t.Errorf("%+v", got)
	}
}
