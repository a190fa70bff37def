// Package domain holds the words every aggregate shares: events, commands, the
// authority behind a command, and refusals. It and the packages below it do no
// I/O, read no clock and draw no random numbers.
package domain

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// An Event is a fact: something that has happened and will not be taken back.
// Each aggregate package declares its own events as plain structs and lists
// them in its Catalogue.
type Event any

// A Command is a wish, put by someone who can be named. Verb is its entry in
// the authority table, such as "account.unblock".
type Command interface {
	By() Authority
	Verb() Verb
}

// Authority says who wants something, by which path, how strongly they proved
// who they are, who agreed, why, and what led them to it. Every command embeds
// one, so no event can be recorded without an author.
type Authority struct {
	Actor       Actor
	Account     string // the account that the actor belongs to; Platform for staff, operators and the system
	Role        Role
	Via         Via
	IP          string // remote address without port, empty inside the system
	Auth        Strength
	AuthAt      time.Time // when the strongest factor was last shown; zero if never
	Approvals   []Approval
	Reason      string
	At          time.Time // when they asked
	Command     uuid.UUID // identifies this command; retries keep it
	Correlation uuid.UUID // shared by everything one request set in motion
	Causation   uuid.UUID // the event or request that led directly here
	Traceparent string    // W3C trace context of the request, if it had one
}

// By lets a struct that embeds an Authority serve as a Command.
func (a Authority) By() Authority { return a }

// Actor names a person, an API key, or a part of this system.
type Actor struct {
	Kind ActorKind `json:"kind"`
	ID   string    `json:"id"`
}

func (a Actor) String() string { return string(a.Kind) + ":" + a.ID }

// ActorKind tells people, keys and programs apart.
type ActorKind string

// The kinds of actor. An Operator is whoever holds the data directory: they
// set the platform up, and hold no customer's or staff member's authority.
const (
	APIKey   ActorKind = "apikey"
	Member   ActorKind = "member"
	Staff    ActorKind = "staff"
	System   ActorKind = "system"
	Operator ActorKind = "operator"

	// Anonymous is whoever gave no credentials that hold. The authority table
	// grants it nothing; its refused commands and failed reads are on record.
	Anonymous ActorKind = "anonymous"
)

// Via is the path by which a command or a read came in.
type Via string

// The paths into the platform.
const (
	ViaAPI     Via = "api"
	ViaSMTP    Via = "smtp"
	ViaConsole Via = "console"
	ViaCLI     Via = "cli"
	ViaWorker  Via = "worker"
	ViaDB      Via = "db"
)

// Role is what an actor may do within its kind: an API key's permission, a
// member's or a staff member's role.
type Role string

// The roles of keys, members and staff.
const (
	FullAccess    Role = "full_access"
	SendingAccess Role = "sending_access"

	MemberAdmin Role = "admin"

	Trust   Role = "trust"   // blocks and unblocks accounts
	Support Role = "support" // reads, decides nothing
)

// Strength is how an actor proved who they are.
type Strength string

// The strengths of authentication, weakest first.
const (
	NoAuth       Strength = "none"
	Internal     Strength = "internal" // a part of this system, or the holder of the data directory
	KeyAuth      Strength = "key"
	PasswordAuth Strength = "password"
	SecondFactor Strength = "second_factor"
)

// Approval is another person's agreement to a command.
type Approval struct {
	Actor Actor     `json:"actor"`
	Event uuid.UUID `json:"event"` // the event in which they asked or agreed
	At    time.Time `json:"at"`
}

// Stream names one aggregate: whose it is, its kind and its identity. What
// belongs to the platform itself has the account Platform.
type Stream struct{ Account, Kind, ID string }

// Platform is the account of what belongs to no customer.
const Platform = "platform"

func (s Stream) String() string { return s.Account + "." + s.Kind + "." + s.ID }

// Position is a place in the log. Positions of different logs do not compare.
type Position struct {
	Log string // JetStream stream, "LEDGER" or "MAIL_02"
	Seq uint64 // grows, never reused; events of one commit share it
}

// Recorded is an event as the log holds it.
type Recorded struct {
	ID      uuid.UUID
	Stream  Stream
	Type    string // "account.unblocked"
	Version int    // schema version that the event was written with
	Position
	Index int       // place within its commit, from 0
	Prev  uint64    // sequence of the aggregate's previous commit, 0 for the first
	Time  time.Time // when it was recorded
	By    Authority
	Event Event
}

// Following is the authority of a part of this system that reacts to rec by
// asking something of target. It keeps the correlation, and derives the
// command's identity from event, actor and target, so that a redelivered event
// leads to the same command.
func Following(rec Recorded, actor, target string, now time.Time) Authority {
	by := Because(rec.ID, rec.By.Correlation, actor, now)
	by.Command = uuid.NewSHA1(rec.ID, []byte(actor+" "+target))
	return by
}

// Because is the authority of a part of this system that reacts to an event. The
// command's identity is the caller's to give.
func Because(event, correlation uuid.UUID, actor string, now time.Time) Authority {
	return Authority{
		Actor:       Actor{System, actor},
		Account:     Platform,
		Via:         ViaWorker,
		Auth:        Internal,
		At:          now,
		Correlation: correlation,
		Causation:   event,
	}
}

// EventID is the identity of the nth event that follows from a command. The
// first event carries the command's own identity.
func EventID(command uuid.UUID, n int) uuid.UUID {
	if n == 0 {
		return command
	}
	return uuid.NewSHA1(command, fmt.Appendf(nil, "event %d", n))
}

// Sealed is personal data that only the keyring can open. Its key is destroyed
// when the person it is about is forgotten.
type Sealed []byte

// ErrErased says that the key of sealed data was destroyed: nobody can open it any
// more.
var ErrErased = errors.New("the key was destroyed on request")

// A Refusal is a no that the asker may read. Any other error is a fault.
type Refusal struct {
	Code    Code
	Field   string // the field at fault, if one is
	Message string
}

func (r *Refusal) Error() string { return r.Message }

// Code sorts refusals.
type Code string

// The codes of refusals.
const (
	Invalid     Code = "invalid"     // a value is not allowed; Field names it
	Missing     Code = "missing"     // a value that is needed is absent; Field names it
	NotFound    Code = "not_found"   // there is no such thing, or it is not the asker's
	Forbidden   Code = "forbidden"   // the authority table says no
	WrongState  Code = "wrong_state" // what is asked does not fit what has happened
	Unverified  Code = "unverified"  // the sender domain is not verified
	Blocked     Code = "blocked"     // the account's sending is stopped
	Taken       Code = "taken"       // somebody else has it
	TooMany     Code = "too_many"    // over a limit
	Held        Code = "held"        // a legal hold keeps it from being erased
	Erased      Code = "erased"      // it was erased on request
	Conflicting Code = "conflicting" // another command won, and what was asked no longer follows
)

// Refuse makes a Refusal.
func Refuse(code Code, format string, args ...any) error {
	return &Refusal{Code: code, Message: fmt.Sprintf(format, args...)}
}

// RefuseField makes a Refusal that names the field at fault.
func RefuseField(code Code, field, format string, args ...any) error {
	return &Refusal{Code: code, Field: field, Message: fmt.Sprintf(format, args...)}
}

// Refused returns the refusal in err, or nil if err is a fault or nil.
func Refused(err error) *Refusal {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r
	}
	return nil
}
