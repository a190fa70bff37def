package delivery

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/emersion/go-smtp"
)

func TestRelaysAreAuthenticatedTo(t *testing.T) {
	config, roots := certificate(t)
	box := newMailbox(t, func(s *smtp.Server) { s.TLSConfig = config })
	c := relay(t, "smtp", "postbook", box.addr)
	c.TLS = &tls.Config{RootCAs: roots}
	s := newSender(t, c)
	for range 2 {
		if got := send(t, s); got.Outcome != Delivered || !strings.HasPrefix(got.TLS, "TLS 1.3") {
			t.Fatalf("%+v", got)
		}
	}
	if !slices.Equal(box.logins, []string{"postbook s3cret-word"}) {
		t.Errorf("logins: %q", box.logins)
	}
	if all := box.all(); len(all) != 2 || !all[0].secure {
		t.Errorf("got %+v", all)
	}

	// A relay that cannot prove its name does not get the password.
	s = newSender(t, relay(t, "smtp", "postbook", box.addr))
	if got := send(t, s); got.Outcome != Deferred || got.Phase != PhaseTLS {
		t.Errorf("%+v", got)
	}
	if len(box.logins) != 1 {
		t.Errorf("logins: %q", box.logins)
	}
}

func TestRelaysWithTLSFromTheFirstByte(t *testing.T) {
	config, roots := certificate(t)
	srv := serve(t, "", func(p *peer) {
		secure := tls.Server(p.Conn, config)
		if secure.Handshake() != nil {
			return
		}
		p.Conn, p.r = secure, bufio.NewReader(secure)
		manners{extensions: "AUTH LOGIN PLAIN\nSTARTTLS", replies: map[string]string{
			"AUTH LOGIN": "334 VXNlcm5hbWU6", encoded("postbook"): "334 UGFzc3dvcmQ6", encoded("s3cret-word"): "235 2.7.0 Welcome",
		}}.speak(p)
	})
	c := relay(t, "smtps", "postbook", srv.addr)
	c.TLS = &tls.Config{RootCAs: roots}
	if got := send(t, newSender(t, c)); got.Outcome != Delivered || !strings.HasPrefix(got.TLS, "TLS 1.3") {
		t.Errorf("%+v", got)
	}
	if srv.count("STARTTLS") != 0 {
		t.Errorf("heard %q", srv.commands())
	}
	if got := send(t, newSender(t, relay(t, "smtps", "postbook", srv.addr))); got.Outcome != Deferred || got.Phase != PhaseTLS {
		t.Errorf("without the relay's root: %+v", got)
	}
}

func encoded(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestWaysToAuthenticate(t *testing.T) {
	plain := "AUTH PLAIN " + encoded("\x00postbook\x00s3cret-word")
	login := []string{"AUTH LOGIN", encoded("postbook"), encoded("s3cret-word")}
	asks := map[string]string{"AUTH LOGIN": "334 VXNlcm5hbWU6", login[1]: "334 UGFzc3dvcmQ6", login[2]: "235 2.7.0 Welcome"}
	with := func(line, reply string) map[string]string {
		replies := map[string]string{}
		for k, v := range asks {
			replies[k] = v
		}
		replies[line] = reply
		return replies
	}
	for _, c := range []struct {
		name, extensions string
		replies          map[string]string
		outcome          Outcome
		code             int
		enhanced         string
		said             []string // in AUTH
	}{
		{"PLAIN", "AUTH PLAIN", nil, Delivered, 250, "2.0.0", []string{plain}},
		{"PLAIN in lower case", "auth plain cram-md5", nil, Delivered, 250, "2.0.0", []string{plain}},
		{"LOGIN", "AUTH LOGIN", asks, Delivered, 250, "2.0.0", login},
		{"refused", "AUTH PLAIN", map[string]string{"AUTH": "535 5.7.8 Authentication failed"}, Deferred, 535, "5.7.8", []string{plain}},
		{"refused for now", "AUTH PLAIN", map[string]string{"AUTH": "454 4.7.0 Temporary failure"}, Deferred, 454, "4.7.0", []string{plain}},
		{"the user is refused", "AUTH LOGIN", with(login[1], "535 5.7.8 No"), Deferred, 535, "5.7.8", login[:2]},
		{"the password is refused", "AUTH LOGIN", with(login[2], "535 5.7.8 No"), Deferred, 535, "5.7.8", login},
		{"asked for more", "AUTH PLAIN", map[string]string{"AUTH": "334 more?"}, Deferred, 334, "", []string{plain}},
		{"nothing known", "AUTH GSSAPI CRAM-MD5", nil, Deferred, 0, "", nil},
		{"none", "PIPELINING", nil, Deferred, 0, "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			// On loopback a password may go in the clear.
			srv := serve(t, "", manners{extensions: c.extensions, replies: c.replies}.speak)
			got := send(t, newSender(t, relay(t, "smtp", "postbook", srv.addr)))
			if got.Outcome != c.outcome || got.Code != c.code || got.Enhanced != c.enhanced {
				t.Errorf("%+v", got)
			}
			if c.outcome == Deferred && (got.Phase != PhaseAuth || got.Bounce.Type != "Transient" || srv.count("MAIL") != 0) {
				t.Errorf("the relay's refusal of us is taken for one of the mail: %+v, heard %q", got, srv.commands())
			}
			if strings.Contains(got.Text, "s3cret") || strings.Contains(got.Text, encoded("s3cret-word")) {
				t.Errorf("the password is in %q", got.Text)
			}
			var said []string
			for _, line := range srv.commands() {
				if !strings.HasPrefix(line, "EHLO") && !strings.HasPrefix(line, "MAIL") && !strings.HasPrefix(line, "RCPT") && line != "DATA" {
					said = append(said, line)
				}
			}
			if !slices.Equal(said, c.said) {
				t.Errorf("heard %q and not %q", said, c.said)
			}
		})
	}
}

// The server is on loopback, but the session believes otherwise.
func TestPasswordsDoNotCrossANetworkInTheClear(t *testing.T) {
	for _, ip := range []string{"203.0.113.5", "10.0.0.1", "2001:db8::1", "not an address"} {
		srv := serve(t, "", manners{extensions: "AUTH PLAIN LOGIN"}.speak)
		s := newSender(t, relay(t, "smtp", "postbook", srv.addr))
		for _, wish := range []tlsWish{tlsNever, tlsAny, tlsVerified} {
			raw, err := net.Dial("tcp", srv.addr)
			if err != nil {
				t.Fatal(err)
			}
			c := &conn{Conn: raw, raw: raw, r: replyReader(raw), w: bufio.NewWriter(raw), host: "relay.test", ip: ip, timeouts: s.cfg.Timeouts}
			f := s.open(t.Context(), c, host{name: "relay.test", user: url.UserPassword("postbook", "s3cret-word")}, wish)
			if f == nil || f.phase != PhaseAuth && f.phase != PhaseTLS {
				t.Errorf("%s: %v", ip, f)
			}
			_ = c.Close()
		}
		if srv.count("AUTH") != 0 {
			t.Errorf("%s: heard %q", ip, srv.commands())
		}
	}
}
