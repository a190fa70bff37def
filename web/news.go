package web

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"net/http"
	"time"
)

// A page that looks again by itself asks to be answered when something is new. What
// is not new is not shown a second time, and leaves one record a hold and not one
// every few seconds.
const (
	holdFor   = 20 * time.Second
	lookEvery = time.Second
)

// news answers a request for a page as soon as its state is not the one that the
// visitor has seen, and says that there is nothing new when it was held for long
// enough. The state is all that a page shows, in short.
func (c *Console) news(state func(context.Context, *visit) (string, error), show func(context.Context, *visit) (view, error)) func(context.Context, *visit) (view, error) {
	return func(ctx context.Context, v *visit) (view, error) {
		seen := v.URL.Query().Get("seen")
		over := time.After(holdFor)
		for {
			now, err := state(ctx, v)
			if err != nil {
				return view{}, err
			}
			if now != seen {
				v.seen = now
				return show(ctx, v)
			}
			select {
			case <-time.After(lookEvery):
			case <-over:
				return view{status: http.StatusNoContent}, nil
			case <-c.ended:
				return view{status: http.StatusNoContent}, nil
			case <-ctx.Done(): // they have gone, and were shown nothing
				return view{status: http.StatusNoContent}, nil
			}
			if !c.signedIn(v) { // they may have been removed meanwhile
				return outside(), nil
			}
		}
	}
}

// End lets requests go that wait for something new.
func (c *Console) End() { c.end() }

func (c *Console) emailsState(ctx context.Context, v *visit) (string, error) {
	rows, more, err := c.emailRows(ctx, v)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, row := range rows {
		fmt.Fprintln(sum, row.ID, row.LastEvent, row.LastSeq)
	}
	fmt.Fprintln(sum, more)
	return brief(sum), nil
}

func (c *Console) emailState(ctx context.Context, v *visit) (string, error) {
	row, err := c.emailRow(ctx, v)
	return fmt.Sprintf("%s-%d", row.Log, row.LastSeq), err
}

// listed is how long it takes until the email is in its read model that a message is of,
// and it is known whose it is.
const listed = 5 * time.Second

// inboxState reads the visitor's messages, each of which is a file, again only while the
// sandbox has got one.
func (c *Console) inboxState(ctx context.Context, v *visit) (string, error) {
	if c.Inbox == nil {
		return "", errNoInbox
	}
	newest, err := c.Inbox.List("", 1)
	if err != nil {
		return "", err
	}
	if v.inbox.state != "" && (len(newest) == 0 || newest[0].ID == v.inbox.newest && c.Now().Sub(newest[0].At) > listed) {
		return v.inbox.state, nil
	}
	mine, _, err := c.messages(ctx, v)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, m := range mine {
		fmt.Fprintln(sum, m.ID)
	}
	v.inbox.state = brief(sum)
	if len(newest) > 0 {
		v.inbox.newest = newest[0].ID
	}
	return v.inbox.state, nil
}

// brief is as much of a sum as tells two states of a page apart.
func brief(sum hash.Hash) string { return base64.RawURLEncoding.EncodeToString(sum.Sum(nil)[:9]) }
