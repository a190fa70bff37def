package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/api"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

// The development account keeps what it was given, so that a restart does not
// change the key that somebody has put into a program.
const (
	keptFile  = "dev-account.json"
	devDomain = "postbook.test" // reserved for testing, RFC 6761, 6.2
)

type kept struct {
	AccountID string     `json:"account_id"`
	APIKey    string     `json:"api_key"`
	Member    devLogin   `json:"member"`
	Staff     []devLogin `json:"staff"`
}

// bootstrap makes the development account, or finds it again.
func (s *server) bootstrap(ctx context.Context) (devFacts, error) {
	var k kept
	data, err := os.ReadFile(s.cfg.path(keptFile))
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &k); err != nil {
			return devFacts{}, fmt.Errorf("read %s: %w", keptFile, err)
		}
		if _, ok := s.directory.Account(k.AccountID); !ok {
			return devFacts{}, fmt.Errorf("%s names an account that the log does not know: remove the file, or put the log back", keptFile)
		}
	case errors.Is(err, fs.ErrNotExist):
		if k, err = s.createDevAccount(ctx); err != nil {
			return devFacts{}, err
		}
		if data, err = json.MarshalIndent(k, "", "  "); err != nil {
			return devFacts{}, err
		}
		if err := seal.WriteFile(s.cfg.path(keptFile), data, 0o600); err != nil {
			return devFacts{}, err
		}
	default:
		return devFacts{}, err
	}
	facts := devFacts{
		BaseURL: s.baseURL(), ConsoleURL: s.baseURL() + "/console/",
		AccountID: k.AccountID, APIKey: k.APIKey, FromDomain: devDomain,
		SMTP:    devSMTP{Username: "resend", Password: k.APIKey},
		NATSURL: s.store.URL(), DatabaseURL: s.owner, Member: k.Member, Staff: k.Staff,
	}
	if s.smtp != nil {
		facts.SMTP.Addr = s.smtp.Addr().String()
	}
	if s.inbox != nil {
		facts.SMTPSandbox.Addr = s.inbox.Addr()
	}
	return facts, nil
}

func (s *server) createDevAccount(ctx context.Context) (k kept, err error) {
	by := func() domain.Authority { return operator(time.Now()) }
	k.AccountID = uuid.Must(uuid.NewV7()).String()
	if err := (office{s.api, s.vault.ring}).open(ctx, by(), k.AccountID, "Development"); err != nil {
		return k, err
	}
	id, err := s.api.AddDomain(ctx, by(), k.AccountID, api.AddDomain{Name: devDomain, Settings: sender.Settings{TLS: sender.TLSOpportunistic}})
	if err != nil {
		return k, err
	}
	vouched, err := eventstore.Execute(ctx, s.store, sender.Decider, sender.Stream(k.AccountID, id), sender.Command(sender.Vouch{Authority: by()}))
	if err != nil {
		return k, err
	}
	if err := s.directory.Await(ctx, vouched[0].Seq); err != nil {
		return k, err
	}
	if _, k.APIKey, err = s.api.IssueKey(ctx, by(), k.AccountID, api.IssueKey{Name: "Development", Permission: domain.FullAccess}); err != nil {
		return k, err
	}
	k.Member = devLogin{Email: "member@" + devDomain, Password: rand.Text()}
	if k.Member.ID, err = s.api.JoinMember(ctx, by(), k.AccountID, k.Member.Email, k.Member.Password); err != nil {
		return k, err
	}
	for _, name := range []string{"ada", "grace"} {
		p := devLogin{Email: name + "@" + devDomain, Password: rand.Text()}
		if p.ID, p.TOTPSecret, err = s.api.JoinStaff(ctx, by(), p.Email, p.Password, domain.Trust); err != nil {
			return k, err
		}
		k.Staff = append(k.Staff, p)
	}
	return k, nil
}
