// Package sender is a domain that a customer sends from: the DNS records it was
// asked to publish, what was found, and the key that signs for it.
package sender

import (
	"slices"
	"time"

	"postbook.dev/postbook/domain"
)

// Status is where a domain, or one record of it, stands. The words are those of
// the API.
type Status string

// The statuses of domains and records. A record alone can be TemporaryFailure,
// which is an answer that DNS could not give.
const (
	NotStarted       Status = "not_started"
	Pending          Status = "pending"
	Found            Status = "verified"
	NotFound         Status = "failed"
	TemporaryFailure Status = "temporary_failure"
)

// The records that a domain is asked to publish. DMARC is advice.
const (
	RecordDKIM  = "DKIM"
	RecordSPF   = "SPF"
	RecordMX    = "MX"
	RecordDMARC = "DMARC"
)

// State is what decisions about a sender domain need to know.
type State struct {
	Name      string // empty until it is added
	Removed   bool
	Vouched   bool
	Status    Status
	Requested time.Time // when the present round of checks began
	Since     time.Time // when it lapsed, zero otherwise
	Settings  Settings
	Results   []Result
}

// CanSend reports whether mail from this domain is accepted. A domain that was
// verified goes on sending while its records cannot be found, until it Failed.
func (s State) CanSend() bool { return !s.Removed && s.Status == Found }

// Stream names the aggregate of a sender domain.
func Stream(account, id string) domain.Stream {
	return domain.Stream{Account: account, Kind: "sender", ID: id}
}

// Command is something that can be asked of a sender domain.
//
//sumtype:decl
type Command interface {
	domain.Command
	isCommand()
}

// Add registers a domain. The caller has taken its name and made the key.
type Add struct {
	domain.Authority
	Added Added
}

// Change replaces the settings.
type Change struct {
	domain.Authority
	Settings Settings
}

// Verify starts a round of checks.
type Verify struct{ domain.Authority }

// Report tells what DNS answered.
type Report struct {
	domain.Authority
	Results []Result
}

// Vouch lets the domain send without proof.
type Vouch struct{ domain.Authority }

// Remove ends the domain.
type Remove struct{ domain.Authority }

func (Add) isCommand()    {}
func (Change) isCommand() {}
func (Verify) isCommand() {}
func (Report) isCommand() {}
func (Vouch) isCommand()  {}
func (Remove) isCommand() {}

// Verb is the command's entry in the authority table.
func (Add) Verb() domain.Verb { return "sender.add" }

// Verb is the command's entry in the authority table.
func (Change) Verb() domain.Verb { return "sender.change" }

// Verb is the command's entry in the authority table.
func (Verify) Verb() domain.Verb { return "sender.verify" }

// Verb is the command's entry in the authority table.
func (Report) Verb() domain.Verb { return "sender.report" }

// Verb is the command's entry in the authority table.
func (Vouch) Verb() domain.Verb { return "sender.vouch" }

// Verb is the command's entry in the authority table.
func (Remove) Verb() domain.Verb { return "sender.remove" }

// Patience is how long a domain stays pending, or lapsed, before it has failed.
const Patience = 72 * time.Hour

// Decider is the sender domain aggregate.
var Decider = domain.NewDecider("sender", decide, evolve)

func decide(s State, c Command) ([]Event, error) {
	if add, ok := c.(Add); ok {
		return decideAdd(s, add)
	}
	if s.Name == "" || s.Removed {
		return nil, domain.Refuse(domain.NotFound, "Domain not found")
	}
	switch c := c.(type) {
	case Change:
		if err := checkSettings(c.Settings); err != nil {
			return nil, err
		}
		if c.Settings == s.Settings {
			return nil, nil
		}
		return []Event{Changed{c.Settings}}, nil
	case Verify:
		if s.Status == Pending || s.Vouched {
			return nil, nil
		}
		return []Event{VerificationRequested{At: c.At}}, nil
	case Report:
		return decideReport(s, c), nil
	case Vouch:
		if s.Vouched {
			return nil, nil
		}
		return []Event{Vouched{}}, nil
	case Remove:
		return []Event{Removed{}}, nil
	}
	return nil, domain.Refuse(domain.Invalid, "A domain does not know %s.", c.Verb())
}

func decideAdd(s State, c Add) ([]Event, error) {
	switch {
	case s.Name != "":
		return nil, nil
	case c.Added.Name == "":
		return nil, domain.RefuseField(domain.Missing, "name", "Missing `name` field.")
	case len(c.Added.PrivateKey) == 0 || c.Added.PublicKey == "" || c.Added.Selector == "":
		return nil, domain.RefuseField(domain.Missing, "key", "A domain needs a signing key.")
	}
	if err := checkSettings(c.Added.Settings); err != nil {
		return nil, err
	}
	return []Event{c.Added}, nil
}

func checkSettings(s Settings) error {
	if s.TLS != TLSOpportunistic && s.TLS != TLSEnforced {
		return domain.RefuseField(domain.Invalid, "tls", "The `tls` must be %q or %q.", TLSOpportunistic, TLSEnforced)
	}
	return nil
}

// decideReport holds the rule of verification: a domain is verified when DKIM,
// SPF and MX are all found. An answer that DNS could not give proves nothing
// either way.
func decideReport(s State, c Report) []Event {
	if s.Vouched {
		return nil
	}
	var events []Event
	if !slices.EqualFunc(s.Results, c.Results, sameResult) {
		events = append(events, Checked{Results: c.Results})
	}
	found, absent := summary(c.Results)
	switch s.Status {
	case Pending, NotFound, NotStarted:
		switch {
		case found:
			events = append(events, Verified{})
		case s.Status == Pending && c.At.Sub(s.Requested) >= Patience:
			events = append(events, Failed{})
		}
	case Found:
		switch {
		case found && !s.Since.IsZero():
			events = append(events, Verified{})
		case absent && s.Since.IsZero():
			events = append(events, Lapsed{Since: c.At})
		case absent && c.At.Sub(s.Since) >= Patience:
			events = append(events, Failed{})
		}
	}
	return events
}

// summary reports whether all records that are needed were found, and whether
// one of them is certainly not there.
func summary(results []Result) (found, absent bool) {
	have := map[string]Status{}
	for _, r := range results {
		have[r.Record] = r.Status
	}
	found = true
	for _, record := range []string{RecordDKIM, RecordSPF, RecordMX} {
		found = found && have[record] == Found
		absent = absent || have[record] == NotFound
	}
	return found, absent
}

func sameResult(a, b Result) bool {
	return a.Record == b.Record && a.Name == b.Name && a.Status == b.Status && a.Error == b.Error && slices.Equal(a.Found, b.Found)
}

func evolve(s State, e Event) State {
	switch e := e.(type) {
	case Added:
		s.Name, s.Status, s.Settings = e.Name, NotStarted, e.Settings
	case Changed:
		s.Settings = e.Settings
	case VerificationRequested:
		// A domain that may send goes on doing so while it is looked at again.
		if s.Status != Found {
			s.Status = Pending
		}
		s.Requested = e.At
	case Checked:
		s.Results = e.Results
	case Verified:
		s.Status, s.Since = Found, time.Time{}
	case Vouched:
		s.Status, s.Vouched = Found, true
	case Lapsed:
		s.Since = e.Since
	case Failed:
		s.Status, s.Since = NotFound, time.Time{}
	case Removed:
		s.Removed = true
	}
	return s
}
