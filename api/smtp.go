package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/emersion/go-message"
	"github.com/emersion/go-message/mail"
	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
)

// The limits of a submission. The contract's for an email hold as well.
const (
	smtpIdle  = 5 * time.Minute
	smtpWork  = time.Minute // for what a message leads to here
	smtpParts = 1000        // of a message, those that hold others included
	smtpDepth = 10          // of parts within parts
)

// Submission is SMTP submission (RFC 6409): the user is called anything, the
// password is an API key, and what comes is accepted like POST /emails. Keys are
// taken in the clear, so it listens where nobody else can: on this machine, or
// behind something that ends TLS.
func (a *API) Submission(hostname string) *smtp.Server {
	s := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		ip, _, _ := net.SplitHostPort(c.Conn().RemoteAddr().String())
		return &submission{api: a, ip: ip, client: c.Hostname()}, nil
	}))
	s.Domain = hostname
	s.AllowInsecureAuth = true
	s.MaxMessageBytes = maxEmailBody
	s.MaxRecipients = email.MaxRecipients
	s.MaxLineLength = 4096
	s.ReadTimeout, s.WriteTimeout = smtpIdle, smtpIdle
	s.ErrorLog = slog.NewLogLogger(a.Log.Handler(), slog.LevelDebug)
	return s
}

// submission is one session.
type submission struct {
	api        *API
	ip, client string
	token      string
	failures   int
	size       int64 // in bytes that the client has announced, or 0
	recipients []string
}

func reject(code int, enhanced smtp.EnhancedCode, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: enhanced, Message: text}
}

// AuthMechanisms implements smtp.AuthSession.
func (s *submission) AuthMechanisms() []string { return []string{sasl.Plain, sasl.Login} }

// Auth implements smtp.AuthSession.
func (s *submission) Auth(mechanism string) (sasl.Server, error) {
	switch mechanism {
	case sasl.Plain:
		return sasl.NewPlainServer(func(_, _, password string) error { return s.signIn(password) }), nil
	case sasl.Login:
		return &loginServer{done: s.signIn}, nil
	}
	return nil, smtp.ErrAuthUnknownMechanism
}

func (s *submission) signIn(token string) error {
	if s.failures >= 3 {
		return reject(421, smtp.EnhancedCode{4, 7, 0}, "Too many wrong keys.")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r := s.request(ctx, token)
	if err := s.api.customer(sends)(ctx, http.Header{}, r); err != nil {
		s.failures++
		return s.refuse(ctx, r, err)
	}
	s.token = token
	return nil
}

// request is what a submission looks like to the rest of the API.
func (s *submission) request(ctx context.Context, token string) *request {
	hr := &http.Request{Method: "SMTP", URL: &url.URL{Path: "/smtp"}, Header: http.Header{"User-Agent": {"SMTP " + s.client}}, RemoteAddr: s.ip + ":0"}
	hr.Header.Set("Authorization", "Bearer "+token)
	id := newID()
	return &request{Request: hr.WithContext(ctx), id: id, by: domain.Authority{
		Actor: domain.Actor{Kind: domain.Anonymous, ID: "anonymous"}, Account: domain.Platform,
		Via: domain.ViaSMTP, IP: s.ip, Auth: domain.NoAuth, At: s.api.Now(), Command: id, Correlation: id,
	}}
}

// refuse puts a failure on record, and says it in SMTP's words.
func (s *submission) refuse(ctx context.Context, r *request, err error) error {
	told, mine := answerTo(err)
	if !mine {
		s.api.Log.Error("submission failed", "request", r.id, "account", r.by.Account, "error", err)
	}
	if err := s.api.record(r, "SMTP", answer{status: told.Status, body: told}, r.by.At, false); err != nil {
		s.api.Log.Error("request is not on record", "request", r.id, "error", err)
	}
	if ctx.Err() != nil {
		return reject(421, smtp.EnhancedCode{4, 3, 2}, "The server stops.")
	}
	switch {
	case told.Status >= 500:
		return reject(451, smtp.EnhancedCode{4, 3, 0}, told.Message)
	case told.Status == http.StatusTooManyRequests:
		return reject(450, smtp.EnhancedCode{4, 7, 1}, told.Message)
	case told == errInvalidKey || told == errMissingKey:
		return reject(535, smtp.EnhancedCode{5, 7, 8}, told.Message)
	case told.Status == http.StatusForbidden, told.Status == http.StatusUnauthorized:
		return reject(550, smtp.EnhancedCode{5, 7, 1}, told.Message)
	}
	return reject(550, smtp.EnhancedCode{5, 6, 0}, told.Message)
}

// Mail implements smtp.Session.
func (s *submission) Mail(_ string, options *smtp.MailOptions) error {
	if s.token == "" {
		return reject(530, smtp.EnhancedCode{5, 7, 0}, "Authentication required: the password is an API key.")
	}
	s.recipients, s.size = nil, 0
	if options != nil {
		s.size = options.Size
	}
	return nil
}

// Rcpt implements smtp.Session.
func (s *submission) Rcpt(to string, _ *smtp.RcptOptions) error {
	if _, err := s.api.ParseMailbox(to); err != nil {
		return reject(553, smtp.EnhancedCode{5, 1, 3}, "The address cannot be sent to.")
	}
	s.recipients = append(s.recipients, to)
	return nil
}

// Data implements smtp.Session. The 250 says that the email is on disk, and its id.
func (s *submission) Data(body io.Reader) error {
	ctx, cancel := context.WithTimeout(context.Background(), smtpWork)
	defer cancel()
	r := s.request(ctx, s.token)
	if err := s.api.customer(sends)(ctx, http.Header{}, r); err != nil {
		return s.refuse(ctx, r, err)
	}
	size := int64(maxEmailBody)
	if s.size > 0 { // an estimate (RFC 1870, 6.1)
		size = min(size, s.size+s.size/4+64<<10)
	}
	release, err := s.api.bodies.take(ctx, r.by.Account, size)
	if err != nil {
		return s.refuse(ctx, r, err)
	}
	defer release()
	body = http.MaxBytesReader(nil, io.NopCloser(body), size)
	m, idempotencyKey, err := readMessage(body, s.recipients, s.api.CheckHeader)
	// The message comes at the client's pace: the work on it begins when it is there.
	ctx, cancel = context.WithTimeout(context.Background(), smtpWork)
	defer cancel()
	r.Request = r.WithContext(ctx)
	if err != nil {
		if told, ok := errors.AsType[*smtp.SMTPError](err); ok {
			return told
		}
		return s.refuse(ctx, r, invalid("The message cannot be read: %v.", err))
	}
	if idempotencyKey != "" {
		r.Header.Set("Idempotency-Key", idempotencyKey)
	}
	out, err := s.api.send(domain.Within(ctx, r.by), r, m)
	if err != nil {
		return s.refuse(ctx, r, err)
	}
	if err := s.api.record(r, "SMTP", out, r.by.At, false); err != nil {
		s.api.Log.Error("request is not on record", "request", r.id, "error", err)
	}
	accepted, _ := out.body.(idBody)
	return reject(250, smtp.EnhancedCode{2, 0, 0}, "Ok "+accepted.ID)
}

// Reset implements smtp.Session.
func (s *submission) Reset() { s.recipients = nil }

// Logout implements smtp.Session.
func (s *submission) Logout() error { return nil }

// idempotencyHeader is the header that Resend's SMTP knows.
const idempotencyHeader = "Resend-Idempotency-Key"

// readMessage makes a request of a message. The envelope says who gets it (RFC
// 5321, 2.3.1), whoever its headers name; who is not named there gets a blind copy.
func readMessage(body io.Reader, recipients []string, check func(name, value string) error) (m sendRequest, idempotencyKey string, err error) {
	e, err := message.Read(bufio.NewReader(body))
	if err != nil && !message.IsUnknownCharset(err) {
		return m, "", err
	}
	h := mail.Header{Header: e.Header}
	m.envelope = recipients
	if m.Subject, err = h.Subject(); err != nil {
		return m, "", err
	}
	named := map[string]bool{}
	var from addresses
	for field, list := range map[string]*addresses{"From": &from, "To": &m.To, "Cc": &m.Cc, "Reply-To": &m.ReplyTo} {
		parsed, err := h.AddressList(field)
		if err != nil {
			return m, "", fmt.Errorf("%s: %w", field, err)
		}
		for _, a := range parsed {
			*list = append(*list, mailboxText(a))
			if list == &m.To || list == &m.Cc {
				named[lower(a.Address)] = true
			}
		}
	}
	if len(from) != 1 {
		return m, "", fmt.Errorf("there are %d authors in From, not one", len(from))
	}
	m.From = from[0]
	for _, to := range recipients {
		if !named[lower(to)] {
			m.Bcc = append(m.Bcc, to)
		}
	}
	m.Headers = map[string]string{}
	for fields := h.Fields(); fields.Next(); {
		value, err := fields.Text()
		if err != nil {
			value = fields.Value()
		}
		switch name := fields.Key(); {
		case strings.EqualFold(name, idempotencyHeader):
			idempotencyKey = value
		case strings.HasPrefix(strings.ToLower(name), "resend-"), check(name, value) != nil:
			// Written here, or meant for this server alone.
		default:
			m.Headers[name] = value
		}
	}
	return m, idempotencyKey, (&partReader{m: &m}).read(e, 1)
}

// mailboxText is a mailbox as a request has it, its name in plain UTF-8.
func mailboxText(a *mail.Address) string {
	switch {
	case a.Name == "":
		return a.Address
	case !strings.ContainsAny(a.Name, "()<>[]:;@\\,.\""): // the specials of RFC 5322, 3.2.3
		return a.Name + " <" + a.Address + ">"
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(a.Name) + `" <` + a.Address + ">"
}

// partReader takes a message apart.
type partReader struct {
	m     *sendRequest
	parts int
}

// read takes in an entity, and those within it. A message can hold parts within parts
// without an end.
func (p *partReader) read(e *message.Entity, depth int) error {
	if p.parts++; p.parts > smtpParts || depth > smtpDepth {
		return errors.New("it has too many parts")
	}
	inner := e.MultipartReader()
	if inner == nil {
		return p.leaf(e)
	}
	for {
		part, err := inner.NextPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !message.IsUnknownCharset(err) {
			return err
		}
		if err := p.read(part, depth+1); err != nil {
			return err
		}
	}
}

func (p *partReader) leaf(e *message.Entity) error {
	data, err := io.ReadAll(e.Body)
	if err != nil {
		return err
	}
	kind, _, _ := e.Header.ContentType() // one that cannot be read is none
	disposition, _, _ := e.Header.ContentDisposition()
	name, _ := (&mail.AttachmentHeader{Header: e.Header}).Filename()
	inline := disposition == "inline" || disposition != "attachment" && (strings.HasPrefix(kind, "text/") || kind == "")
	text := string(data)
	switch {
	case inline && kind == "text/html" && p.m.HTML == nil:
		p.m.HTML = &text
		return nil
	case inline && (kind == "text/plain" || kind == "") && p.m.Text == nil:
		p.m.Text = &text
		return nil
	}
	if !mediaType.MatchString(kind) {
		kind = ""
	}
	at := attachment{Filename: fileName(name), ContentType: kind, Content: data}
	if at.Filename == "" {
		at.Filename = fmt.Sprintf("part-%d", p.parts)
		if extensions, err := mime.ExtensionsByType(kind); err == nil && len(extensions) > 0 {
			at.Filename += extensions[0]
		}
	}
	if disposition != "attachment" {
		at.ContentID = strings.Trim(e.Header.Get("Content-Id"), "<>")
	}
	p.m.Attachments = append(p.m.Attachments, at)
	return nil
}

// fileName is the last part of a name that may be a path of any system, without what a file's
// name cannot hold; empty if nothing is left.
func fileName(name string) string {
	name = name[strings.LastIndexAny(name, `/\`)+1:]
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '"' {
			return '_'
		}
		return r
	}, name)
	if len(name) > maxFilename {
		ending := path.Ext(name)
		if len(ending) > 20 {
			ending = ""
		}
		name = strings.ToValidUTF8(name[:maxFilename-len(ending)], "") + ending
	}
	return name
}

// loginServer is AUTH LOGIN, which the library has no server for. A client may
// send the user's name with the command, or wait to be asked.
type loginServer struct {
	asked bool // for the password
	done  func(password string) error
}

// Next implements sasl.Server.
func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	switch {
	case l.asked:
		return nil, true, l.done(string(response))
	case response == nil:
		return []byte("Username:"), false, nil
	}
	l.asked = true
	return []byte("Password:"), false, nil
}
