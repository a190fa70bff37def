package delivery

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Timeouts bound each phase. The zero value of each is what RFC 5321, 4.5.3.2
// asks for, where it asks.
type Timeouts struct {
	Sending  time.Duration // 15 min, for all that comes before the message's end, waiting for a connection included
	Connect  time.Duration // 30 s
	Greeting time.Duration // 5 min
	Command  time.Duration // 5 min, for EHLO, STARTTLS, AUTH, MAIL and RCPT
	Data     time.Duration // 2 min
	Block    time.Duration // 3 min, for each part of the body
	Dot      time.Duration // 10 min: shorter makes duplicates (RFC 1047)
}

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, fallback time.Duration) {
		if *d == 0 {
			*d = fallback
		}
	}
	set(&t.Sending, 15*time.Minute)
	set(&t.Connect, 30*time.Second)
	set(&t.Greeting, 5*time.Minute)
	set(&t.Command, 5*time.Minute)
	set(&t.Data, 2*time.Minute)
	set(&t.Block, 3*time.Minute)
	set(&t.Dot, 10*time.Minute)
	return t
}

// conn is a session with one server.
type conn struct {
	net.Conn          // in TLS or not
	raw      net.Conn // below TLS: deadlines are set here
	r        *bufio.Reader
	w        *bufio.Writer
	host, ip string
	tls      string            // version and cipher suite
	proven   bool              // by a certificate for the host's name
	fallen   bool              // back to the clear, from TLS that did not work
	extended map[string]string // keyword in upper case to its parameters
	sent     int               // transactions that were begun
	idle     time.Time         // since when it waits
	until    time.Time         // by then the end of the message has left, or never will
	timeouts Timeouts
}

// fault is a transaction or a session that came to a bad end: with a reply of
// the server, or with an error.
type fault struct {
	phase string
	reply reply // code 0 if there is none
	err   error
}

func (f *fault) Error() string {
	if f.err != nil {
		return f.phase + ": " + f.err.Error()
	}
	return fmt.Sprintf("%s: %d %s", f.phase, f.reply.code, f.reply.text)
}

func (f *fault) Unwrap() error { return f.err }

// timedOut reports whether the server let us wait for nothing.
func (f *fault) timedOut() bool {
	var e net.Error
	return errors.As(f.err, &e) && e.Timeout()
}

// deadline starts the clock of a phase, unless the caller has given up already.
func (c *conn) deadline(ctx context.Context, d time.Duration) error {
	at := time.Now().Add(d)
	if !c.until.IsZero() && c.until.Before(at) {
		at = c.until
	}
	if err := c.raw.SetDeadline(at); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return nil
}

// interruptible ends what the connection waits for when ctx ends. The function
// that it returns ends the watch.
func (c *conn) interruptible(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, func() { _ = c.raw.SetDeadline(time.Unix(1, 0)) })
}

// command sends a line and reads the reply. A reply of another class than want
// is a fault.
func (c *conn) command(ctx context.Context, phase string, limit time.Duration, want int, line string) (reply, *fault) {
	if err := c.deadline(ctx, limit); err != nil {
		return reply{}, &fault{phase: phase, err: err}
	}
	if line != "" {
		if _, err := c.w.WriteString(line + "\r\n"); err != nil {
			return reply{}, &fault{phase: phase, err: err}
		}
		if err := c.w.Flush(); err != nil {
			return reply{}, &fault{phase: phase, err: err}
		}
	}
	return c.expect(phase, want)
}

func (c *conn) expect(phase string, want int) (reply, *fault) {
	r, err := readReply(c.r)
	if err != nil {
		return reply{}, &fault{phase: phase, err: err}
	}
	if r.code/100 != want {
		return r, &fault{phase: phase, reply: r}
	}
	return r, nil
}

// hello introduces this host and learns what the server can do.
func (c *conn) hello(ctx context.Context, name string) *fault {
	c.extended = map[string]string{}
	r, f := c.command(ctx, PhaseEHLO, c.timeouts.Command, 2, "EHLO "+name)
	if f != nil && f.reply.code/100 == 5 {
		_, f = c.command(ctx, PhaseEHLO, c.timeouts.Command, 2, "HELO "+name)
		return f
	}
	if f != nil {
		return f
	}
	for i, line := range strings.Split(r.text, "\n") {
		if i == 0 {
			continue // the server's own name
		}
		keyword, parameters, _ := strings.Cut(line, " ")
		c.extended[strings.ToUpper(keyword)] = parameters
	}
	return nil
}

// startTLS turns to TLS (RFC 3207). What the server said before is forgotten, and
// what it said too early is an attack.
func (c *conn) startTLS(ctx context.Context, name string, config *tls.Config) *fault {
	if _, f := c.command(ctx, PhaseTLS, c.timeouts.Command, 2, "STARTTLS"); f != nil {
		return f
	}
	if c.r.Buffered() > 0 {
		return &fault{phase: PhaseTLS, err: errors.New("the server spoke before TLS began")}
	}
	if f := c.handshake(ctx, config); f != nil {
		return f
	}
	return c.hello(ctx, name)
}

func (c *conn) handshake(ctx context.Context, config *tls.Config) *fault {
	if err := c.deadline(ctx, c.timeouts.Command); err != nil {
		return &fault{phase: PhaseTLS, err: err}
	}
	secure := tls.Client(c.Conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return &fault{phase: PhaseTLS, err: err}
	}
	state := secure.ConnectionState()
	c.tls = tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
	c.Conn = secure
	c.r.Reset(secure)
	c.w.Reset(secure)
	return nil
}

// authenticate proves who this is (RFC 4954), and never in the clear over a
// network.
func (c *conn) authenticate(ctx context.Context, user *url.Userinfo) *fault {
	password, _ := user.Password()
	ip := net.ParseIP(c.ip)
	if c.tls == "" && !ip.IsLoopback() {
		return &fault{phase: PhaseAuth, err: errors.New("the relay offers no TLS, and a password is not sent without")}
	}
	encode := base64.StdEncoding.EncodeToString
	mechanisms := strings.Fields(strings.ToUpper(c.extended["AUTH"]))
	for _, m := range mechanisms {
		switch m {
		case "PLAIN":
			_, f := c.command(ctx, PhaseAuth, c.timeouts.Command, 2, "AUTH PLAIN "+encode([]byte("\x00"+user.Username()+"\x00"+password)))
			return f
		case "LOGIN":
			for i, line := range []string{"AUTH LOGIN", encode([]byte(user.Username())), encode([]byte(password))} {
				want := 3
				if i == 2 {
					want = 2
				}
				if _, f := c.command(ctx, PhaseAuth, c.timeouts.Command, want, line); f != nil {
					return f
				}
			}
			return nil
		}
	}
	return &fault{phase: PhaseAuth, err: errors.New("the relay offers neither AUTH PLAIN nor AUTH LOGIN")}
}

// transact hands one message over to one recipient. The fault's phase is
// PhaseDot exactly if the end of the message may have left.
func (c *conn) transact(ctx context.Context, env Envelope, message []byte) (reply, *fault) {
	defer c.interruptible(ctx)()
	c.sent++
	if f := c.announce(ctx, env, len(message)); f != nil {
		return reply{}, f
	}
	if err := c.body(ctx, message); err != nil {
		return reply{}, &fault{phase: PhaseBody, err: err}
	}
	// Whoever gave up from here on would not know whether it was delivered.
	c.until = time.Time{}
	if err := c.deadline(ctx, c.timeouts.Dot); err != nil {
		return reply{}, &fault{phase: PhaseBody, err: err}
	}
	// The part of the body that still lies in the buffer goes out with the dot.
	if _, err := c.w.WriteString(".\r\n"); err != nil {
		return reply{}, &fault{phase: PhaseDot, err: err}
	}
	if err := c.w.Flush(); err != nil {
		return reply{}, &fault{phase: PhaseDot, err: err}
	}
	return c.expect(PhaseDot, 2)
}

// announce sends MAIL, RCPT and DATA, at once if the server allows it (RFC 2920).
func (c *conn) announce(ctx context.Context, env Envelope, size int) *fault {
	mail := "MAIL FROM:<" + env.From + ">"
	if _, ok := c.extended["SIZE"]; ok {
		mail += " SIZE=" + strconv.Itoa(size)
	}
	steps := []struct {
		phase, line string
		want        int
	}{
		{PhaseMail, mail, 2},
		{PhaseRcpt, "RCPT TO:<" + env.To + ">", 2},
		{PhaseData, "DATA", 3},
	}
	if _, ok := c.extended["PIPELINING"]; !ok {
		for _, s := range steps {
			if _, f := c.command(ctx, s.phase, c.timeouts.Command, s.want, s.line); f != nil {
				return f
			}
		}
		return nil
	}
	if err := c.deadline(ctx, c.timeouts.Command); err != nil {
		return &fault{phase: PhaseMail, err: err}
	}
	for _, s := range steps {
		if _, err := c.w.WriteString(s.line + "\r\n"); err != nil {
			return &fault{phase: PhaseMail, err: err}
		}
	}
	if err := c.w.Flush(); err != nil {
		return &fault{phase: PhaseMail, err: err}
	}
	var first *fault
	for _, s := range steps {
		r, f := c.expect(s.phase, s.want)
		if f != nil && first == nil {
			first = f
		}
		if f != nil && f.reply.code == 0 {
			return first // nothing more can be read
		}
		if s.phase == PhaseData && f == nil && first != nil && r.code == 354 {
			// The server takes a message that nobody is to get: it gets none.
			if _, closing := c.command(ctx, PhaseData, c.timeouts.Data, 5, "."); closing != nil && closing.reply.code == 0 {
				return first
			}
		}
	}
	return first
}

// body writes all of the message but its end, with dots doubled at the beginning
// of lines (RFC 5321, 4.5.2).
func (c *conn) body(ctx context.Context, message []byte) error {
	rest := message
	if len(rest) > 0 && rest[0] == '.' {
		if err := c.block(ctx, dot); err != nil {
			return err
		}
	}
	for {
		at := bytes.Index(rest, lineDot)
		if at < 0 {
			break
		}
		if err := c.block(ctx, rest[:at+len(lineDot)]); err != nil {
			return err
		}
		if err := c.block(ctx, dot); err != nil {
			return err
		}
		rest = rest[at+len(lineDot):]
	}
	if err := c.block(ctx, rest); err != nil {
		return err
	}
	if !bytes.HasSuffix(message, lineEnd) {
		return c.block(ctx, lineEnd)
	}
	return nil
}

var (
	dot     = []byte(".")
	lineEnd = []byte("\r\n")
	lineDot = []byte("\r\n.")
)

// block writes part of the body; whatever leaves the buffer has its own time.
func (c *conn) block(ctx context.Context, b []byte) error {
	const most = 1 << 20
	for len(b) > 0 {
		n := min(len(b), most)
		if n > c.w.Available() {
			if err := c.deadline(ctx, c.timeouts.Block); err != nil {
				return err
			}
		}
		if _, err := c.w.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// quit says goodbye, and does not wait for the answer: the result is known.
func (c *conn) quit() {
	if c.raw.SetDeadline(time.Now().Add(time.Second)) == nil {
		if _, err := c.w.WriteString("QUIT\r\n"); err == nil {
			_ = c.w.Flush()
		}
	}
	_ = c.Close()
}
