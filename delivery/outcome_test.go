package delivery

import (
	"bufio"
	"strings"
	"testing"
)

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		phase, reply string
		outcome      Outcome
		kind, sub    string
	}{
		{PhaseDot, "250 2.0.0 Ok", Delivered, "", ""},
		{PhaseDot, "250 queued, spam score 0", Delivered, "", ""},

		// Nobody is there.
		{PhaseRcpt, "550 5.1.1 The email account that you tried to reach does not exist", Bounced, "Permanent", "NoEmail"},
		{PhaseRcpt, "550 user unknown", Bounced, "Permanent", "NoEmail"},
		{PhaseRcpt, "553 No such user here", Bounced, "Permanent", "NoEmail"},
		{PhaseRcpt, "550 5.1.10 RESOLVER.ADR.RecipientNotFound", Bounced, "Permanent", "NoEmail"},
		{PhaseDot, "550 5.2.1 The account is disabled", Bounced, "Permanent", "NoEmail"},
		{PhaseRcpt, "550 5.1.2 Bad host", Bounced, "Permanent", "NoEmail"},

		// The code decides whether it is for good.
		{PhaseRcpt, "450 4.1.1 user unknown, for now", Deferred, "Transient", "NoEmail"},
		{PhaseRcpt, "450 5.1.1 user unknown", Deferred, "Transient", "NoEmail"},
		{PhaseRcpt, "550 4.1.1 user unknown", Bounced, "Permanent", "NoEmail"},
		{PhaseMail, "451 4.3.0 try later", Deferred, "Transient", "General"},
		{PhaseData, "554 5.3.0 no", Bounced, "Permanent", "General"},
		{PhaseDot, "554 transaction failed", Bounced, "Permanent", "General"},
		{PhaseDot, "421 4.7.0 try again", Deferred, "Transient", "ContentRejected"},
		{PhaseMail, "421 closing", Deferred, "Transient", "General"},

		// A refusal of how the session is led says nothing about anybody.
		{PhaseMail, "530 5.7.0 Must issue a STARTTLS command first", Deferred, "Transient", "General"},
		{PhaseRcpt, "530 Authentication required", Deferred, "Transient", "General"},
		{PhaseMail, "523 5.7.10 Encryption needed", Deferred, "Transient", "General"},
		{PhaseRcpt, "550 5.7.11 Encryption required", Deferred, "Transient", "General"},
		{PhaseRcpt, "550 5.7.0 Blocked", Bounced, "Permanent", "ContentRejected"},

		// Greylisting, in honest words and with a wrong code.
		{PhaseRcpt, "450 4.2.0 Greylisted, see http://postgrey.schweikert.ch/", Deferred, "Transient", "General"},
		{PhaseRcpt, "451 4.7.1 Greylisting in action", Deferred, "Transient", "ContentRejected"},
		{PhaseRcpt, "550 5.7.1 Greylisted, please come back", Deferred, "Transient", "ContentRejected"},
		{PhaseDot, "554 you are graylisted", Deferred, "Transient", "General"},

		// A full mailbox may have room tomorrow: 552 says so by custom (RFC 5321, 4.5.3.1.10).
		{PhaseDot, "552 5.2.2 Mailbox full", Deferred, "Transient", "MailboxFull"},
		{PhaseRcpt, "552 Requested mail action aborted: mailbox full", Deferred, "Transient", "MailboxFull"},
		{PhaseRcpt, "552 4.2.2 Mailbox size limit exceeded", Deferred, "Transient", "MailboxFull"},
		{PhaseRcpt, "452 4.2.2 over quota", Deferred, "Transient", "MailboxFull"},
		{PhaseRcpt, "550 5.2.2 over quota", Bounced, "Transient", "MailboxFull"},

		{PhaseRcpt, "452 4.5.3 Too many recipients", Deferred, "Transient", "General"},
		{PhaseRcpt, "552 5.5.3 Too many recipients", Deferred, "Transient", "General"},
		{PhaseRcpt, "552 Too many recipients", Deferred, "Transient", "General"},

		{PhaseMail, "552 5.3.4 Message size exceeds fixed limit", Bounced, "Permanent", "MessageTooLarge"},
		{PhaseDot, "552 message exceeds maximum size", Bounced, "Permanent", "MessageTooLarge"},
		{PhaseMail, "452 4.3.1 Insufficient system storage", Deferred, "Transient", "General"},

		// A refusal of the content or of the sender says nothing about the address.
		{PhaseDot, "550 5.7.1 This message is spam", Bounced, "Permanent", "ContentRejected"},
		{PhaseRcpt, "554 5.7.1 Service unavailable; Client host [192.0.2.2] blocked using zen.spamhaus.org", Bounced, "Permanent", "ContentRejected"},
		{PhaseMail, "550 5.7.25 no PTR record", Bounced, "Permanent", "ContentRejected"},
		{PhaseDot, "550 looks like spam", Bounced, "Permanent", "ContentRejected"},
		{PhaseDot, "552 5.7.0 This attachment type is not allowed", Bounced, "Permanent", "AttachmentRejected"},
	} {
		r, err := readReply(bufio.NewReader(strings.NewReader(c.reply + "\r\n")))
		if err != nil {
			t.Fatal(err)
		}
		if outcome, bounce := verdict(c.phase, r); outcome != c.outcome || bounce != (Bounce{c.kind, c.sub}) {
			t.Errorf("%s: %q is %s %+v and not %s %s/%s", c.phase, c.reply, outcome, bounce, c.outcome, c.kind, c.sub)
		}
	}
}
