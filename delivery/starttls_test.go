package delivery

import (
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

func TestTLSIsUsedWhereItIsOffered(t *testing.T) {
	config, _ := certificate(t, "some.other.name.test") // any certificate is better than none
	for _, m := range []manners{
		{extensions: "STARTTLS\nPIPELINING", tls: config},
		{extensions: "starttls", tls: config},
		// What was said in the clear is forgotten: an attacker may have said it.
		{extensions: "STARTTLS\nSIZE 10", secured: "PIPELINING", tls: config},
	} {
		srv := serve(t, "", m.speak)
		s := newSender(t, relay(t, "smtp", "", srv.addr))
		for range 2 {
			if got := send(t, s); got.Outcome != Delivered || !strings.HasPrefix(got.TLS, "TLS 1.3 TLS_") {
				t.Fatalf("%+v", got)
			}
		}
		want := []string{"EHLO sender.test", "STARTTLS", "EHLO sender.test"}
		if heard := srv.commands(); !slices.Equal(heard[:3], want) || srv.connections() != 1 || len(heard) != 9 {
			t.Errorf("heard %q over %d connections", heard, srv.connections())
		}
		if !slices.Equal(srv.messages(), []string{string(letter), string(letter)}) {
			t.Errorf("got %q", srv.messages())
		}
	}
}

func TestOldTLSIsNotSpoken(t *testing.T) {
	config, pool := certificate(t)
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	srv := serve(t, "", manners{extensions: "STARTTLS", tls: config}.speak)
	for _, own := range []*tls.Config{nil, {RootCAs: pool}} {
		c := relay(t, "smtp", "", srv.addr)
		c.TLS = own
		env := envelope
		env.RequireTLS = true
		if got := sendTo(t, newSender(t, c), env); got.Outcome != Deferred || got.Phase != PhaseTLS {
			t.Errorf("%+v", got)
		}
	}
}

// brokenTLS are servers that offer STARTTLS and cannot do it.
func brokenTLS(t *testing.T) map[string]func(*peer) {
	config, _ := certificate(t, "mx.test")
	after220 := func(do func(*peer)) func(*peer) {
		return func(p *peer) {
			p.say("220 mx.test")
			for {
				line := p.hear()
				switch {
				case line == "":
					return
				case line == "STARTTLS":
					do(p)
					return
				case strings.HasPrefix(line, "EHLO"):
					p.say("250-mx.test\r\n250 STARTTLS")
				case line == "DATA":
					p.say("354 Go on")
					p.message()
					p.say("250 Taken")
				default:
					p.say("250 Ok")
				}
			}
		}
	}
	return map[string]func(*peer){
		"refused for now": manners{extensions: "STARTTLS", tls: config, replies: map[string]string{"STARTTLS": "454 4.7.0 TLS not available"}}.speak,
		"refused":         manners{extensions: "STARTTLS", tls: config, replies: map[string]string{"STARTTLS": "502 5.5.1 What?"}}.speak,
		"closed":          after220(func(p *peer) { p.say("220 Go on") }),
		"no TLS behind it": after220(func(p *peer) {
			p.say("220 Go on")
			_, _ = p.r.Peek(5) // the client's first message
			p.say("I know no TLS")
		}),
		// The reply that was put in must not be taken for one that came in TLS.
		"spoken too early": after220(func(p *peer) {
			p.say("220 Go on\r\n250-mx.test\r\n250 PIPELINING")
			secure := tls.Server(p.Conn, config)
			if secure.Handshake() == nil {
				p.s.mu.Lock()
				p.s.heard = append(p.s.heard, "TLS began")
				p.s.mu.Unlock()
			}
		}),
	}
}

func TestBrokenTLSFallsBackToTheClear(t *testing.T) {
	for name, handle := range brokenTLS(t) {
		t.Run(name, func(t *testing.T) {
			srv := serve(t, "", handle)
			c := relay(t, "smtp", "", srv.addr)
			c.MaxMessagesPerConn = 1
			s := newSender(t, c)
			if got := send(t, s); got.Outcome != Delivered || got.TLS != "" || srv.connections() != 2 {
				t.Fatalf("%+v over %d connections, heard %q", got, srv.connections(), srv.commands())
			}
			// The next message does not try again what does not work, but for what may work by then.
			tried := 1
			if name == "refused for now" {
				tried = 2
			}
			if got := send(t, s); got.Outcome != Delivered || srv.connections() != 2+tried || srv.count("STARTTLS") != tried {
				t.Errorf("%+v over %d connections, heard %q", got, srv.connections(), srv.commands())
			}
			if srv.count("TLS began") != 0 {
				t.Error("TLS was begun after the server had spoken too early")
			}
		})
	}
}

// A server may want TLS and fail at it for a moment, and then again want it: none of
// that is about the recipient.
func TestARefusalInTheClearIsNoBounceWhereTLSIsOffered(t *testing.T) {
	config, _ := certificate(t, "mx.test")
	for _, refusal := range []string{"530 5.7.0 Must issue a STARTTLS command first", "554 5.7.1 Come in TLS"} {
		for _, first := range []string{"454 4.7.0 TLS not available", "502 5.5.1 What?"} {
			var broken atomic.Bool
			broken.Store(true)
			in := manners{extensions: "STARTTLS", tls: config, replies: map[string]string{"STARTTLS": first, "MAIL": refusal}}
			srv := serve(t, "", func(p *peer) {
				if broken.Load() {
					in.speak(p)
				} else {
					manners{extensions: "STARTTLS", tls: config}.speak(p)
				}
			})
			c := relay(t, "smtp", "", srv.addr)
			c.MaxMessagesPerConn = 1
			s := newSender(t, c)
			if got := send(t, s); got.Outcome != Deferred || got.Phase != PhaseMail || got.Bounce.Type != "Transient" {
				t.Errorf("%s, %s: %+v", first, refusal, got)
			}
			broken.Store(false)
			if got := send(t, s); got.Outcome != Delivered || got.TLS == "" {
				t.Errorf("%s, %s, and then it works: %+v", first, refusal, got)
			}
		}
	}
}

func TestRequiredTLSNeverFallsBack(t *testing.T) {
	self, _ := certificate(t)
	_, stranger := certificate(t)
	other, otherRoot := certificate(t, "other.test")
	type offer struct {
		handle func(*peer)
		own    *tls.Config
	}
	offers := map[string]offer{
		"not offered":  {manners{extensions: "PIPELINING"}.speak, nil},
		"HELO only":    {manners{replies: map[string]string{"EHLO": "502 What?"}}.speak, nil},
		"self-signed":  {manners{extensions: "STARTTLS", tls: self}.speak, &tls.Config{RootCAs: stranger}},
		"another name": {manners{extensions: "STARTTLS", tls: other}.speak, &tls.Config{RootCAs: otherRoot}},
	}
	for name, handle := range brokenTLS(t) {
		offers[name] = offer{handle, nil}
	}
	for name, o := range offers {
		t.Run(name, func(t *testing.T) {
			srv := serve(t, "", o.handle)
			c := relay(t, "smtp", "", srv.addr)
			c.TLS = o.own
			s := newSender(t, c)
			env := envelope
			env.RequireTLS = true
			for range 2 {
				got := within(t, func() Result {
					return s.Send(t.Context(), env, letter, func() error { return errors.New("it would begin") })
				})
				if got.Outcome != Deferred || got.Phase != PhaseTLS || got.Text == "" || got.Bounce.Type != "Transient" {
					t.Errorf("%+v", got)
				}
			}
			if srv.count("MAIL") != 0 {
				t.Errorf("heard %q", srv.commands())
			}
		})
	}
}

func TestRequiredTLSWithACertificateForTheName(t *testing.T) {
	config, roots := certificate(t)
	srv := serve(t, "", manners{extensions: "STARTTLS\nPIPELINING", tls: config}.speak)
	c := relay(t, "smtp", "", srv.addr)
	c.TLS = &tls.Config{RootCAs: roots}
	s := newSender(t, c)
	required := envelope
	required.RequireTLS = true
	for range 3 {
		if got := sendTo(t, s, required); got.Outcome != Delivered || !strings.HasPrefix(got.TLS, "TLS 1.3") {
			t.Fatalf("%+v", got)
		}
	}
	if n := srv.connections(); n != 1 {
		t.Errorf("three messages took %d connections: a server's limit is soon reached", n)
	}
}

// A connection that waits was opened for whoever does not mind: its certificate
// was not looked at.
func TestRequiredTLSDoesNotRideOnAnUnprovenConnection(t *testing.T) {
	config, _ := certificate(t)
	for _, m := range []manners{{extensions: "PIPELINING"}, {extensions: "STARTTLS", tls: config}} {
		srv := serve(t, "", m.speak)
		s := newSender(t, relay(t, "smtp", "", srv.addr))
		if got := send(t, s); got.Outcome != Delivered {
			t.Fatalf("%+v", got)
		}
		required := envelope
		required.RequireTLS = true
		if got := sendTo(t, s, required); got.Outcome != Deferred || got.Phase != PhaseTLS || len(srv.messages()) != 1 {
			t.Errorf("%+v", got)
		}
		if got := send(t, s); got.Outcome != Delivered {
			t.Errorf("%+v", got)
		}
	}
}
