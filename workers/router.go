package workers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"

	"postbook.dev/postbook/delivery"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
)

// RouterConfig is what the workers that react to single events need.
type RouterConfig struct {
	Store     *eventstore.Store
	Directory *directory.Directory
	Resolver  *delivery.Resolver
	Expected  sender.Expected
	Now       func() time.Time
	Log       *slog.Logger
}

// Router runs the workers that react to single events. Each event reaches each
// worker at least once; one that keeps failing is put aside, on the log of dead
// letters.
type Router struct{ router *message.Router }

// NewRouter makes the router with its workers.
func NewRouter(c RouterConfig) (*Router, error) {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: 30 * time.Second}, watermill.NewSlogLoggerWithLevelMapping(c.Log.With("part", "workers"), map[slog.Level]slog.Level{slog.LevelInfo: slog.LevelDebug}))
	if err != nil {
		return nil, fmt.Errorf("workers: make the router: %w", err)
	}
	v := &verifier{c}
	n := &notices{c}
	for _, w := range []struct {
		group, topic string
		handle       message.NoPublishHandlerFunc
	}{
		{"verify", eventstore.Ledger + "/" + eventstore.LedgerSubject("sender"), v.requested},
		{"verify-due", eventstore.Timers + "/" + eventstore.DueTimers(timerKind), v.due},
		{"notices", eventstore.Ledger + "/" + eventstore.LedgerSubject(""), n.event},
		{"notices-dead", eventstore.Dead + "/dead.>", n.deadLetter},
	} {
		handler := router.AddConsumerHandler(w.group, w.topic, c.Store.Subscriber(eventstore.SubscriberConfig{Group: w.group}), w.handle)
		poison, err := middleware.PoisonQueueWithFilter(c.Store.DeadLetters(), w.group, hopeless)
		if err != nil {
			return nil, fmt.Errorf("workers: make the router: %w", err)
		}
		if w.group != "notices-dead" {
			handler.AddMiddleware(poison)
		}
		handler.AddMiddleware(
			middleware.Retry{MaxRetries: 3, InitialInterval: 100 * time.Millisecond, Multiplier: 4, MaxInterval: 5 * time.Second}.Middleware,
			middleware.Recoverer,
		)
	}
	return &Router{router}, nil
}

// Run works until ctx ends.
func (r *Router) Run(ctx context.Context) error {
	if err := r.router.Run(ctx); err != nil {
		return fmt.Errorf("workers: %w", err)
	}
	return ctx.Err()
}

// hopeless reports whether another try will not help: the fault lies in the
// event, or in this program, and not in a log that is away.
func hopeless(err error) bool {
	return !errors.Is(err, eventstore.ErrUnavailable) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}
