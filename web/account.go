package web

import (
	"context"
	"encoding/json"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/directory"
)

type accountPage struct {
	Account directory.Account
	Story   []storyLine
	Domains []directory.Sender
}

type storyLine struct {
	At     time.Time
	Type   string
	By     string
	Via    domain.Via
	Auth   domain.Strength
	Reason string
	Data   string
	Place  uint64
}

func (c *Console) account(ctx context.Context, v *visit) (view, error) {
	history, err := c.Store.History(ctx, account.Stream(v.by.Account))
	if err != nil {
		return view{}, err
	}
	page := accountPage{Account: v.account}
	for _, rec := range history {
		data, err := json.Marshal(rec.Event)
		if err != nil {
			return view{}, err
		}
		page.Story = append(page.Story, storyLine{
			rec.Time, rec.Type, string(rec.By.Actor.Kind), rec.By.Via, rec.By.Auth, rec.By.Reason, string(data), rec.Seq,
		})
	}
	for _, s := range c.Directory.Senders() {
		if s.Account == v.by.Account {
			page.Domains = append(page.Domains, s)
		}
	}
	fields := []domain.Field{"account.id", "account.name", "account.blocked", "account.story", "domain.name", "domain.status"}
	return view{page: "account", title: "Account", data: page, fields: fields, objects: []string{v.by.Account}}, nil
}
