package api

import (
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"net/http"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/eventstore"
)

type keyRequest struct {
	Name       string  `json:"name"`
	Permission string  `json:"permission"`
	DomainID   *string `json:"domain_id"`
}

type keyBody struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	CreatedAt  stamp  `json:"created_at"`
	LastUsedAt *stamp `json:"last_used_at"`
}

type tokenBody struct {
	Object string `json:"object"`
	ID     string `json:"id"`
	Token  string `json:"token"`
}

func (a *API) createKey(ctx context.Context, r *request) (answer, error) {
	var m keyRequest
	if err := a.decode(ctx, r, maxBody, &m); err != nil {
		return answer{}, err
	}
	issue := IssueKey{Name: m.Name, Permission: domain.Role(m.Permission)}
	if issue.Permission == "" {
		issue.Permission = domain.FullAccess
	}
	if m.DomainID != nil && *m.DomainID != "" {
		of, ok := a.Directory.Sender(*m.DomainID)
		if !ok || of.Account != r.by.Account {
			return answer{}, notFound("Domain not found")
		}
		issue.Sender = of.ID
	}
	id, token, err := a.IssueKey(ctx, r.command(), r.by.Account, issue)
	if err != nil {
		return answer{}, err
	}
	return answer{
		status: http.StatusCreated, body: tokenBody{"api_key", id, token}, wrote: true,
		fields: []domain.Field{"apikey.id", "apikey.token"}, objects: []string{id},
	}, nil
}

// IssueKey says what key is made.
type IssueKey struct {
	Name       string
	Permission domain.Role
	Sender     string // id of the only domain that it may send from
}

// IssueKey makes an API key. The token is in the result and nowhere else.
func (a *API) IssueKey(ctx context.Context, by domain.Authority, account string, issue IssueKey) (id, token string, err error) {
	token, err = newToken()
	if err != nil {
		return "", "", err
	}
	hash, err := a.hash(ctx, token)
	if err != nil {
		return "", "", err
	}
	id = newID().String()
	recorded, err := eventstore.Execute(ctx, a.Store, apikey.Decider, apikey.Stream(account, id), apikey.Command(apikey.Issue{
		Authority: by, Name: issue.Name, Permission: issue.Permission, Sender: issue.Sender, Hash: hash, Hint: token[:hintLength],
	}))
	if err != nil {
		return "", "", err
	}
	return id, token, a.settled(ctx, account, recorded)
}

const (
	base62     = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	hintLength = 7 // "re_" and four characters
)

// newToken draws a token of the contract's form, "re_" + 8 + "_" + 24
// characters: 190 bits.
func newToken() (string, error) {
	word := make([]byte, 32)
	for i := range word {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(base62))))
		if err != nil {
			return "", fmt.Errorf("draw a token: %w", err)
		}
		word[i] = base62[n.Int64()]
	}
	return "re_" + string(word[:8]) + "_" + string(word[8:]), nil
}

func (a *API) listKeys(ctx context.Context, r *request) (answer, error) {
	p, err := page(r.URL.Query(), pageAll)
	if err != nil {
		return answer{}, err
	}
	if err := a.caughtUp(ctx, r.by.Account, "api_keys", eventstore.Ledger); err != nil {
		return answer{}, err
	}
	rows, more, err := a.Tables.APIKeys(ctx, r.by.Account, p)
	if err != nil {
		return answer{}, listError(err)
	}
	var data []keyBody
	var ids []string
	for _, row := range rows {
		data = append(data, keyBody{row.ID, row.Name, stamp(row.CreatedAt), stampOf(row.LastUsedAt)})
		ids = append(ids, row.ID)
	}
	return answer{
		status: http.StatusOK, body: listOf(data, more), objects: ids,
		fields: []domain.Field{"apikey.id", "apikey.name", "apikey.created_at", "apikey.last_used_at"},
	}, nil
}

func (a *API) deleteKey(ctx context.Context, r *request) (answer, error) {
	id, err := pathID(r)
	if err != nil {
		return answer{}, err
	}
	recorded, err := eventstore.Execute(ctx, a.Store, apikey.Decider, apikey.Stream(r.by.Account, id), apikey.Command(apikey.Revoke{Authority: r.command()}))
	if err != nil {
		return answer{}, err
	}
	if err := a.settled(ctx, r.by.Account, recorded); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: deletedBody{"api_key", id, true}, wrote: true}, nil
}
