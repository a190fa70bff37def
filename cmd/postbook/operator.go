package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/api"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/keyring"
)

// An office is what an operator opens accounts with, and lets people in.
type office struct {
	api  *api.API
	ring *keyring.Keyring
}

// operating opens an office: beside a running server, or on a server of its own, which
// also makes what a new data directory lacks.
func operating(ctx context.Context, cfg Config, do func(context.Context, office) error) error {
	if _, ok := found(cfg); !ok {
		return alone(ctx, cfg, func(ctx context.Context, s *server) error { return do(ctx, office{s.api, s.vault.ring}) })
	}
	k, err := openKeeper(ctx, cfg)
	if err != nil {
		return err
	}
	defer k.store.Close()
	known, err := everybody(ctx, k.store)
	if err != nil {
		return err
	}
	learning, stop := context.WithCancelCause(ctx)
	learnt := make(chan struct{})
	go func() {
		defer close(learnt)
		stop(learn(learning, k.store, known, 0))
	}()
	defer func() {
		stop(nil)
		<-learnt
	}()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	v := newVault(k.ring, k.store, log)
	defer v.flush(context.WithoutCancel(ctx))
	a := api.New(api.Config{Store: k.store, Directory: known, Vault: v, ParseMailbox: parseMailbox, ParseDomain: parseDomain, Now: time.Now, Log: log})
	defer a.Close()
	err = do(learning, office{a, k.ring})
	if cause := context.Cause(learning); err != nil && cause != nil {
		err = cause
	}
	return err
}

// checkAddress refuses what is no email address, before anything is made for it.
func checkAddress(email string) error {
	if _, err := parseMailbox(email); err != nil {
		return fmt.Errorf("%q is no email address", email)
	}
	return nil
}

// open opens an account and makes its keys.
func (o office) open(ctx context.Context, by domain.Authority, id, name string) error {
	// The keys come first: an account without them could accept nothing.
	if err := o.ring.Create(ctx, id); err != nil {
		return err
	}
	opened, err := eventstore.Execute(ctx, o.api.Store, account.Decider, account.Stream(id), account.Command(account.Open{Authority: by, Name: name}))
	if err != nil {
		return err
	}
	return o.api.Directory.Await(ctx, opened[0].Seq)
}

// alone starts a server for one thing that no other server may be running for.
func alone(ctx context.Context, cfg Config, do func(context.Context, *server) error) error {
	if err := cfg.settle(false); err != nil {
		return err
	}
	if _, ok := found(cfg); ok {
		return errors.New("stop the server first: this cannot be done beside it")
	}
	cfg.HTTPAddr, cfg.SMTPAddr, cfg.Roles = "127.0.0.1:0", "127.0.0.1:0", []string{roleProjections}
	s, err := start(ctx, cfg, cfg.logger())
	if err != nil {
		return err
	}
	serving, end := context.WithCancel(ctx)
	defer end()
	begun, failed := false, error(nil)
	err = s.run(serving, func(ctx context.Context) error {
		defer end()
		begun, failed = true, do(ctx, s)
		return nil // the server is told to end: an error of this would race with that
	})
	if !begun && err == nil {
		err = ctx.Err()
	}
	return errors.Join(failed, err, s.stop())
}

// because is the operator's authority, with a reason.
func because(reason string) domain.Authority {
	by := operator(time.Now())
	by.Reason = strings.TrimSpace(reason)
	return by
}

// operator is the authority of whoever holds the data directory.
func operator(now time.Time) domain.Authority {
	name := "uid-" + fmt.Sprint(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	id := uuid.Must(uuid.NewV7())
	return domain.Authority{
		Actor: domain.Actor{Kind: domain.Operator, ID: name}, Account: domain.Platform,
		Via: domain.ViaCLI, Auth: domain.Internal, AuthAt: now, At: now, Command: id, Correlation: id,
	}
}
