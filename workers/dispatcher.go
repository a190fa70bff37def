// Package workers does what follows from events: it hands emails over, looks
// domains up in DNS, and tells people what they should know. What it learns
// becomes events again.
package workers

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"postbook.dev/postbook/delivery"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/eventstore"
)

// Vault seals and opens personal data.
type Vault interface {
	SealBeside(ctx context.Context, account, class, subject string, beside, plain []byte) (domain.Sealed, error)
	Open(ctx context.Context, account, class, subject string, box []byte) ([]byte, error)
}

// The classes of sealed data that are handled here.
const (
	classRecipient = "recipient"
	classEnvelope  = "envelope"
	classBody      = "body"
	classSecret    = "secret"
)

// Sender hands one message over to one recipient.
type Sender interface {
	Send(ctx context.Context, env delivery.Envelope, message []byte, before func() error) delivery.Result
}

// Config of a dispatcher.
type Config struct {
	Store     *eventstore.Store
	Directory *directory.Directory
	Vault     Vault
	Sender    Sender
	VERP      delivery.VERP
	Hostname  string             // names this process as the owner of partitions
	Mode      string             // "sandbox" has recipients that stand for suppressed addresses
	Snapshots *eventstore.Bucket // of which emails are open
	Leases    *Leases            // nil if no other process can work on the partitions
	Now       func() time.Time   // looked at often: nothing waits longer than tick without asking it
	Random    func() float64     // in [0, 1); nil is math/rand
	Log       *slog.Logger

	Concurrency int   // attempts under way at once, 0 is 300
	Memory      int64 // bytes of large messages that are held at once, 0 is 256 MiB; one always is
}

// tick is how long anything waits without asking the clock again.
const tick = 200 * time.Millisecond

// drain is how long attempts that are under way may take when the process ends.
// The answer to a message that has left is worth waiting for: without it, the
// message counts as unknown.
const drain = 30 * time.Second

// sharing is how long a record waits for others to share a message and a sync of the
// disk with, if all attempts are taken; if fewer are under way, so much less: half of
// what a server did under load, beside signing, was to write and read one more message.
// Up to crowd attempts wait for nobody.
const (
	sharing = 40 * time.Millisecond
	crowd   = 16
)

func (d *Dispatcher) patience() time.Duration {
	// Each partition holds a slot while it looks for the next email.
	under := len(d.slots) - d.Store.Partitions()
	if under < crowd {
		return 0
	}
	return sharing * time.Duration(under) / time.Duration(cap(d.slots))
}

// Dispatcher hands over the emails of all partitions. Run owns each partition
// while it lives: only the owner decides about the emails in it.
type Dispatcher struct {
	Config
	slots   chan struct{}       // of attempts
	memory  *semaphore.Weighted // for large messages
	signing chan struct{}       // of messages being built and signed, which takes a core each
	signers *signers
	content *gather[blob, stored]

	partitions []*partition
}

// NewDispatcher makes a dispatcher.
func NewDispatcher(c Config) *Dispatcher {
	if c.Concurrency == 0 {
		c.Concurrency = 300
	}
	if c.Memory == 0 {
		c.Memory = 256 << 20
	}
	if c.Random == nil {
		c.Random = rand.Float64
	}
	d := &Dispatcher{
		Config:  c,
		slots:   make(chan struct{}, c.Concurrency),
		memory:  semaphore.NewWeighted(c.Memory),
		signing: make(chan struct{}, runtime.NumCPU()),
		signers: &signers{held: map[string]*delivery.Signer{}},
	}
	d.content = &gather[blob, stored]{do: d.putContent}
	for n := range c.Store.Partitions() {
		d.partitions = append(d.partitions, newPartition(d, n))
	}
	return d
}

// Run works until ctx ends, and then until the attempts that are under way have
// ended.
func (d *Dispatcher) Run(ctx context.Context) error {
	if d.Leases != nil {
		// They outlive the sessions, which may still wait for what is on the wire.
		leases, cancel := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = d.Leases.Run(leases) // ends with its context alone
		}()
		defer func() {
			cancel()
			<-ended
		}()
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range d.partitions {
		group.Go(func() error { return p.run(ctx) })
	}
	group.Go(func() error {
		// A block or its end may be in any entry of the ledger.
		for {
			if err := d.Directory.Await(ctx, d.Directory.Seq()+1); err != nil {
				return err
			}
			for _, p := range d.partitions {
				p.wake()
			}
		}
	})
	return group.Wait()
}

// signers keeps the signing keys that are in use, parsed: parsing one takes a
// sixth of a signature's time.
type signers struct {
	mu   sync.Mutex
	held map[string]*delivery.Signer // by sender domain
}

const maxSigners = 10_000

var errSenderGone = errors.New("the domain that it was to be sent from was removed")

// signer is the one of a sender domain that is still there.
func (d *Dispatcher) signer(ctx context.Context, account, senderID string) (*delivery.Signer, directory.Sender, error) {
	from, ok := d.Directory.Sender(senderID)
	s := d.signers
	s.mu.Lock()
	held := s.held[senderID]
	if !ok {
		delete(s.held, senderID)
	}
	s.mu.Unlock()
	if !ok {
		return nil, from, errSenderGone
	}
	if held != nil {
		return held, from, nil
	}
	key, err := d.Vault.Open(ctx, account, classSecret, senderID, from.PrivateKey)
	if err != nil {
		return nil, from, err
	}
	signer, err := delivery.ParseSigner(from.Name, from.Selector, key)
	if err != nil {
		return nil, from, err
	}
	s.mu.Lock()
	if len(s.held) >= maxSigners {
		clear(s.held)
	}
	s.held[senderID] = signer
	s.mu.Unlock()
	return signer, from, nil
}
