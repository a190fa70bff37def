// Package directory is what deciding needs to know about everybody: which
// accounts may send, which keys are alive, which domains are verified, who is
// staff. It is folded from the ledger in memory, so no row in a table can change
// what is decided.
package directory

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/member"
	"postbook.dev/postbook/domain/retention"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/domain/staff"
)

// Account is what the ledger says about an account.
type Account struct {
	ID        string
	Name      string
	Blocked   string // policy, empty while it may send
	Erased    bool   // its keys are destroyed, or about to be
	RateLimit int
}

// Stopped says why the account may not send, and nothing while it may.
func (a Account) Stopped() string {
	if a.Erased {
		return "erased"
	}
	return a.Blocked
}

// Key is a live API key.
type Key struct {
	ID         string
	Account    string
	Permission domain.Role
	Sender     string // id of the only sender domain that it may send from
}

// Sender is a sender domain that has not been removed.
type Sender struct {
	ID         string
	Account    string
	Name       string
	CanSend    bool
	Pending    bool      // its DNS records are being looked for
	Requested  time.Time // since when
	ReturnPath string
	Selector   string
	PublicKey  string
	PrivateKey domain.Sealed
	Region     string
	Settings   sender.Settings
	Vouched    bool
}

// Person is a member of staff, or of a customer's account.
type Person struct {
	ID       string
	Account  string // domain.Platform for staff
	Kind     domain.ActorKind
	Role     domain.Role
	Index    string // blind index of the email address
	Email    domain.Sealed
	Password string
	TOTP     domain.Sealed
}

// SessionAge is the longest time that a session at the console is good for: one that was
// ended is remembered for as long.
const SessionAge = 12 * time.Hour

// Directory holds the fold. It is safe for concurrent use.
type Directory struct {
	mu       sync.RWMutex
	seq      uint64
	accounts map[string]Account
	keys     map[string]Key    // by hash
	hashes   map[string]string // key id to hash
	senders  map[string]senderEntry
	byName   map[string]string // account and name to sender id
	people   map[string]Person
	ended    map[string]time.Time // sessions that were ended before their time, and when
	waiting  chan struct{}        // closed whenever seq grows
}

type senderEntry struct {
	Sender
	state sender.State
}

// New makes an empty directory.
func New() *Directory {
	return &Directory{
		accounts: map[string]Account{},
		keys:     map[string]Key{},
		hashes:   map[string]string{},
		senders:  map[string]senderEntry{},
		byName:   map[string]string{},
		people:   map[string]Person{},
		ended:    map[string]time.Time{},
		waiting:  make(chan struct{}),
	}
}

// Apply folds the events of the ledger, which have to come in its order. Events
// up to seq are then known.
func (d *Directory) Apply(seq uint64, events []domain.Recorded) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if seq <= d.seq {
		return
	}
	for _, rec := range events {
		d.fold(rec)
	}
	d.seq = seq
	close(d.waiting)
	d.waiting = make(chan struct{})
}

// Seq is the sequence of the ledger up to which events are known.
func (d *Directory) Seq() uint64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.seq
}

// Await returns when the events up to seq are known.
func (d *Directory) Await(ctx context.Context, seq uint64) error {
	for {
		d.mu.RLock()
		known, waiting := d.seq >= seq, d.waiting
		d.mu.RUnlock()
		if known {
			return nil
		}
		select {
		case <-waiting:
		case <-ctx.Done():
			return fmt.Errorf("directory: wait for ledger sequence %d: %w", seq, ctx.Err())
		}
	}
}

func (d *Directory) fold(rec domain.Recorded) {
	of := rec.Stream
	switch e := rec.Event.(type) {
	case account.Opened:
		d.accounts[of.ID] = Account{ID: of.ID, Name: e.Name, RateLimit: e.RateLimit}
	case account.Blocked:
		a := d.accounts[of.ID]
		a.Blocked = e.Policy
		d.accounts[of.ID] = a
	case account.Unblocked:
		a := d.accounts[of.ID]
		a.Blocked = ""
		d.accounts[of.ID] = a
	case retention.Requested:
		if e.Recipient == "" {
			d.erase(of.Account)
		}
	case apikey.Issued:
		if d.accounts[of.Account].Erased {
			return
		}
		d.keys[e.Hash] = Key{ID: of.ID, Account: of.Account, Permission: e.Permission, Sender: e.Sender}
		d.hashes[of.ID] = e.Hash
	case apikey.Revoked:
		delete(d.keys, d.hashes[of.ID])
		delete(d.hashes, of.ID)
	case staff.Joined:
		d.people[of.ID] = Person{ID: of.ID, Account: domain.Platform, Kind: domain.Staff, Role: e.Role, Index: e.Index, Email: e.Email, Password: e.Password, TOTP: e.TOTP}
	case member.Joined:
		if d.accounts[of.Account].Erased {
			return
		}
		d.people[of.ID] = Person{ID: of.ID, Account: of.Account, Kind: domain.Member, Role: e.Role, Index: e.Index, Email: e.Email, Password: e.Password}
	case member.SignedOut:
		maps.DeleteFunc(d.ended, func(_ string, at time.Time) bool { return rec.Time.Sub(at) > SessionAge })
		d.ended[e.Session] = rec.Time
	case staff.Left, member.Left:
		delete(d.people, of.ID)
	case sender.Event:
		if !d.accounts[of.Account].Erased {
			d.foldSender(of, e)
		}
	}
}

// erase takes out what belongs to an account that nobody can use any more.
func (d *Directory) erase(account string) {
	a := d.accounts[account]
	a.Erased = true
	d.accounts[account] = a
	for hash, key := range d.keys {
		if key.Account == account {
			delete(d.keys, hash)
			delete(d.hashes, key.ID)
		}
	}
	for id, s := range d.senders {
		if s.Account == account {
			delete(d.senders, id)
			delete(d.byName, account+" "+s.Name)
		}
	}
	for id, p := range d.people {
		if p.Account == account {
			delete(d.people, id)
		}
	}
}

func (d *Directory) foldSender(of domain.Stream, e sender.Event) {
	entry := d.senders[of.ID]
	if added, ok := e.(sender.Added); ok {
		entry.Sender = Sender{
			ID: of.ID, Account: of.Account, Name: added.Name,
			ReturnPath: added.ReturnPath, Selector: added.Selector,
			PublicKey: added.PublicKey, PrivateKey: added.PrivateKey,
			Region: added.Region,
		}
		d.byName[of.Account+" "+added.Name] = of.ID
	}
	entry.state = sender.Decider.Evolve(entry.state, e)
	if entry.state.Removed {
		delete(d.senders, of.ID)
		delete(d.byName, of.Account+" "+entry.Name)
		return
	}
	entry.CanSend = entry.state.CanSend()
	entry.Pending = entry.state.Status == sender.Pending
	entry.Requested = entry.state.Requested
	entry.Settings = entry.state.Settings
	entry.Vouched = entry.state.Vouched
	d.senders[of.ID] = entry
}

// Account finds an account.
func (d *Directory) Account(id string) (Account, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	a, ok := d.accounts[id]
	return a, ok
}

// Key finds a live key by the hash of its token.
func (d *Directory) Key(hash string) (Key, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	k, ok := d.keys[hash]
	return k, ok
}

// SenderNamed finds an account's sender domain by name.
func (d *Directory) SenderNamed(account, name string) (Sender, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s, ok := d.senders[d.byName[account+" "+name]]
	return s.Sender, ok
}

// Sender finds a sender domain.
func (d *Directory) Sender(id string) (Sender, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s, ok := d.senders[id]
	return s.Sender, ok
}

// Senders lists all sender domains, in no order.
func (d *Directory) Senders() []Sender {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := make([]Sender, 0, len(d.senders))
	for _, s := range d.senders {
		all = append(all, s.Sender)
	}
	return all
}

// Accounts lists all accounts, in no order.
func (d *Directory) Accounts() []Account {
	d.mu.RLock()
	defer d.mu.RUnlock()
	all := make([]Account, 0, len(d.accounts))
	for _, a := range d.accounts {
		all = append(all, a)
	}
	return all
}

// Person finds somebody by id.
func (d *Directory) Person(id string) (Person, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	p, ok := d.people[id]
	return p, ok
}

// Ended reports whether a session was ended before its time.
func (d *Directory) Ended(session string) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	_, is := d.ended[session]
	return is
}

// People lists everybody of a kind, in no order.
func (d *Directory) People(kind domain.ActorKind) []Person {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var all []Person
	for _, p := range d.people {
		if p.Kind == kind {
			all = append(all, p)
		}
	}
	return all
}
