// Package sandbox is an SMTP server on loopback that keeps what it is sent in a
// Maildir, so that mail can be looked at and none leaves the machine.
package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/google/uuid"
)

// Config says where an inbox listens and keeps its mail.
type Config struct {
	Addr     string // host:port; port 0 is any
	Dir      string
	Hostname string // in the greeting
	MaxBytes int64  // of one message; 0 is 50 MB
	Log      *slog.Logger
}

// Inbox is a running sandbox.
type Inbox struct {
	cfg      Config
	server   *smtp.Server
	listener net.Listener
	served   chan error

	mu    sync.Mutex
	tries map[string]int // of recipients that are put off
}

// Open starts a sandbox.
func Open(c Config) (*Inbox, error) {
	if c.MaxBytes == 0 {
		c.MaxBytes = 50 << 20
	}
	for _, dir := range []string{"tmp", "new"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("sandbox: make the Maildir: %w", err)
		}
	}
	b := &Inbox{cfg: c, served: make(chan error, 1), tries: map[string]int{}}
	b.server = smtp.NewServer(b)
	b.server.Domain = c.Hostname
	b.server.MaxMessageBytes = c.MaxBytes
	b.server.MaxRecipients = 100
	b.server.ReadTimeout = 2 * time.Minute
	b.server.WriteTimeout = time.Minute
	b.server.ErrorLog = slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug)
	listener, err := net.Listen("tcp", c.Addr)
	if err != nil {
		return nil, fmt.Errorf("sandbox: listen: %w", err)
	}
	b.listener = listener
	go func() { b.served <- b.server.Serve(listener) }()
	return b, nil
}

// Addr is where the sandbox listens, host:port.
func (b *Inbox) Addr() string { return b.listener.Addr().String() }

// Close ends the sandbox. What it holds stays.
func (b *Inbox) Close() error {
	err := b.server.Close()
	_ = b.listener.Close() // a server that has not come to serve does not know it, and would wait at it for ever
	<-b.served             //nolint:errcheck // it says no more than that it was closed
	if errors.Is(err, smtp.ErrServerClosed) {
		return nil
	}
	return err
}

// NewSession implements smtp.Backend.
func (b *Inbox) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &session{inbox: b, helo: c.Hostname()}, nil
}

type session struct {
	inbox *Inbox
	helo  string
	from  string
	to    []string
}

func (s *session) Reset()        { s.from, s.to = "", nil }
func (s *session) Logout() error { return nil }

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.from = from
	return nil
}

// Rcpt answers as the local part asks: "bounced" is unknown, "deferred" has to be
// tried three times, "full" has no room. A label after a plus sign is free.
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	local, _, _ := strings.Cut(to, "@")
	local, _, _ = strings.Cut(strings.ToLower(local), "+")
	switch local {
	case "bounced":
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "No such user here"}
	case "full":
		return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 2, 2}, Message: "Mailbox full"}
	case "deferred":
		if s.inbox.putOff(to) {
			return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 7, 1}, Message: "Greylisted, try again later"}
		}
	}
	s.to = append(s.to, to)
	return nil
}

// putOffs is how often a deferred recipient is put off.
const putOffs = 2

func (b *Inbox) putOff(to string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tries[to]++
	if b.tries[to] <= putOffs {
		return true
	}
	delete(b.tries, to)
	return false
}

func (s *session) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := s.inbox.keep(s.helo, s.from, s.to, raw); err != nil {
		s.inbox.cfg.Log.Error("sandbox", "error", err)
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "Local error, try again later"}
	}
	return nil
}

// keep stores a message under a name that sorts by time. It is there whole, or
// not at all.
func (b *Inbox) keep(helo, from string, to []string, raw []byte) error {
	name := uuid.Must(uuid.NewV7()).String()
	var head bytes.Buffer
	fmt.Fprintf(&head, "X-Envelope-From: <%s>\r\nX-Envelope-To: <%s>\r\nX-Envelope-Helo: %s\r\n", plain(from), plain(strings.Join(to, ">, <")), plain(helo))
	tmp := filepath.Join(b.cfg.Dir, "tmp", name)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("sandbox: keep a message: %w", err)
	}
	_, err1 := f.Write(head.Bytes())
	_, err2 := f.Write(raw)
	if err := errors.Join(err1, err2, f.Close()); err != nil {
		return fmt.Errorf("sandbox: keep a message: %w", err)
	}
	return os.Rename(tmp, filepath.Join(b.cfg.Dir, "new", name))
}

func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
}

// Entry is a message in the list.
type Entry struct {
	ID         string
	At         time.Time
	From, To   string // of the envelope
	HeaderFrom string
	HeaderTo   string
	Subject    string
	MessageID  string
	Size       int64
}

// List returns the newest messages, at most limit of them; with before, of those
// that came before the message of that id.
func (b *Inbox) List(before string, limit int) ([]Entry, error) {
	files, err := os.ReadDir(filepath.Join(b.cfg.Dir, "new"))
	if err != nil {
		return nil, fmt.Errorf("sandbox: list: %w", err)
	}
	slices.Reverse(files) // by name, which begins with the time
	if before != "" {
		files = slices.DeleteFunc(files, func(f os.DirEntry) bool { return f.Name() >= before })
	}
	var entries []Entry
	for _, f := range files[:min(limit, len(files))] {
		m, err := b.Get(f.Name())
		if err != nil {
			return nil, err
		}
		entries = append(entries, m.Entry)
	}
	return entries, nil
}

// ErrNotFound says that there is no such message.
var ErrNotFound = errors.New("sandbox: no such message")

// Get reads a message.
func (b *Inbox) Get(id string) (Message, error) {
	parsed, err := uuid.Parse(id)
	if err != nil || parsed.String() != id {
		return Message{}, ErrNotFound // and nothing outside the Maildir
	}
	raw, err := os.ReadFile(filepath.Join(b.cfg.Dir, "new", id))
	if errors.Is(err, os.ErrNotExist) {
		return Message{}, ErrNotFound
	}
	if err != nil {
		return Message{}, fmt.Errorf("sandbox: read %s: %w", id, err)
	}
	sec, nsec := parsed.Time().UnixTime()
	m := parse(raw)
	m.ID, m.At, m.Size = id, time.Unix(sec, nsec), int64(len(raw))
	return m, nil
}
