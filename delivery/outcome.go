package delivery

import (
	"strings"
	"time"
)

// Outcome is what became of one transaction.
type Outcome string

// The outcomes.
const (
	Delivered Outcome = "delivered" // the server took responsibility (RFC 5321, 6.1)
	Deferred  Outcome = "deferred"  // it did not, and may later
	Bounced   Outcome = "bounced"   // it will not
	Unknown   Outcome = "unknown"   // the end of the message may have left, and no answer came
)

// Bounce sorts what is not delivered, in the words of the API.
type Bounce struct {
	Type    string // "Permanent", "Transient" or "Undetermined"; empty if delivered
	SubType string // such as "General", "NoEmail", "MailboxFull"
}

// Result says what became of one transaction, and where it ended.
type Result struct {
	Outcome  Outcome
	Phase    string // see the phases; PhaseHeld if it was not begun
	Code     int    // of the reply that decided; 0 if none came
	Enhanced string // RFC 3463
	Text     string // the server's words, or what went wrong
	Host     string
	IP       string
	TLS      string // version and cipher suite; empty in the clear
	Bounce   Bounce
	Duration time.Duration
}

// The phases of a transaction.
const (
	PhaseRoute    = "route"
	PhaseHeld     = "held"
	PhaseConnect  = "connect"
	PhaseGreeting = "greeting"
	PhaseEHLO     = "ehlo"
	PhaseTLS      = "starttls"
	PhaseAuth     = "auth"
	PhaseMail     = "mail"
	PhaseRcpt     = "rcpt"
	PhaseData     = "data"
	PhaseBody     = "body"
	PhaseDot      = "dot"
)

// verdict reads a server's reply to one of the commands of a transaction. The
// three-digit code decides; the enhanced code and the text only refine, and
// correct replies that are known to say permanent and mean temporary.
func verdict(phase string, r reply) (Outcome, Bounce) {
	if r.code/100 == 2 && phase == PhaseDot {
		return Delivered, Bounce{}
	}
	text := strings.ToLower(r.text)
	kind := bounceOf(r, text)
	switch {
	case r.code/100 != 5:
		return Deferred, Bounce{"Transient", kind.SubType}
	case phase != PhaseDot && aboutSession(r):
		return Deferred, Bounce{"Transient", "General"}
	case r.code == 552 && (kind.SubType == "MailboxFull" || strings.HasPrefix(text, "4.")),
		r.enhanced == "5.5.3" || strings.Contains(text, "too many recipients"),
		strings.Contains(text, "greylist"), strings.Contains(text, "graylist"):
		return Deferred, Bounce{"Transient", kind.SubType}
	}
	return Bounced, kind
}

// aboutSession reports whether a refusal asks for TLS or a password (RFC 4954, 6; RFC 3207,
// 4; RFC 7504): it says how to come, and nothing of the recipient.
func aboutSession(r reply) bool {
	return r.code == 530 || r.code == 523 || r.code == 534 || r.code == 538 || r.enhanced == "5.7.10" || r.enhanced == "5.7.11"
}

func bounceOf(r reply, text string) Bounce {
	_, detail, _ := strings.Cut(r.enhanced, ".")
	switch {
	case detail == "2.2" || strings.HasPrefix(text, "4.2.2") || strings.Contains(text, "mailbox full") || strings.Contains(text, "over quota"):
		return Bounce{"Transient", "MailboxFull"}
	case detail == "3.4" || r.code == 552 && strings.Contains(text, "size"):
		return Bounce{"Permanent", "MessageTooLarge"}
	case detail == "1.1", detail == "1.2", detail == "1.3", detail == "1.6", detail == "1.10", detail == "2.1",
		strings.Contains(text, "user unknown"), strings.Contains(text, "no such user"), strings.Contains(text, "unknown user"):
		return Bounce{"Permanent", "NoEmail"}
	case detail == "6.1" || strings.Contains(text, "attachment"):
		return Bounce{"Permanent", "AttachmentRejected"}
	case strings.HasPrefix(detail, "7."), strings.Contains(text, "spam"), strings.Contains(text, "blocked"):
		return Bounce{"Permanent", "ContentRejected"}
	case r.code == 0:
		return Bounce{"Undetermined", "Undetermined"}
	}
	return Bounce{"Permanent", "General"}
}
