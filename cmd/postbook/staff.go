package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/staff"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/keyring"
)

type staffCommand struct {
	Join  staffJoin  `cmd:"" help:"Make somebody a member of staff, beside a running server or without one. Prints a password and the secret of a second factor, once."`
	List  staffList  `cmd:"" help:"List the members of staff."`
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
	return withPeople(ctx, cfg, kind, account, func(k keeper, people []directory.Person) error {
		keys, err := k.ring.Account(ctx, account)
		if err != nil {
			return err
		}
		index := keys.Index(strings.TrimSpace(email))
		at := slices.IndexFunc(people, func(p directory.Person) bool { return p.Index == index })
		if at < 0 {
			return fmt.Errorf("there is no %s with the address %s", kind, email)
		}
		return do(k, people[at])
	})
}

// withPeople finds everybody of a kind and an account, in the order in which they joined.
func withPeople(ctx context.Context, cfg Config, kind domain.ActorKind, account string, do func(keeper, []directory.Person) error) error {
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
	known, err := everybody(ctx, k.store)
	if err != nil {
		return err
	}
	people := slices.DeleteFunc(known.People(kind), func(p directory.Person) bool { return p.Account != account })
	slices.SortFunc(people, func(a, b directory.Person) int { return strings.Compare(a.ID, b.ID) })
	return do(k, people)
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
	if err := checkAddress(c.Email); err != nil {
		return err
	}
	return operating(ctx, cfg, func(ctx context.Context, o office) error {
		password := rand.Text()
		id, secret, err := o.api.JoinStaff(ctx, operator(time.Now()), c.Email, password, domain.Role(c.Role))
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

type staffList struct{}

// Run lists the members of staff.
func (staffList) Run(ctx context.Context, cfg Config, out output) error {
	return listPeople(ctx, cfg, out, domain.Staff, domain.Platform)
}

// listPeople prints who somebody with an id is. That their addresses were read is on
// record.
func listPeople(ctx context.Context, cfg Config, out output, kind domain.ActorKind, account string) error {
	type person struct {
		ID    string      `json:"id"`
		Email string      `json:"email"`
		Role  domain.Role `json:"role"`
	}
	return withPeople(ctx, cfg, kind, account, func(k keeper, people []directory.Person) error {
		v := newVault(k.ring, k.store, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		ctx := domain.Within(ctx, operator(time.Now()))
		all := make([]person, len(people))
		rows := make([][]string, len(people))
		for n, p := range people {
			email, err := v.Open(ctx, account, string(keyring.User), p.ID, p.Email)
			if err != nil {
				return fmt.Errorf("open the address of %s: %w", p.ID, err)
			}
			all[n], rows[n] = person{p.ID, string(email), p.Role}, []string{string(email), string(p.Role), p.ID}
		}
		v.flush(ctx) // on record before it is shown
		if printed, err := out.object(all); printed {
			return err
		}
		return out.table([]string{"EMAIL", "ROLE", "ID"}, rows)
	})
}
