package email

import (
	"time"

	"postbook.dev/postbook/domain"
)

// Event is a fact about an email.
//
//sumtype:decl
type Event interface{ isEvent() }

// Accepted is the promise that an email will reach exactly one final state for
// each of its recipients.
type Accepted struct {
	Sender     string            `json:"sender"`     // id of the sender domain
	MessageID  string            `json:"message_id"` // RFC 5322, 3.6.4, without angle brackets
	Recipients []Recipient       `json:"recipients"`
	Envelope   domain.Sealed     `json:"envelope"` // Envelope as JSON
	Content    domain.ContentRef `json:"content"`  // Content as JSON, sealed
	Expires    time.Time         `json:"expires"`  // when delivery is given up
	Once       string            `json:"once,omitempty"`
}

// Recipient is one mailbox that an email goes to.
type Recipient struct {
	Kind    RecipientKind `json:"kind"`
	Index   string        `json:"index"`   // blind index of the address, the same for every email to it
	Address domain.Sealed `json:"address"` // local@domain
}

// RecipientKind is the header field that names a recipient; Bcc is named in none.
type RecipientKind string

// The kinds of recipient.
const (
	To  RecipientKind = "to"
	Cc  RecipientKind = "cc"
	Bcc RecipientKind = "bcc"
)

// Scheduled sets when sending begins. A later one replaces it.
type Scheduled struct {
	Due     time.Time `json:"due"`
	Expires time.Time `json:"expires"`
}

// Prepared is the message as it goes out: built once, signed once. Every
// attempt sends these bytes.
type Prepared struct {
	Message  domain.ContentRef `json:"message"`
	Digest   string            `json:"digest"` // SHA-256 of the message in the clear, hex
	Size     int               `json:"size"`   // of the message in the clear, bytes
	Selector string            `json:"selector"`
}

// Attempted is written before the wire is touched.
type Attempted struct {
	Attempt    int   `json:"attempt"`    // from 1, over the life of the email
	Recipients []int `json:"recipients"` // places in Accepted.Recipients
}

// Delivered says that the receiving server took responsibility (RFC 5321, 6.1).
type Delivered struct {
	Recipient int   `json:"recipient"`
	Attempt   int   `json:"attempt"`
	Reply     Reply `json:"reply"`
}

// Deferred says that the receiving server could not take the email now.
type Deferred struct {
	Recipient int       `json:"recipient"`
	Attempt   int       `json:"attempt"`
	Next      time.Time `json:"next"`
	Reply     Reply     `json:"reply"`
}

// Unresolved says that the message may or may not have been taken: its end was
// sent and no answer came, or this program died in between. It is tried
// again, so the recipient may have it twice.
type Unresolved struct {
	Recipient int       `json:"recipient"`
	Attempt   int       `json:"attempt"`
	Next      time.Time `json:"next"`
	Reply     Reply     `json:"reply"`
}

// Bounced says that the receiving server will not take the email, or that it
// could not be handed over in time.
type Bounced struct {
	Recipient int   `json:"recipient"`
	Attempt   int   `json:"attempt"`
	Reply     Reply `json:"reply"`
}

// Failed says that this platform could not send the email.
type Failed struct {
	Recipient int    `json:"recipient"`
	Attempt   int    `json:"attempt,omitempty"`
	Reason    string `json:"reason"`
}

// Suppressed says that the account does not write to this address.
type Suppressed struct {
	Recipient int    `json:"recipient"`
	Reason    string `json:"reason"`
}

// Cancelled ends a scheduled email before it was sent.
type Cancelled struct{}

// Reply is what became of one SMTP transaction.
type Reply struct {
	Phase    string        `json:"phase"`              // where it ended: "connect", "rcpt", "data" …
	Code     int           `json:"code,omitempty"`     // RFC 5321, 4.2; 0 if no reply came
	Enhanced string        `json:"enhanced,omitempty"` // RFC 3463
	Text     domain.Sealed `json:"text,omitempty"`     // the server's words, which often name the recipient
	Host     string        `json:"host,omitempty"`     // the server that answered
	IP       string        `json:"ip,omitempty"`
	TLS      string        `json:"tls,omitempty"` // version and cipher suite, empty in the clear
	Took     time.Duration `json:"took"`          // nanoseconds
	Class    string        `json:"class,omitempty"`
	SubClass string        `json:"sub_class,omitempty"`
}

func (Accepted) isEvent()   {}
func (Scheduled) isEvent()  {}
func (Prepared) isEvent()   {}
func (Attempted) isEvent()  {}
func (Delivered) isEvent()  {}
func (Deferred) isEvent()   {}
func (Unresolved) isEvent() {}
func (Bounced) isEvent()    {}
func (Failed) isEvent()     {}
func (Suppressed) isEvent() {}
func (Cancelled) isEvent()  {}

// Catalogue lists the facts that an email can record.
var Catalogue = domain.Catalogue{
	domain.FactOf[Accepted]("email.accepted", 1, "An email was accepted for sending."),
	domain.FactOf[Scheduled]("email.scheduled", 1, "The time was set at which an email will be sent."),
	domain.FactOf[Prepared]("email.prepared", 1, "An email's message was built, signed and stored."),
	domain.FactOf[Attempted]("email.attempted", 1, "An attempt to hand an email over began."),
	domain.FactOf[Delivered]("email.delivered", 1, "The receiving server took an email for a recipient."),
	domain.FactOf[Deferred]("email.deferred", 1, "The receiving server asked to try again later for a recipient."),
	domain.FactOf[Unresolved]("email.unresolved", 1, "An attempt ended without an answer, so a recipient may or may not have the email."),
	domain.FactOf[Bounced]("email.bounced", 1, "An email could not be handed over for a recipient, for good."),
	domain.FactOf[Failed]("email.failed", 1, "The platform could not send an email to a recipient."),
	domain.FactOf[Suppressed]("email.suppressed", 1, "An email was not sent to a recipient whom the account does not write to."),
	domain.FactOf[Cancelled]("email.cancelled", 1, "A scheduled email was cancelled."),
}

// Envelope is what an email's list entry shows. It is sealed as a whole.
type Envelope struct {
	From    string            `json:"from"` // as the customer wrote it, like the fields below
	To      []string          `json:"to"`
	Cc      []string          `json:"cc,omitempty"`
	Bcc     []string          `json:"bcc,omitempty"`
	ReplyTo []string          `json:"reply_to,omitempty"`
	Subject string            `json:"subject"`
	Headers map[string]string `json:"headers,omitempty"`
	Tags    []Tag             `json:"tags,omitempty"`
}

// ErasedText stands where there was something that was erased on request.
const ErasedText = "[erased]"

// ErasedEnvelope stands for the envelope of an email whose keys were destroyed.
func ErasedEnvelope() Envelope {
	return Envelope{From: ErasedText, To: []string{ErasedText}, Subject: ErasedText}
}

// Tag is a label that a customer gives an email.
type Tag struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Content is what an email says. It is sealed, and kept beside the log.
type Content struct {
	HTML        string       `json:"html,omitempty"`
	Text        string       `json:"text,omitempty"`
	NoText      bool         `json:"no_text,omitempty"` // the customer wants no text part made from HTML
	Attachments []Attachment `json:"attachments,omitempty"`
}

// Attachment is a file that travels with an email.
type Attachment struct {
	Filename    string `json:"filename"`
	ContentType string `json:"content_type,omitempty"`
	ContentID   string `json:"content_id,omitempty"`
	Content     []byte `json:"content"`
}
