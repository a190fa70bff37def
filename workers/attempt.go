package workers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/delivery"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/keyring"
)

// maxTogether is how many recipients one attempt includes. What a crash leaves
// unknown is no more than that.
const maxTogether = 10

// letter is an email that is ready to go out.
type letter struct {
	message  []byte // signed, and on disk
	from     directory.Sender
	prepared *email.Prepared // set if it was prepared just now
}

// attempt hands an email over to the recipients whose turn it is. working lives
// until attempts have to end, live until no new ones may begin.
func (p *partition) attempt(working, live context.Context, m *mail) {
	var again time.Time
	defer func() { p.release(m, again) }()
	now := p.d.Now()
	state := m.now()
	switch {
	case len(state.Ready(now)) == 0:
		return // it was cancelled or moved while it waited for its turn
	case p.d.erased(m.account):
		p.abandon(working, m, "The account was erased on request.")
		return
	case now.After(state.Expires):
		p.abandon(working, m, tooLate)
		return
	}
	err := p.tryOnce(working, live, m, state, now)
	switch {
	case err == nil, domain.Refused(err) != nil, live.Err() != nil:
		return // a refusal says that it was cancelled, moved or blocked meanwhile
	case permanent(err):
		p.log.Error("an email cannot be sent", "email", m.id, "error", err)
		p.abandon(working, m, reason(err))
		return
	}
	m.failures++
	again = now.Add(min(time.Second<<min(m.failures, 8), 5*time.Minute))
	p.log.Error("an attempt failed before anything was sent; it is made again", "email", m.id, "error", err, "next", again)
}

// tooLate is why an email that has expired was given up.
const tooLate = "It could not be sent before it expired."

func (p *partition) abandon(ctx context.Context, m *mail, reason string) {
	if err := p.record(ctx, m, email.Abandon{Authority: p.authority(m, p.d.Now()), Reason: reason}); err != nil {
		p.log.Error("an email cannot be given up", "email", m.id, "error", err)
	}
}

// errBroken is what no further try repairs.
var errBroken = errors.New("its content cannot be read")

func permanent(err error) bool {
	return errors.Is(err, errBroken) || errors.Is(err, errSenderGone) || errors.Is(err, keyring.ErrErased)
}

func reason(err error) string {
	switch {
	case errors.Is(err, errSenderGone):
		return "The domain that it was to be sent from was removed."
	case errors.Is(err, keyring.ErrErased):
		return "Its content was erased on request."
	}
	return "Its message cannot be built from what was stored."
}

// tryOnce is one attempt. An error says that nothing has left.
func (p *partition) tryOnce(working, live context.Context, m *mail, state email.State, now time.Time) error {
	if err := p.remember(working, m, state); err != nil {
		return err
	}
	free, err := p.d.hold(live, m.accepted.Content.Size)
	if err != nil {
		return err
	}
	defer free()
	l, err := p.letter(working, m, state)
	if err != nil {
		return err
	}
	start, addresses, err := p.starting(working, m, l, state.Ready(now), now)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if live.Err() != nil {
		m.mu.Unlock()
		return live.Err()
	}
	_, err = p.decide(working, m, start, p.d.patience())
	m.mu.Unlock()
	if err != nil {
		return err
	}
	if len(start.Recipients) == 0 {
		return nil
	}
	return p.transmit(working, m, l, start.Recipients, addresses)
}

// large is from how many bytes on a message waits for others to leave memory. Smaller ones
// do not: large ones to slow servers would hold them up.
const large = 1 << 20

// hold waits until there is memory for a message of so many bytes. The function that it
// returns gives it back.
func (d *Dispatcher) hold(ctx context.Context, size int) (func(), error) {
	if size < large {
		return func() {}, nil
	}
	n := min(int64(size), d.Memory)
	if err := d.memory.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return func() { d.memory.Release(n) }, nil
}

// remember reads what memory does not keep of an email.
func (p *partition) remember(ctx context.Context, m *mail, state email.State) error {
	if m.accepted != nil && (m.prepared != nil || !state.Prepared) {
		return nil
	}
	m.mu.Lock()
	last := m.last
	m.mu.Unlock()
	history, err := p.d.Store.Chain(ctx, p.name, last, m.id.String())
	if err != nil {
		return err
	}
	for _, rec := range history {
		switch e := rec.Event.(type) {
		case email.Accepted:
			m.accepted = &e
			m.origin = originOf(rec)
		case email.Prepared:
			m.prepared = &e
		}
	}
	if m.accepted == nil {
		return fmt.Errorf("%w: %s %d does not lead back to its acceptance", errBroken, p.name, last)
	}
	return nil
}

// letter builds and signs the message, or reads the one of an earlier attempt.
func (p *partition) letter(ctx context.Context, m *mail, state email.State) (letter, error) {
	signer, from, err := p.d.signer(ctx, m.account, m.accepted.Sender)
	if err != nil {
		return letter{}, err
	}
	if state.Prepared {
		message, err := p.openContent(ctx, m, m.prepared.Message)
		if err != nil {
			return letter{}, err
		}
		if sum := sha256.Sum256(message); hex.EncodeToString(sum[:]) != m.prepared.Digest {
			return letter{}, fmt.Errorf("%w: the stored message is not the one that was signed", errBroken)
		}
		return letter{message: message, from: from}, nil
	}
	message, err := p.build(ctx, m, state.Due)
	if err != nil {
		return letter{}, err
	}
	p.d.signing <- struct{}{}
	message, err = signer.Sign(message)
	<-p.d.signing
	if err != nil {
		return letter{}, err
	}
	return p.store(ctx, m, from, message)
}

// openContent reads sealed content of an email.
func (p *partition) openContent(ctx context.Context, m *mail, ref domain.ContentRef) ([]byte, error) {
	sealed, err := p.d.Store.Content(ctx, ref)
	if err != nil {
		if !errors.Is(err, eventstore.ErrUnavailable) && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", errBroken, err)
		}
		return nil, err
	}
	return p.d.Vault.Open(ctx, m.account, classBody, m.id.String(), sealed)
}

// build writes the message as it will be signed.
func (p *partition) build(ctx context.Context, m *mail, due time.Time) ([]byte, error) {
	plain, err := p.d.Vault.Open(ctx, m.account, classEnvelope, m.id.String(), m.accepted.Envelope)
	if err != nil {
		return nil, err
	}
	var env email.Envelope
	if err := json.Unmarshal(plain, &env); err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	plain, err = p.openContent(ctx, m, m.accepted.Content)
	if err != nil {
		return nil, err
	}
	var content email.Content
	if err := json.Unmarshal(plain, &content); err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	message, err := Compose(env, content)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	message.MessageID = m.accepted.MessageID
	message.Date = m.origin.at
	if due.After(message.Date) {
		message.Date = due
	}
	message.Seed = m.id[:]
	built, err := message.Build()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	return built, nil
}

// Compose makes a message of what the customer asked for.
func Compose(env email.Envelope, content email.Content) (delivery.Message, error) {
	var faults []error
	parse := func(texts []string) []delivery.Address {
		var list []delivery.Address
		for _, t := range texts {
			a, err := delivery.ParseAddress(t)
			faults = append(faults, err)
			list = append(list, a)
		}
		return list
	}
	from := parse([]string{env.From})
	m := delivery.Message{
		From: from[0], To: parse(env.To), Cc: parse(env.Cc), ReplyTo: parse(env.ReplyTo),
		Subject: env.Subject, HTML: content.HTML, Text: content.Text,
	}
	if m.Text == "" && m.HTML != "" && !content.NoText {
		m.Text = delivery.PlainText(m.HTML)
	}
	names := make([]string, 0, len(env.Headers))
	for name := range env.Headers {
		names = append(names, name)
	}
	slices.Sort(names) // the same bytes each time
	for _, name := range names {
		m.Headers = append(m.Headers, delivery.Header{Name: name, Value: env.Headers[name]})
	}
	for _, a := range content.Attachments {
		m.Attachments = append(m.Attachments, delivery.Attachment{Filename: a.Filename, ContentType: a.ContentType, ContentID: a.ContentID, Content: a.Content})
	}
	return m, errors.Join(faults...)
}

// store keeps the signed message, so that each attempt sends the same bytes. It is on
// disk before the event that names it: after a power failure between the two, an event
// without its message could not be sent.
func (p *partition) store(ctx context.Context, m *mail, from directory.Sender, message []byte) (letter, error) {
	sum := sha256.Sum256(message)
	sealed, err := p.d.Vault.SealBeside(ctx, m.account, classBody, m.id.String(), m.accepted.Envelope, message)
	if err != nil {
		return letter{}, err
	}
	within := p.d.patience()
	if len(sealed) > small {
		within = 0
	}
	where, err := p.d.content.ask(ctx, within, blob{m.account, sealed})
	if err == nil {
		err = where.err
	}
	if err != nil {
		return letter{}, err
	}
	prepared := &email.Prepared{Message: where.ref, Digest: hex.EncodeToString(sum[:]), Size: len(message), Selector: from.Selector}
	return letter{message: message, from: from, prepared: prepared}, nil
}

// small is up to how many bytes a message shares one of the log's with others.
const small = 64 << 10

// blob is a sealed message that is to be stored.
type blob struct {
	account string
	data    []byte
}

// stored is where a blob lies, on disk, or why it does not.
type stored struct {
	ref domain.ContentRef
	err error
}

// putContent stores blobs, those of each account together.
func (d *Dispatcher) putContent(ctx context.Context, blobs []blob) ([]stored, error) {
	places := map[string][]int{}
	for i, b := range blobs {
		places[b.account] = append(places[b.account], i)
	}
	all := make([]stored, len(blobs))
	var accounts sync.WaitGroup
	for account, its := range places {
		accounts.Go(func() {
			data := make([][]byte, len(its))
			for n, i := range its {
				data[n] = blobs[i].data
			}
			refs, onDisk, err := d.Store.PutContent(ctx, account, data)
			if err == nil {
				err = onDisk(ctx)
			}
			for n, i := range its {
				if all[i].err = err; err == nil {
					all[i].ref = refs[n]
				}
			}
		})
	}
	accounts.Wait()
	return all, nil
}

// starting makes the command that begins an attempt, and opens the addresses of
// its recipients.
func (p *partition) starting(ctx context.Context, m *mail, l letter, ready []int, now time.Time) (email.Start, []string, error) {
	start := email.Start{Authority: p.authority(m, now), Prepared: l.prepared, Blocked: p.d.blocked(m.account)}
	var addresses []string
	for _, i := range ready {
		if len(start.Recipients) == maxTogether {
			break
		}
		r := m.accepted.Recipients[i]
		plain, err := p.d.Vault.Open(ctx, m.account, classRecipient, r.Index, r.Address)
		if errors.Is(err, keyring.ErrErased) {
			start.Suppressed = append(start.Suppressed, email.Suppressed{Recipient: i, Reason: "erased"})
			continue
		}
		if err != nil {
			return start, nil, err
		}
		if p.d.Mode == "sandbox" && standsForSuppressed(string(plain)) {
			start.Suppressed = append(start.Suppressed, email.Suppressed{Recipient: i, Reason: "previous_bounce"})
			continue
		}
		start.Recipients, addresses = append(start.Recipients, i), append(addresses, string(plain))
	}
	return start, addresses, nil
}

// standsForSuppressed reports whether a sandbox address plays an address that
// the account does not write to: suppressed@ or suppressed+label@.
func standsForSuppressed(address string) bool {
	local, _, _ := strings.Cut(strings.ToLower(address), "@")
	name, _, _ := strings.Cut(local, "+")
	return name == "suppressed"
}

// errHeld keeps a transaction from beginning.
var errHeld = errors.New("sending is stopped for this account")

// begin counts a transaction that is about to begin, unless the account was
// blocked. Whoever has blocked the account and then finds nothing on the wire can
// be sure that nothing will be.
func (p *partition) begin(account string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.d.blocked(account) != "" || p.d.erased(account) {
		return false
	}
	p.wire[account]++
	return true
}

func (p *partition) end(account string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wire[account]--; p.wire[account] == 0 {
		delete(p.wire, account)
	}
	p.announce()
}

// transmit is one SMTP transaction for each recipient, and the record of what
// became of them.
func (p *partition) transmit(ctx context.Context, m *mail, l letter, recipients []int, addresses []string) error {
	results := make([]delivery.Result, len(recipients))
	var sending errgroup.Group
	for n, i := range recipients {
		sending.Go(func() error {
			env := delivery.Envelope{
				From:       p.d.VERP.Address(m.id, i, l.from.ReturnPath+"."+l.from.Name),
				To:         addresses[n],
				RequireTLS: l.from.Settings.TLS == sender.TLSEnforced,
			}
			begun := false
			results[n] = p.d.Sender.Send(ctx, env, l.message, func() error {
				if begun = begun || p.begin(m.account); !begun {
					return errHeld
				}
				return ctx.Err()
			})
			if begun {
				p.end(m.account)
			}
			return nil
		})
	}
	_ = sending.Wait() // each says in its result how it went
	// The answers are worth recording although the attempt may have to end.
	ctx = context.WithoutCancel(ctx)
	now := p.d.Now()
	report := email.Report{Authority: p.authority(m, now), Attempt: m.state.Attempts}
	for n, i := range recipients {
		o, err := p.outcome(ctx, m, i, results[n], now)
		if err != nil {
			// The outcome matters more than the server's words.
			p.log.Error("a server's answer cannot be sealed and is left out", "email", m.id, "error", err)
		}
		report.Outcomes = append(report.Outcomes, o)
	}
	if err := p.record(ctx, m, report); err != nil {
		p.log.Error("what became of an email cannot be recorded, and will count as unknown", "email", m.id, "error", err)
	}
	return nil
}

// outcome puts a result into the words of the log.
func (p *partition) outcome(ctx context.Context, m *mail, i int, r delivery.Result, now time.Time) (email.Outcome, error) {
	o := email.Outcome{Recipient: i, Reply: email.Reply{
		Phase: r.Phase, Code: r.Code, Enhanced: r.Enhanced, Host: r.Host, IP: r.IP, TLS: r.TLS,
		Took: r.Duration, Class: r.Bounce.Type, SubClass: r.Bounce.SubType,
	}}
	switch r.Outcome {
	case delivery.Delivered:
		o.Kind = email.WasDelivered
	case delivery.Bounced:
		o.Kind = email.WasBounced
	case delivery.Unknown:
		o.Kind, o.Next = email.WasUnknown, now.Add(p.backoff(m, i))
	case delivery.Deferred:
		o.Kind, o.Next = email.WasDeferred, now.Add(p.backoff(m, i))
		if r.Phase == delivery.PhaseHeld {
			o.Next = now
		}
	}
	if r.Text == "" {
		return o, nil
	}
	var err error
	to := m.accepted.Recipients[i]
	o.Reply.Text, err = p.d.Vault.SealBeside(ctx, m.account, classRecipient, to.Index, to.Address, []byte(r.Text))
	if errors.Is(err, keyring.ErrErased) {
		return o, nil // the recipient was erased during the attempt, and the server's words with them
	}
	return o, err
}

// backoff is how long a recipient waits for the next attempt.
func (p *partition) backoff(m *mail, i int) time.Duration {
	return delivery.Backoff(m.state.Recipients[i].Tries, p.d.Random)
}
