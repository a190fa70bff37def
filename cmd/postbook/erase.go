package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/retention"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/sandbox"
	"postbook.dev/postbook/keyring"
	"postbook.dev/postbook/workers"
)

// newEraser makes what carries out erasures on the data directory's log.
func newEraser(cfg Config, store *eventstore.Store, ring *keyring.Keyring, by func() domain.Authority, log *slog.Logger) *workers.Eraser {
	return &workers.Eraser{
		Store: store, Ring: ring, By: by, Log: log,
		Inbox: func(emails map[string]bool) (int, error) { return sandbox.Remove(cfg.path("sandbox"), emails) },
	}
}

func (s *server) eraser() *workers.Eraser {
	return newEraser(s.cfg, s.store, s.vault.ring, func() domain.Authority { return system(time.Now(), "eraser") }, s.log)
}

// recipients tells the API what it has to know about somebody who is to be erased.
type recipients struct {
	*workers.Eraser
	ring *keyring.Keyring
}

func (r recipients) Generation(ctx context.Context, account, recipient string) (int, error) {
	keys, err := r.ring.Account(ctx, account)
	if err != nil {
		return 0, err
	}
	return keys.Generation(recipient), nil
}

// A keeper decides what is kept of accounts' data, and forgets the rest, with the
// operator's authority: beside a running server, or without one.
type keeper struct {
	store  *eventstore.Store
	ring   *keyring.Keyring
	root   keyring.Root
	eraser *workers.Eraser
}

func openKeeper(ctx context.Context, cfg Config) (keeper, error) {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return keeper{}, err
	}
	ring, root, err := openRing(ctx, store, cfg.RootKey)
	if err != nil {
		return keeper{}, errors.Join(err, store.Close())
	}
	by := func() domain.Authority { return operator(time.Now()) }
	return keeper{store, ring, root, newEraser(cfg, store, ring, by, slog.New(slog.DiscardHandler))}, nil
}

// known reports whether the ledger knows an account.
func known(ctx context.Context, store *eventstore.Store, id string) (bool, error) {
	state, _, err := eventstore.Load(ctx, store, account.Decider, account.Stream(id))
	return state.Open, err
}

// checkAccount refuses an account that the ledger does not know.
func checkAccount(ctx context.Context, store *eventstore.Store, id string) error {
	ok, err := known(ctx, store, id)
	if err == nil && !ok {
		err = unknownAccount(id)
	}
	return err
}

// unknownAccount is the error of a command about an account that there is not.
func unknownAccount(id string) error { return fmt.Errorf("the log knows no account %q", id) }

// subject is who a command is about: the blind index of an address, or nobody for
// the whole account. The address is taken from standard input if it is a dash.
func (k keeper) subject(ctx context.Context, id string, address *string) (index string, err error) {
	if address == nil {
		return "", nil
	}
	text := *address
	if text == "-" {
		if text, err = bufio.NewReader(os.Stdin).ReadString('\n'); err != nil && text == "" {
			return "", fmt.Errorf("read the recipient's address: %w", err)
		}
	}
	mailbox, err := parseMailbox(strings.TrimSpace(text))
	if err != nil {
		return "", fmt.Errorf("the recipient is not an email address: %w", err)
	}
	keys, err := k.ring.Account(ctx, id)
	if err != nil {
		return "", err
	}
	return keys.Index(mailbox.Addr()), nil
}

func (k keeper) execute(ctx context.Context, id string, c retention.Command) ([]domain.Recorded, error) {
	return eventstore.Execute(ctx, k.store, retention.Decider, retention.Stream(id), c)
}

type eraseCommand struct {
	Account   string  `required:"" help:"Id of the account."`
	Recipient *string `help:"Address of the recipient who is to be forgotten; - reads it from standard input. Without it, the whole account is."`
	Reason    string  `required:"" help:"Why."`
}

// Run erases a recipient of an account, or an account. Run again after it was
// interrupted, it finishes.
func (c eraseCommand) Run(ctx context.Context, cfg Config, out output) error {
	k, err := openKeeper(ctx, cfg)
	if err != nil {
		return err
	}
	defer k.store.Close()
	recipient, err := k.request(ctx, c)
	if err != nil {
		return err
	}
	state, _, err := eventstore.Load(ctx, k.store, retention.Decider, retention.Stream(c.Account))
	if err != nil {
		return err
	}
	for id, open := range state.Open {
		if open.Recipient == recipient {
			if err := k.eraser.Erase(ctx, c.Account, id); err != nil {
				return err
			}
		}
	}
	history, err := k.store.History(ctx, retention.Stream(c.Account))
	if err != nil {
		return err
	}
	for _, rec := range slices.Backward(history) {
		done, ok := rec.Event.(retention.Erased)
		if !ok || done.Recipient != recipient {
			continue
		}
		if printed, err := out.object(lineOf(rec)); printed {
			return err
		}
		fmt.Printf("Erased: %d keys destroyed, %d emails that nobody can read any more, %d messages removed from the sandbox.\n", done.Keys, done.Emails, done.Inbox)
		return nil
	}
	return errors.New("the erasure is not on record as finished: run this again")
}

// request puts the erasure to the account's aggregate.
func (k keeper) request(ctx context.Context, c eraseCommand) (recipient string, err error) {
	by := because(c.Reason)
	known, err := known(ctx, k.store, c.Account)
	if err != nil {
		return "", err
	}
	if c.Recipient == nil {
		_, err = k.execute(ctx, c.Account, retention.EraseAccount{Authority: by, Known: known})
		return "", err
	}
	ask := retention.EraseRecipient{Authority: by, Known: known}
	if known {
		if ask.Recipient, err = k.subject(ctx, c.Account, c.Recipient); err != nil {
			return "", err
		}
		keys, err := k.ring.Account(ctx, c.Account)
		if err != nil {
			return "", err
		}
		ask.Generation = keys.Generation(ask.Recipient)
		if ask.Emails, err = k.eraser.Readable(ctx, c.Account, ask.Recipient); err != nil {
			return "", err
		}
	}
	_, err = k.execute(ctx, c.Account, ask)
	return ask.Recipient, err
}

type holdsCommand struct {
	Place holdsPlace `cmd:"" help:"Keep an account's or a recipient's data from being erased."`
	Lift  holdsLift  `cmd:"" help:"End a hold."`
	List  holdsList  `cmd:"" help:"List an account's holds."`
}

type holdsPlace struct {
	Account   string  `required:"" help:"Id of the account."`
	Recipient *string `help:"Address of the only recipient whom it is about; - reads it from standard input."`
	Reason    string  `required:"" help:"Why, such as the matter's number."`
}

// Run places a hold.
func (c holdsPlace) Run(ctx context.Context, cfg Config, out output) error {
	k, err := openKeeper(ctx, cfg)
	if err != nil {
		return err
	}
	defer k.store.Close()
	by := because(c.Reason)
	place := retention.PlaceHold{Authority: by}
	if place.Known, err = known(ctx, k.store, c.Account); err != nil {
		return err
	}
	if place.Known {
		if place.Recipient, err = k.subject(ctx, c.Account, c.Recipient); err != nil {
			return err
		}
	}
	if _, err := k.execute(ctx, c.Account, place); err != nil {
		return err
	}
	if printed, err := out.object(map[string]string{"hold": by.Command.String(), "account": c.Account, "recipient": place.Recipient}); printed {
		return err
	}
	fmt.Printf("Held. To end it: postbook holds lift %s --account %s --reason …\n", by.Command, c.Account)
	return nil
}

type holdsLift struct {
	Hold    uuid.UUID `arg:"" help:"Id of the hold."`
	Account string    `required:"" help:"Id of the account."`
	Reason  string    `required:"" help:"Why."`
}

// Run lifts a hold.
func (c holdsLift) Run(ctx context.Context, cfg Config, out output) error {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	by := because(c.Reason)
	lifted, err := keeper{store: store}.execute(ctx, c.Account, retention.LiftHold{Authority: by, Hold: c.Hold})
	if err != nil {
		return err
	}
	return out.event(lifted[0])
}

type holdsList struct {
	Account string `required:"" help:"Id of the account."`
}

// holdLine is a hold as it is listed.
type holdLine struct {
	Hold      uuid.UUID `json:"hold"`
	Recipient string    `json:"recipient,omitempty"`
	Since     time.Time `json:"since"`
	By        string    `json:"by"`
	Reason    string    `json:"reason"`
}

// Run lists the holds that are in force.
func (c holdsList) Run(ctx context.Context, cfg Config, out output) error {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := checkAccount(ctx, store, c.Account); err != nil {
		return err
	}
	history, err := store.History(ctx, retention.Stream(c.Account))
	if err != nil {
		return err
	}
	holds := []holdLine{}
	for _, rec := range history {
		switch e := rec.Event.(type) {
		case retention.HoldPlaced:
			holds = append(holds, holdLine{e.Hold, e.Recipient, rec.Time, rec.By.Actor.String(), rec.By.Reason})
		case retention.HoldLifted:
			holds = slices.DeleteFunc(holds, func(h holdLine) bool { return h.Hold == e.Hold })
		}
	}
	if printed, err := out.object(holds); printed {
		return err
	}
	var rows [][]string
	for _, h := range holds {
		rows = append(rows, []string{h.Hold.String(), h.Recipient, h.Since.UTC().Format(clock), h.By, h.Reason})
	}
	return out.table([]string{"HOLD", "RECIPIENT", "SINCE", "BY", "REASON"}, rows)
}
