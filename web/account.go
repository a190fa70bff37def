package web

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/directory"
)

// told are the kinds of aggregates of which an account's members are told. Whether
// data is held for a court is not for them.
var told = []string{"account", "apikey", "sender", "member"}

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
	history, err := c.Store.AccountHistory(ctx, v.by.Account)
	if err != nil {
		return view{}, err
	}
	page := accountPage{Account: v.account}
	for _, rec := range history {
		if !slices.Contains(told, rec.Stream.Kind) {
			continue
		}
		line := storyLine{At: rec.Time, Type: rec.Type, By: string(rec.By.Actor.Kind), Via: rec.By.Via, Auth: rec.By.Auth, Reason: rec.By.Reason, Place: rec.Seq}
		if rec.Stream == account.Stream(v.by.Account) { // keys' and members' have hashes in them
			data, err := json.Marshal(rec.Event)
			if err != nil {
				return view{}, err
			}
			line.Data = string(data)
		}
		page.Story = append(page.Story, line)
	}
	for _, s := range c.Directory.Senders() {
		if s.Account == v.by.Account {
			page.Domains = append(page.Domains, s)
		}
	}
	fields := []domain.Field{"account.id", "account.name", "account.blocked", "account.story", "domain.name", "domain.status"}
	return view{page: "account", title: "Account", data: page, fields: fields, objects: []string{v.by.Account}}, nil
}
