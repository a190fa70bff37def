package web

import (
	"context"
	"encoding/base64"
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
// enough. read finds what the page shows, and its state, which is all of that in short.
func news[T any](c *Console, read func(context.Context, *visit) (T, string, error), show func(context.Context, *visit, T) (view, error)) func(context.Context, *visit) (view, error) {
	return func(ctx context.Context, v *visit) (view, error) {
		seen := v.URL.Query().Get("seen")
		over := time.After(holdFor)
		for {
			found, state, err := read(ctx, v)
			if err != nil {
				return view{}, err
			}
			if state != seen {
				v.seen = state
				return show(ctx, v, found)
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

// brief is as much of a sum as tells two states of a page apart.
func brief(sum hash.Hash) string { return base64.RawURLEncoding.EncodeToString(sum.Sum(nil)[:9]) }
