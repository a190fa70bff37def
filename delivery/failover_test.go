package delivery

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// two are the mail servers of rcpt.test, the better one first, on one port.
func two(t *testing.T, first, second func(*peer)) (a, b *server, s *Sender) {
	t.Helper()
	b = serve(t, "", second)
	if first != nil {
		a = serve(t, net.JoinHostPort("127.0.0.2", fmt.Sprint(b.port())), first)
	}
	dns := serveDNS(t, "rcpt.test. 60 IN MX 10 mx1.rcpt.test.", "rcpt.test. 60 IN MX 20 mx2.rcpt.test.",
		"mx1.rcpt.test. 60 IN A 127.0.0.2", "mx2.rcpt.test. 60 IN A 127.0.0.1")
	return a, b, newSender(t, Config{Hostname: "sender.test", Port: b.port(), Resolver: NewResolver(dns.addr), AllowPrivate: true})
}

func TestTheBestServerIsEnough(t *testing.T) {
	a, b, s := two(t, manners{}.speak, manners{}.speak)
	if got := send(t, s); got.Outcome != Delivered || got.Host != "mx1.rcpt.test" || got.IP != "127.0.0.2" {
		t.Errorf("%+v", got)
	}
	if a.connections() != 1 || b.connections() != 0 {
		t.Errorf("%d and %d connections", a.connections(), b.connections())
	}
}

// What says nothing about the recipient is tried with the next server.
func TestTheNextServerIsTried(t *testing.T) {
	says := func(line, reply string) func(*peer) {
		return manners{replies: map[string]string{line: reply}}.speak
	}
	for name, first := range map[string]func(*peer){
		"nobody answers":       nil,
		"gone at once":         func(*peer) {},
		"greeting 554":         says("", "554 5.7.1 Not you"),
		"greeting 421":         says("", "421 4.3.2 Busy"),
		"garbage":              says("", "hello"),
		"EHLO and HELO 550":    manners{replies: map[string]string{"EHLO": "550 No", "HELO": "550 No"}}.speak,
		"MAIL 421":             says("MAIL", "421 4.7.0 Too busy"),
		"gone at MAIL":         says("MAIL", "CLOSE"),
		"RCPT 421":             says("RCPT", "421 4.7.0 Too busy"),
		"gone at RCPT":         says("RCPT", "CLOSE"),
		"gone at DATA":         says("DATA", "CLOSE"),
		"gone at DATA in pipe": manners{extensions: "PIPELINING", replies: map[string]string{"DATA": "CLOSE"}}.speak,
	} {
		t.Run(name, func(t *testing.T) {
			_, b, s := two(t, first, manners{}.speak)
			if got := send(t, s); got.Outcome != Delivered || got.Host != "mx2.rcpt.test" || len(b.messages()) != 1 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// A word about the recipient stands; and what may have been delivered is not
// delivered again by us at once.
func TestTheNextServerIsNotTried(t *testing.T) {
	for _, c := range []struct {
		line, reply string
		outcome     Outcome
		phase       string
	}{
		{"MAIL", "450 4.1.8 Later", Deferred, PhaseMail},
		{"MAIL", "550 5.7.1 No", Bounced, PhaseMail},
		{"RCPT", "450 4.2.0 Greylisted", Deferred, PhaseRcpt},
		{"RCPT", "550 5.1.1 No such user", Bounced, PhaseRcpt},
		{"DATA", "554 5.5.1 No", Bounced, PhaseData},
		{".", "451 4.7.1 Greylisted", Deferred, PhaseDot},
		{".", "421 4.7.0 Closing", Deferred, PhaseDot},
		{".", "554 5.7.1 Spam", Bounced, PhaseDot},
		{".", "CLOSE", Unknown, PhaseDot},
		{".", "garbage", Unknown, PhaseDot},
	} {
		t.Run(fmt.Sprintf("%s %.3s", c.line, c.reply), func(t *testing.T) {
			_, b, s := two(t, manners{extensions: "PIPELINING", replies: map[string]string{c.line: c.reply}}.speak, manners{}.speak)
			if got := send(t, s); got.Outcome != c.outcome || got.Phase != c.phase || got.Host != "mx1.rcpt.test" {
				t.Errorf("%+v", got)
			}
			if n := b.connections(); n != 0 {
				t.Errorf("the second server has %d connections", n)
			}
		})
	}
}

func TestWhenNoServerIsThereTheMailWaits(t *testing.T) {
	refuse := manners{replies: map[string]string{"": "554 5.7.1 No service for you"}}.speak
	a, b, s := two(t, refuse, refuse)
	got := send(t, s)
	if got.Outcome != Deferred || got.Phase != PhaseGreeting || got.Code != 554 || got.Host != "mx2.rcpt.test" || a.connections() != 1 || b.connections() != 1 {
		t.Errorf("%+v", got)
	}
}

// Both addresses of a host are tried before it is given up.
func TestTheNextAddressOfAHostIsTried(t *testing.T) {
	srv := serve(t, "", manners{}.speak)
	dns := serveDNS(t, "rcpt.test. 60 IN MX 10 mx.rcpt.test.", "mx.rcpt.test. 60 IN AAAA ::1", "mx.rcpt.test. 60 IN A 127.0.0.3", "mx.rcpt.test. 60 IN A 127.0.0.1")
	s := newSender(t, Config{Hostname: "sender.test", Port: srv.port(), Resolver: NewResolver(dns.addr), AllowPrivate: true})
	if got := send(t, s); got.Outcome != Delivered || got.IP != "127.0.0.1" {
		t.Errorf("%+v", got)
	}
}

func TestGreylistedMailGetsThroughTheSecondTime(t *testing.T) {
	srv := serve(t, "", func(p *peer) {
		p.say("220 mx.test")
		refused := false
		for {
			line := p.hear()
			switch {
			case line == "" || line == "QUIT":
				return
			case strings.HasPrefix(line, "RCPT") && !refused:
				refused = true
				p.say("450 4.2.0 Greylisted, come back in a minute")
			case line == "DATA":
				p.say("354 Go on")
				p.message()
				p.say("250 2.0.0 Taken")
			default:
				p.say("250 Ok")
			}
		}
	})
	s := newSender(t, relay(t, "smtp", "", srv.addr))
	if got := send(t, s); got.Outcome != Deferred || got.Code != 450 || got.Phase != PhaseRcpt {
		t.Errorf("%+v", got)
	}
	if got := send(t, s); got.Outcome != Delivered {
		t.Errorf("%+v", got)
	}
}
