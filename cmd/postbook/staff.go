package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/staff"
	"postbook.dev/postbook/eventstore"
)

type staffCommand struct {
	Join  staffJoin  `cmd:"" help:"Make somebody a member of staff, while no server runs. Prints a password and the secret of a second factor, once."`
	Leave staffLeave `cmd:"" help:"End the authority of a member of staff, at once, beside a running server or without one."`
}

type staffLeave struct {
	Email  string `arg:"" help:"Email address."`
	Reason string `required:"" help:"Why."`
}

// Run ends somebody's authority.
func (c staffLeave) Run(ctx context.Context, cfg Config, out output) error {
	return withPerson(ctx, cfg, domain.Staff, domain.Platform, c.Email, func(k keeper, p directory.Person) error {
		leave := staff.Command(staff.Leave{Authority: because(c.Reason)})
		recorded, err := eventstore.Execute(ctx, k.store, staff.Decider, staff.Stream(p.ID), leave)
		return out.done(recorded, err, c.Email+" is out, and so is every session of theirs.")
	})
}

// withPerson finds somebody by their address.
func withPerson(ctx context.Context, cfg Config, kind domain.ActorKind, account, email string, do func(keeper, directory.Person) error) error {
	k, err := openKeeper(ctx, cfg)
	if err != nil {
		return err
	}
	defer k.store.Close()
	if account != domain.Platform {
		if err := checkAccount(ctx, k.store, account); err != nil {
			return err
		}
	}
	keys, err := k.ring.Account(ctx, account)
	if err != nil {
		return err
	}
	people := directory.New()
	if err := learnAll(ctx, k.store, people); err != nil {
		return err
	}
	index := keys.Index(strings.TrimSpace(email))
	for _, p := range people.People(kind) {
		if p.Account == account && p.Index == index {
			return do(k, p)
		}
	}
	return fmt.Errorf("there is no %s with the address %s", kind, email)
}

// done says that something is on record, or was before.
func (o output) done(recorded []domain.Recorded, err error, text string) error {
	if err != nil {
		return err
	}
	answer := any(map[string]bool{"changed": false})
	if len(recorded) > 0 {
		answer = lineOf(recorded[0])
	}
	if printed, err := o.object(answer); printed {
		return err
	}
	fmt.Println(text)
	return nil
}

type staffJoin struct {
	Email string `arg:"" help:"Email address."`
	Role  string `enum:"trust,support" default:"support" help:"trust blocks and unblocks accounts; support reads."`
}

// Run makes somebody a member of staff.
func (c staffJoin) Run(ctx context.Context, cfg Config, out output) error {
	return alone(ctx, cfg, func(ctx context.Context, s *server) error {
		password := rand.Text()
		id, secret, err := s.api.JoinStaff(ctx, operator(time.Now()), c.Email, password, domain.Role(c.Role))
		if err != nil {
			return err
		}
		if printed, err := out.object(map[string]string{"id": id, "email": c.Email, "password": password, "totp_secret": secret}); printed {
			return err
		}
		fmt.Printf("%s is staff with the role %s.\n  id           %s\n  password     %s\n  totp secret  %s\nThey are shown this once.\n", c.Email, c.Role, id, password, secret)
		return nil
	})
}

// alone does something with the operator's authority, which is that of whoever
// holds the data directory while no server runs on it.
func alone(ctx context.Context, cfg Config, do func(context.Context, *server) error) error {
	if err := cfg.settle(false); err != nil {
		return err
	}
	if _, ok := found(cfg); ok {
		return errors.New("stop the server first: the operator's authority is that of whoever holds the data directory alone")
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
