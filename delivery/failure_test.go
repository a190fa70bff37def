package delivery

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// A server says no in each phase, with and without PIPELINING.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		line, reply string
		outcome     Outcome
		phase       string
		code        int
		enhanced    string
	}{
		{"", "421 4.3.2 Shutting down", Deferred, PhaseGreeting, 421, "4.3.2"},
		{"", "450 4.7.1 Not now", Deferred, PhaseGreeting, 450, "4.7.1"},
		{"", "554 5.7.1 Not you", Deferred, PhaseGreeting, 554, "5.7.1"},
		{"EHLO", "421 4.7.0 Try again", Deferred, PhaseEHLO, 421, "4.7.0"},
		{"EHLO", "450 Later", Deferred, PhaseEHLO, 450, ""},
		{"MAIL", "421 4.7.0 Too much from you", Deferred, PhaseMail, 421, "4.7.0"},
		{"MAIL", "451 4.3.0 Trouble here", Deferred, PhaseMail, 451, "4.3.0"},
		{"MAIL", "550 5.7.1 Not from there", Bounced, PhaseMail, 550, "5.7.1"},
		{"RCPT", "421 4.7.0 Goodbye", Deferred, PhaseRcpt, 421, "4.7.0"},
		{"RCPT", "450 4.2.0 Greylisted", Deferred, PhaseRcpt, 450, "4.2.0"},
		{"RCPT", "452 4.5.3 Too many", Deferred, PhaseRcpt, 452, "4.5.3"},
		{"RCPT", "550 5.1.1 No such user", Bounced, PhaseRcpt, 550, "5.1.1"},
		{"RCPT", "550-5.1.1 No such\r\n550 5.1.1 user", Bounced, PhaseRcpt, 550, "5.1.1"},
		{"DATA", "421 4.3.0 Closing", Deferred, PhaseData, 421, "4.3.0"},
		{"DATA", "451 4.3.0 Later", Deferred, PhaseData, 451, "4.3.0"},
		{"DATA", "554 5.5.1 No valid recipients", Bounced, PhaseData, 554, "5.5.1"},
		{"DATA", "250 2.0.0 What is that?", Deferred, PhaseData, 250, "2.0.0"},
		{".", "421 4.3.0 Closing", Deferred, PhaseDot, 421, "4.3.0"},
		{".", "451 4.7.1 Greylisted", Deferred, PhaseDot, 451, "4.7.1"},
		{".", "552 5.2.2 Mailbox full", Deferred, PhaseDot, 552, "5.2.2"},
		{".", "554 5.7.1 Spam", Bounced, PhaseDot, 554, "5.7.1"},
	} {
		for _, extensions := range []string{"SIZE", "PIPELINING"} {
			t.Run(fmt.Sprintf("%q %s %s", c.line, c.reply[:3], extensions), func(t *testing.T) {
				srv := serve(t, "", manners{extensions: extensions, replies: map[string]string{c.line: c.reply}}.speak)
				got := send(t, newSender(t, relay(t, "smtp", "", srv.addr)))
				if got.Outcome != c.outcome || got.Phase != c.phase || got.Code != c.code || got.Enhanced != c.enhanced {
					t.Errorf("%+v", got)
				}
				want := strings.ReplaceAll(strings.ReplaceAll(c.reply, "\r\n550 ", "\n"), c.reply[:4], "")
				if got.Text != want || got.Host != "127.0.0.1" || got.Bounce.Type == "" {
					t.Errorf("%+v, and the server said %q", got, want)
				}
				if c.line != "." && c.line != "DATA" && len(srv.messages()) > 0 && srv.messages()[0] != "" {
					t.Errorf("the message left all the same: %q", srv.messages())
				}
			})
		}
	}
}

// The connection is good for the next recipient, who gets no more and no less
// than is his.
func TestARefusalLeavesTheConnectionUsable(t *testing.T) {
	for _, extensions := range []string{"SIZE", "PIPELINING"} {
		for line, reply := range map[string]string{
			"MAIL FROM:<bad@": "550 5.7.1 No", "RCPT TO:<bad@": "550 5.1.1 No",
		} {
			// Without PIPELINING a server never hears DATA; with it this one says yes
			// though nobody is to get the message.
			srv := serve(t, "", manners{extensions: extensions, replies: map[string]string{line: reply}}.speak)
			s := newSender(t, relay(t, "smtp", "", srv.addr))
			bad := Envelope{From: "good@acme.test", To: "bad@rcpt.test"}
			if strings.HasPrefix(line, "MAIL") {
				bad = Envelope{From: "bad@acme.test", To: "good@rcpt.test"}
			}
			if got := sendTo(t, s, bad); got.Outcome != Bounced {
				t.Errorf("%s: %+v", line, got)
			}
			if got := sendTo(t, s, envelope); got.Outcome != Delivered {
				t.Errorf("after %s: %+v", line, got)
			}
			messages := srv.messages()
			if len(messages) == 0 || messages[len(messages)-1] != string(letter) || len(messages) > 1 && (messages[0] != "" || len(messages) != 2) {
				t.Errorf("%s: got %q", line, messages)
			}
			if srv.connections() != 1 || srv.count("RSET") != 1 {
				t.Errorf("%s: %d connections, heard %q", line, srv.connections(), srv.commands())
			}
		}
	}
}

func TestAServerThatClosedMeanwhileIsCalledAgain(t *testing.T) {
	for _, extensions := range []string{"SIZE", "PIPELINING"} {
		for name, bye := range map[string]string{"without a word": "", "with 421": "421 4.4.2 You were idle", "with garbage": "?"} {
			t.Run(extensions+" "+name, func(t *testing.T) {
				// One that serves a single message on its first connection.
				srv := serve(t, "", func(p *peer) {
					m := manners{extensions: extensions}
					if p.n == 1 {
						seen := 0
						p.say("220 mx.test")
						for {
							line := p.hear()
							switch {
							case line == "":
								return
							case strings.HasPrefix(line, "MAIL") && seen == 1:
								if bye != "" {
									p.say(bye)
								}
								return
							case strings.HasPrefix(line, "EHLO"):
								p.say("250-mx.test\r\n250 " + extensions)
							case line == "DATA":
								p.say("354 Go on")
								p.message()
								p.say("250 Taken")
								seen++
							default:
								p.say("250 Ok")
							}
						}
					}
					m.speak(p)
				})
				s := newSender(t, relay(t, "smtp", "", srv.addr))
				for range 2 {
					if got := send(t, s); got.Outcome != Delivered {
						t.Fatalf("%+v", got)
					}
				}
				if srv.connections() != 2 || len(srv.messages()) != 2 {
					t.Errorf("%d messages over %d connections", len(srv.messages()), srv.connections())
				}
			})
		}
	}
}

// Nothing that is lost before the dot was written can have been delivered; what
// is lost after it may have been, and nobody can tell (RFC 1047).
func TestLostConnections(t *testing.T) {
	large := bytes.Repeat([]byte("a line of the message that is lost on its way\r\n"), 1_000_000)
	reset := func(p *peer) { _ = p.Conn.(*net.TCPConn).SetLinger(0) }
	inBody := func(p *peer) {
		p.say("220 mx.test")
		for p.hear() != "DATA" {
			p.say("250 Ok")
		}
		p.say("354 Go on")
		_, _ = p.r.Peek(1)
		reset(p)
	}
	afterDot := func(text string) func(*peer) {
		return manners{replies: map[string]string{".": text}}.speak
	}
	for _, c := range []struct {
		name    string
		handle  func(*peer)
		message []byte
		outcome Outcome
		phase   string
	}{
		{"at once", func(*peer) {}, letter, Deferred, PhaseGreeting},
		{"in the greeting", func(p *peer) { _, _ = p.Write([]byte("220-mx")) }, letter, Deferred, PhaseGreeting},
		{"garbage for a greeting", manners{replies: map[string]string{"": "SSH-2.0-OpenSSH_9.2p1"}}.speak, letter, Deferred, PhaseGreeting},
		{"endless greeting", func(p *peer) { flood(p, "220-and more\r\n") }, letter, Deferred, PhaseGreeting},
		{"endless line", func(p *peer) { flood(p, "2") }, letter, Deferred, PhaseGreeting},
		{"at EHLO", manners{replies: map[string]string{"EHLO": "CLOSE"}}.speak, letter, Deferred, PhaseEHLO},
		{"endless EHLO", func(p *peer) { p.say("220 mx"); p.hear(); flood(p, "250-X-MORE\r\n") }, letter, Deferred, PhaseEHLO},
		{"at MAIL", manners{replies: map[string]string{"MAIL": "CLOSE"}}.speak, letter, Deferred, PhaseMail},
		{"garbage to MAIL", manners{replies: map[string]string{"MAIL": "what?"}}.speak, letter, Deferred, PhaseMail},
		{"at RCPT", manners{replies: map[string]string{"RCPT": "CLOSE"}}.speak, letter, Deferred, PhaseRcpt},
		{"at RCPT, pipelined", manners{extensions: "PIPELINING", replies: map[string]string{"RCPT": "CLOSE"}}.speak, letter, Deferred, PhaseRcpt},
		{"at DATA", manners{replies: map[string]string{"DATA": "CLOSE"}}.speak, letter, Deferred, PhaseData},
		{"at DATA, pipelined", manners{extensions: "PIPELINING", replies: map[string]string{"DATA": "CLOSE"}}.speak, letter, Deferred, PhaseData},
		{"endless DATA", manners{replies: map[string]string{"DATA": strings.Repeat("354-go\r\n", 200) + "354 go"}}.speak, letter, Deferred, PhaseData},
		{"in the body", inBody, large, Deferred, PhaseBody},
		{"after the dot", afterDot("CLOSE"), letter, Unknown, PhaseDot},
		{"garbage after the dot", afterDot("hello?"), letter, Unknown, PhaseDot},
		{"two replies in one after the dot", afterDot("250-Ok\r\n550 no"), letter, Unknown, PhaseDot},
		{"endless reply after the dot", afterDot(strings.Repeat("250-ok\r\n", 200) + "250 ok"), letter, Unknown, PhaseDot},
		{"half a reply after the dot", func(p *peer) {
			manners{replies: map[string]string{"DATA": "354 Go on\r\n"}}.speak(&peer{Conn: halfReply{p.Conn}, r: p.r, s: p.s, n: p.n})
		}, letter, Unknown, PhaseDot},
	} {
		t.Run(c.name, func(t *testing.T) {
			srv := serve(t, "", c.handle)
			s := newSender(t, relay(t, "smtp", "", srv.addr))
			got := within(t, func() Result { return s.Send(t.Context(), envelope, c.message, nil) })
			if got.Outcome != c.outcome || got.Phase != c.phase || got.Code != 0 || got.Text == "" || len(got.Text) > 300 {
				t.Errorf("%+v", got)
			}
			if want := map[Outcome]string{Deferred: "Transient", Unknown: "Undetermined"}[c.outcome]; got.Bounce.Type != want {
				t.Errorf("%+v", got)
			}
			if n := srv.connections(); n != 1 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

func flood(p *peer, text string) {
	for {
		if _, err := p.Write([]byte(text)); err != nil {
			return
		}
	}
}

// halfReply closes the connection in the middle of the reply to the dot.
type halfReply struct{ net.Conn }

func (c halfReply) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "Taken") {
		_, _ = c.Conn.Write([]byte("250 2.0.0 Tak"))
		_ = c.Close()
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

// hanging are servers that stop talking in a phase, and in which it is noticed.
func hanging(atHang func()) map[string]func(*peer) {
	at := func(line, extensions string) func(*peer) {
		return manners{extensions: extensions, replies: map[string]string{line: "HANG"}, atHang: atHang}.speak
	}
	return map[string]func(*peer){
		PhaseGreeting: at("", ""), PhaseEHLO: at("EHLO", ""), PhaseTLS: at("STARTTLS", "STARTTLS"), PhaseMail: at("MAIL", ""),
		PhaseRcpt: at("RCPT", ""), PhaseData: at("DATA", ""), PhaseDot: at(".", "PIPELINING"),
		PhaseBody: func(p *peer) {
			p.say("220 mx.test")
			for p.hear() != "DATA" {
				p.say("250 Ok")
			}
			p.say("354 Go on")
			_, _ = p.r.Peek(1)
			atHang()
			<-p.s.stopping
		},
	}
}

var huge = bytes.Repeat([]byte("a line of a message that nobody reads to its end\r\n"), 1_000_000)

func checkHung(t *testing.T, phase string, got Result) {
	t.Helper()
	want := Deferred
	if phase == PhaseDot {
		want = Unknown
	}
	if got.Outcome != want || got.Phase != phase || got.Code != 0 || got.Text == "" {
		t.Errorf("%+v", got)
	}
}

func messageFor(phase string) []byte {
	if phase == PhaseBody {
		return huge
	}
	return letter
}

func TestAHangingServerIsLeftAtOnceWhenTheCallerGivesUp(t *testing.T) {
	for phase := range hanging(nil) {
		t.Run(phase, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			srv := serve(t, "", hanging(cancel)[phase])
			s := newSender(t, relay(t, "smtp", "", srv.addr))
			env := envelope
			got := within(t, func() Result { return s.Send(ctx, env, messageFor(phase), nil) })
			if phase == PhaseGreeting && got.Phase == PhaseConnect {
				got.Phase = phase // the server's side may be there first
			}
			checkHung(t, phase, got)
			if got.Duration > 5*time.Second || srv.connections() != 1 {
				t.Errorf("after %v and %d connections", got.Duration, srv.connections())
			}
		})
	}
}

func TestEachPhaseHasItsTimeout(t *testing.T) {
	const short = 30 * time.Millisecond
	for phase, limit := range map[string]Timeouts{
		PhaseGreeting: {Greeting: short}, PhaseEHLO: {Command: short}, PhaseMail: {Command: short}, PhaseRcpt: {Command: short},
		PhaseData: {Command: short, Data: short}, PhaseBody: {Block: short}, PhaseDot: {Dot: short},
	} {
		t.Run(phase, func(t *testing.T) {
			srv := serve(t, "", hanging(func() {})[phase])
			c := relay(t, "smtp", "", srv.addr)
			c.Timeouts = limit
			s := newSender(t, c)
			got := within(t, func() Result { return s.Send(t.Context(), envelope, messageFor(phase), nil) })
			checkHung(t, phase, got)
		})
	}
}

// Drips keep each phase's time from running out, and must not hold mail up for hours. Once
// the message has left, only its own time ends the wait for the answer.
func TestAServerThatDripsIsLeft(t *testing.T) {
	for _, phase := range []string{PhaseGreeting, PhaseRcpt} {
		t.Run(phase, func(t *testing.T) {
			srv := serve(t, "", func(p *peer) {
				if phase == PhaseRcpt {
					p.say("220 mx.test")
					for !strings.HasPrefix(p.hear(), "RCPT") {
						p.say("250 Ok")
					}
				}
				for p.say("250-Wait"); ; {
					select {
					case <-p.s.stopping:
						return
					case <-time.After(time.Millisecond):
						p.say("250-Wait")
					}
				}
			})
			c := relay(t, "smtp", "", srv.addr)
			c.Timeouts = Timeouts{Sending: 60 * time.Millisecond}
			got := within(t, func() Result { return newSender(t, c).Send(t.Context(), envelope, letter, nil) })
			if got.Outcome != Deferred || got.Phase != phase {
				t.Errorf("%+v", got)
			}
		})
	}
	release := make(chan struct{})
	srv := serve(t, "", func(p *peer) {
		p.say("220 mx.test")
		for p.hear() != "DATA" {
			p.say("250 Ok")
		}
		p.say("354 Go on")
		p.message()
		<-release
		p.say("250 2.0.0 Taken")
	})
	c := relay(t, "smtp", "", srv.addr)
	c.Timeouts = Timeouts{Sending: time.Second}
	time.AfterFunc(1200*time.Millisecond, func() { close(release) })
	if got := within(t, func() Result { return newSender(t, c).Send(t.Context(), envelope, letter, nil) }); got.Outcome != Delivered {
		t.Errorf("a message that had left was given up: %+v", got)
	}
}

// Each try of a server that does not answer takes its time, which other mail waits for.
func TestAServerThatDoesNotAnswerIsLeftAlone(t *testing.T) {
	srv := serve(t, "", func(p *peer) { p.hang() })
	dns := serveDNS(t, "rcpt.test. 60 IN MX 10 mx.rcpt.test.", "mx.rcpt.test. 60 IN A 127.0.0.1")
	s := newSender(t, Config{
		Hostname: "sender.test", Port: srv.port(), Resolver: NewResolver(dns.addr), AllowPrivate: true, Timeouts: Timeouts{Greeting: 30 * time.Millisecond},
	})
	for range 3 {
		if got := send(t, s); got.Outcome != Deferred || got.Host != "mx.rcpt.test" || got.Text == "" {
			t.Errorf("%+v", got)
		}
	}
	if n := srv.connections(); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
}

func TestWhatAServerSaysIsKeptInPart(t *testing.T) {
	long := strings.Repeat("550-5.1.1 "+strings.Repeat("ä", 900)+"\r\n", 90) + "550 5.1.1 No"
	srv := serve(t, "", manners{replies: map[string]string{"RCPT": long}}.speak)
	got := send(t, newSender(t, relay(t, "smtp", "", srv.addr)))
	if got.Outcome != Bounced || got.Code != 550 || len(got.Text) > maxText || len(got.Text) < maxText/2 || !utf8.ValidString(got.Text) {
		t.Errorf("%d bytes of %+v", len(got.Text), got)
	}
}

// A server that takes the message in drips is slow, and not gone.
func TestASlowReaderGetsItsMessage(t *testing.T) {
	message := bytes.Repeat([]byte("a line of the message\r\n"), 20_000)
	srv := serve(t, "", func(p *peer) {
		p.say("220 mx.test")
		for p.hear() != "DATA" {
			p.say("250 Ok")
		}
		p.say("354 Go on")
		p.message()
		for _, c := range "250-slow\r\n250 2.0.0 Taken" {
			_, _ = p.Write([]byte(string(c)))
		}
		p.say("")
		p.hear()
	})
	s := newSender(t, relay(t, "smtp", "", srv.addr))
	got := within(t, func() Result { return s.Send(t.Context(), envelope, message, nil) })
	if got.Outcome != Delivered || got.Text != "slow\n2.0.0 Taken" || !slices.Equal(srv.messages(), []string{string(message)}) {
		t.Errorf("%+v", got)
	}
}
