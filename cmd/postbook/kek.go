package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/kek"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/keyring"
)

// A rotation replaces the root key, while servers use it. Each step leaves something
// that the next attempt goes on from: the ledger says which key is to be the newest,
// and the root and the keysets say how far it has come.
type rotation struct {
	store *eventstore.Store
	ring  *keyring.Keyring
	root  keyring.Root
	lock  string // path of a file
	by    func() domain.Authority
}

// errNothingOpen says that no rotation has to be taken up again.
var errNothingOpen = errors.New("no rotation of the root key is open")

// run finishes the rotation that is open. If there is none, it begins one with
// begin.
func (r rotation) run(ctx context.Context, begin func() error) (finished domain.Recorded, err error) {
	unlock, err := keyring.LockFile(r.lock)
	if err != nil {
		return finished, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	state, err := r.state(ctx)
	if err != nil {
		return finished, err
	}
	if state.Open == nil {
		if err := begin(); err != nil {
			return finished, err
		}
		if state, err = r.state(ctx); err != nil {
			return finished, err
		}
	}
	to := state.Open.To
	if err := r.root.Switch(ctx, to); err != nil {
		return finished, err
	}
	keysets, err := r.ring.Rewrap(ctx)
	if err != nil {
		return finished, err
	}
	if err := r.root.Retire(ctx, to); err != nil {
		return finished, err
	}
	recorded, err := eventstore.Execute(ctx, r.store, kek.Decider, kek.Stream(), kek.Command(kek.Finish{Authority: r.by(), To: to, Keysets: keysets}))
	if err != nil || len(recorded) == 0 {
		return finished, err
	}
	return recorded[0], nil
}

func (r rotation) state(ctx context.Context) (kek.State, error) {
	state, _, err := eventstore.Load(ctx, r.store, kek.Decider, kek.Stream())
	return state, err
}

// begin decides which key will be the newest. It is written before it is said, and
// said before it is used.
func (r rotation) begin(ctx context.Context) error {
	from, to, err := r.root.Next(ctx)
	if err != nil {
		return err
	}
	if err := seenByAll(ctx, r.store, to); err != nil {
		return err
	}
	_, err = eventstore.Execute(ctx, r.store, kek.Decider, kek.Stream(), kek.Command(kek.Start{Authority: r.by(), From: from, To: to}))
	return err
}

// rootKeySubject is where the processes of a cluster are asked which root key they
// will find.
const rootKeySubject = "postbook.root-key"

// sight is whether a host sees the key that is to be the newest.
type sight struct {
	Host string `json:"host"`
	Sees bool   `json:"sees"`
}

// seenByAll refuses a key that lies in a file of this host alone, while others
// have copies of today's: they would go on with it, and what they wrap could be
// opened by nobody once it is destroyed.
func seenByAll(ctx context.Context, store *eventstore.Store, to string) error {
	answers, err := store.AskAll(ctx, rootKeySubject, []byte(to), 2*time.Second)
	if err != nil {
		return err
	}
	var blind []string
	for _, answer := range answers {
		var s sight
		if err := json.Unmarshal(answer, &s); err != nil {
			return fmt.Errorf("read whether another host sees the next root key: %w", err)
		}
		if !s.Sees {
			blind = append(blind, s.Host)
		}
	}
	if len(blind) > 0 {
		return fmt.Errorf("%s reads another file: the root key is replaced where every host reads the same one, or asks a service (POSTBOOK_ROOT_KEY). Or stop Postbook there, replace the key, and copy it there. Nothing was replaced", strings.Join(blind, ", "))
	}
	return nil
}

// answerForRootKey tells who replaces the root key whether this process will find
// the next one, until ctx ends.
func (s *server) answerForRootKey(ctx context.Context) error {
	stop, err := s.store.Serve(ctx, rootKeySubject, func(ctx context.Context, to []byte) ([]byte, error) {
		sees, err := s.root.Sees(ctx, string(to))
		if err != nil {
			return nil, err
		}
		return json.Marshal(sight{s.cfg.Hostname, sees})
	})
	if err != nil {
		return err
	}
	<-ctx.Done()
	stop()
	return ctx.Err()
}

// rotationLock is the file in the data directory by which one process at a time
// replaces the root key.
const rotationLock = "root-key.lock"

// resumeRotation takes up what an earlier process has left, now and whenever a
// rotation is found that nobody works on.
func (s *server) resumeRotation(ctx context.Context) error {
	r := rotation{s.store, s.vault.ring, s.root, s.cfg.path(rotationLock), func() domain.Authority { return system(time.Now(), "keeper") }}
	for {
		state, err := r.state(ctx)
		if err == nil && state.Open != nil {
			if _, err = r.run(ctx, func() error { return errNothingOpen }); err == nil {
				s.log.Info("a rotation of the root key that was interrupted is finished", "key", state.Open.To)
			}
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, errNothingOpen) {
			s.log.Warn("a rotation of the root key is open", "error", err)
		}
		select {
		case <-time.After(30 * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

type rotateKEK struct{}

// Run replaces the root key.
func (rotateKEK) Run(ctx context.Context, cfg Config, out output) error {
	k, err := openKeeper(ctx, cfg)
	if err != nil {
		return err
	}
	defer k.store.Close()
	r := rotation{k.store, k.ring, k.root, cfg.path(rotationLock), func() domain.Authority { return operator(time.Now()) }}
	rec, err := r.run(ctx, func() error { return r.begin(ctx) })
	if err != nil {
		return err
	}
	if printed, err := out.object(lineOf(rec)); printed {
		return err
	}
	if e, ok := rec.Event.(kek.RotationFinished); ok {
		fmt.Printf("The root key is %s now. %d keysets are wrapped with it, and %s is destroyed.\nCopies of the log from before cannot be opened with it: make a new one.\n", e.To, e.Keysets, e.From)
	}
	return nil
}
