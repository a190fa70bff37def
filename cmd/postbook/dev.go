package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/resend/resend-go/v3"

	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

type devCommand struct {
	Quiet bool `help:"Send no first mail."`
}

const devFile = "dev.json"

// Run serves with an account of its own, and shows a first mail on its way.
func (c devCommand) Run(ctx context.Context, cfg Config) error {
	if err := cfg.settle(true); err != nil {
		return err
	}
	return again(ctx, cfg, c.once)
}

// once serves until it is told to stop, or has to open the log again.
func (c *devCommand) once(ctx context.Context, cfg Config) (ready bool, err error) {
	log := cfg.logger()
	begun := time.Now()
	fmt.Printf("Starting Postbook in %s …\n", cfg.DataDir)
	// Whoever waits for the file must not find that of an earlier run; and not lose that
	// of a server that is running, beside which this one will not start.
	if _, ok := found(cfg); !ok {
		if err := os.Remove(cfg.path(devFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	s, err := start(ctx, cfg, log)
	if err != nil {
		return false, err
	}
	err = s.run(ctx, func(ctx context.Context) error {
		facts, err := s.bootstrap(ctx)
		if err != nil {
			return fmt.Errorf("set up the development account: %w", err)
		}
		data, err := json.MarshalIndent(facts, "", "  ")
		if err != nil {
			return err
		}
		if err := seal.WriteFile(cfg.path(devFile), data, 0o600); err != nil {
			return err
		}
		s.atEnd(func(context.Context) error { return os.Remove(cfg.path(devFile)) })
		fmt.Printf("Ready after %s.\n\n", time.Since(begun).Round(10*time.Millisecond))
		if !c.Quiet {
			if err := s.firstMail(ctx, facts); err != nil {
				return fmt.Errorf("send a first mail: %w", err)
			}
			c.Quiet = true // when it starts again
		}
		ready = true
		return s.greet(ctx, facts)
	})
	return ready, errors.Join(err, s.stop())
}

func (s *server) greet(ctx context.Context, facts devFacts) error {
	fmt.Printf("API      %s\n", facts.BaseURL)
	fmt.Printf("Facts    %s (API key, log-ins; readable by you alone)\n", s.cfg.path(devFile))
	if s.console != nil {
		path, err := s.console.Ticket(ctx, facts.Member.ID)
		if err != nil {
			return err
		}
		fmt.Printf("Console  %s%s  (signs you in, once, within ten minutes)\n", facts.BaseURL, path)
	}
	fmt.Println("\nStop with Ctrl-C.")
	return nil
}

// firstMail sends a mail with the official SDK, and prints what the log records
// about it until it has arrived.
func (s *server) firstMail(ctx context.Context, facts devFacts) error {
	client := resend.NewClient(facts.APIKey)
	base, err := url.Parse(facts.BaseURL + "/")
	if err != nil {
		return err
	}
	client.BaseURL = base
	sent, err := client.Emails.SendWithContext(ctx, &resend.SendEmailRequest{
		From:    "Postbook <hello@" + facts.FromDomain + ">",
		To:      []string{"you@" + facts.FromDomain},
		Subject: "A first mail",
		Html:    "<h1>It works</h1><p>Every step of this mail is an event in the log.</p>",
	})
	if err != nil {
		return err
	}
	fmt.Printf("Sent a first mail: %s\n", sent.Id)
	id, err := uuid.Parse(sent.Id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return s.printTimeline(ctx, facts.AccountID, id)
}

// printTimeline prints an email's events as they happen, until nothing more can.
func (s *server) printTimeline(ctx context.Context, account string, id uuid.UUID) error {
	log := eventstore.MailLog(s.store.Partition(id))
	sec, nsec := id.Time().UnixTime()
	after, err := s.store.Before(ctx, log, time.Unix(sec, nsec).Add(-time.Minute))
	if err != nil {
		return err
	}
	var state email.State
	arrived := errors.New("final")
	err = s.store.Follow(ctx, eventstore.Following{Log: log, After: after, Subjects: []string{eventstore.AccountSubject(log, account)}}, func(_ context.Context, entries []eventstore.Entry) error {
		for _, e := range entries {
			for _, rec := range e.Events {
				fact, ok := rec.Event.(email.Event)
				if !ok || rec.Stream.ID != id.String() {
					continue
				}
				state = email.Decider.Evolve(state, fact)
				fmt.Printf("  %s  %-16s %s/%d  by %s via %s\n", rec.Time.UTC().Format("15:04:05.000Z"), rec.Type, rec.Log, rec.Seq, rec.By.Actor.Kind, rec.By.Via)
			}
		}
		if state.Final() {
			return arrived
		}
		return nil
	})
	fmt.Println()
	if errors.Is(err, arrived) {
		return nil
	}
	return err
}

// devFacts are what a development server tells programs that drive it.
type devFacts struct {
	BaseURL     string     `json:"base_url"`
	ConsoleURL  string     `json:"console_url"`
	AccountID   string     `json:"account_id"`
	APIKey      string     `json:"api_key"`
	FromDomain  string     `json:"from_domain"`
	SMTP        devSMTP    `json:"smtp"`
	NATSURL     string     `json:"nats_url"`
	DatabaseURL string     `json:"database_url"`
	Member      devLogin   `json:"member"`
	Staff       []devLogin `json:"staff"`
	SMTPSandbox devAddr    `json:"smtp_sandbox"`
}

type devSMTP struct {
	Addr     string `json:"addr"`
	Username string `json:"username"`
	Password string `json:"password"`
}

type devAddr struct {
	Addr string `json:"addr"`
}

type devLogin struct {
	ID         string `json:"id"`
	Email      string `json:"email"`
	Password   string `json:"password"`
	TOTPSecret string `json:"totp_secret,omitempty"`
}
