package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

// Classes of sealed data, which the keyring keeps keys for.
const (
	classRecipient = "recipient" // subject: blind index of the address
	classEnvelope  = "envelope"  // subject: email id
	classBody      = "body"      // subject: email id
	classSecret    = "secret"    // subject: sender domain id
	classUser      = "user"      // subject: person id
)

// accept decides on drafts, and appends what follows from those that are not
// refused. It returns when all of that is on disk: their content, and then the
// events that point to it, wait for the disk at the same time, because an event
// without its content is one that was never acknowledged to anybody.
//
// The nth refusal belongs to the nth draft; with allOrNone the first refusal is
// the error. An error means that nothing was promised.
func (a *API) accept(ctx context.Context, r *request, ids []uuid.UUID, drafts []draft, once string, allOrNone bool) (refusals []error, err error) {
	refusals = make([]error, len(drafts))
	var commits []eventstore.Commit
	var blobs [][]byte
	for i, d := range drafts {
		commit, blob, err := a.prepare(ctx, r, ids[i], d, once)
		if domain.Refused(err) != nil && !allOrNone {
			refusals[i] = err
			continue
		}
		if err != nil {
			return nil, err
		}
		commits, blobs = append(commits, commit), append(blobs, blob)
	}
	if len(commits) == 0 {
		return refusals, nil
	}
	refs, onDisk, err := a.Store.PutContent(ctx, r.by.Account, blobs)
	if err != nil {
		return nil, err
	}
	for i, ref := range refs {
		// What was decided on is unchanged; now it is known where the store put it.
		accepted := commits[i].Events[0].(email.Accepted) //nolint:errcheck // prepare puts it first
		accepted.Content = ref
		commits[i].Events[0] = accepted
	}
	var appended [][]domain.Recorded
	var both errgroup.Group
	both.Go(func() error { return onDisk(ctx) })
	both.Go(func() (err error) {
		appended, err = a.Store.Accept(ctx, commits)
		return err
	})
	if err := both.Wait(); err != nil {
		return nil, err
	}
	for _, recorded := range appended {
		a.written.note(r.by.Account, recorded[0].Position)
	}
	return refusals, nil
}

// prepare decides on one draft, and seals what is personal in it.
func (a *API) prepare(ctx context.Context, r *request, id uuid.UUID, d draft, once string) (eventstore.Commit, []byte, error) {
	of := email.Stream(r.by.Account, id)
	account, _ := a.Directory.Account(r.by.Account)
	from, known := a.Directory.SenderNamed(r.by.Account, d.from.Domain)
	c := email.Accept{
		Authority: r.by,
		Accepted: email.Accepted{
			Sender:     from.ID,
			MessageID:  id.String() + "@" + d.from.Domain,
			Recipients: make([]email.Recipient, len(d.recipients)),
			Once:       once,
		},
		Due:        d.due,
		Blocked:    account.Stopped(),
		SenderName: d.from.Domain,
		CanSend:    known && from.CanSend && (r.key.Sender == "" || r.key.Sender == from.ID),
	}
	// Retrying a request with the same idempotency key leads to the same event.
	c.Authority.Command = uuid.NewSHA1(id, []byte("accept"))
	for i, to := range d.recipients {
		c.Accepted.Recipients[i].Kind = to.kind
	}
	events, err := email.Decider.Decide(of, email.State{}, c)
	if refusal := domain.Refused(err); refusal != nil {
		a.Refused(ctx, of, c, refusal)
	}
	if err != nil {
		return eventstore.Commit{}, nil, err
	}
	accepted := events[0].(email.Accepted) //nolint:errcheck // the decider puts it first
	content, err := a.seal(ctx, r.by.Account, id.String(), d, &accepted)
	if err != nil {
		return eventstore.Commit{}, nil, fmt.Errorf("seal %s: %w", of, err)
	}
	commit := eventstore.Commit{Stream: of, By: c.Authority, Events: []domain.Event{accepted}}
	for _, e := range events[1:] {
		commit.Events = append(commit.Events, e)
	}
	return commit, content, nil
}

func (a *API) seal(ctx context.Context, account, id string, d draft, accepted *email.Accepted) (content []byte, err error) {
	about := make([]string, len(d.recipients))
	for i, to := range d.recipients {
		r := &accepted.Recipients[i]
		if r.Index, err = a.Vault.Index(ctx, account, to.mailbox.Addr()); err != nil {
			return nil, err
		}
		about[i] = r.Index
		if r.Address, err = a.Vault.Seal(ctx, account, classRecipient, r.Index, []byte(to.mailbox.Addr())); err != nil {
			return nil, err
		}
	}
	envelope, err := json.Marshal(d.envelope)
	if err != nil {
		return nil, err
	}
	if accepted.Envelope, err = a.Vault.SealAbout(ctx, account, classEnvelope, id, about, envelope); err != nil {
		return nil, err
	}
	body, err := json.Marshal(d.content)
	if err != nil {
		return nil, err
	}
	return a.Vault.SealAbout(ctx, account, classBody, id, about, body)
}

// Refused puts a refused command on record.
func (a *API) Refused(ctx context.Context, of domain.Stream, c domain.Command, r *domain.Refusal) {
	RecordRefusal(ctx, a.Store, of, c, r, func(err error) {
		a.Log.Error("refusal is not on record", "command", c.Verb(), "error", err)
	})
}

func isRefusal(err error) bool {
	if domain.Refused(err) != nil {
		return true
	}
	_, told := errors.AsType[*Error](err)
	return told
}

// lower is for comparing domain names.
func lower(s string) string { return strings.ToLower(strings.TrimSpace(s)) }
