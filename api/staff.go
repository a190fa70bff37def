package api

import (
	"context"
	"crypto/hmac"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
)

// A session of staff is a signed statement that the platform keeps nowhere. Who
// it is about is looked up each time, so that somebody who has left is out at
// once.
type session struct {
	Staff   string    `json:"staff"`
	AuthAt  time.Time `json:"auth_at"`
	Expires time.Time `json:"expires"`
}

const (
	sessionAge     = 15 * time.Minute
	purposeSession = "staff-session"
)

type sessionBody struct {
	Object    string    `json:"object"`
	Token     string    `json:"token"`
	ExpiresAt time.Time `json:"expires_at"`
}

func (a *API) createSession(ctx context.Context, r *request) (answer, error) {
	var m struct {
		Email    string `json:"email"`
		Password string `json:"password"`
		TOTP     string `json:"totp"`
	}
	if err := a.decode(ctx, r, maxBody, &m); err != nil {
		return answer{}, err
	}
	person, err := a.signIn(ctx, domain.Staff, proof{m.Email, m.Password, m.TOTP, r.by.IP, r.by})
	if err != nil {
		return answer{}, err
	}
	r.by.Actor, r.by.Role, r.by.Auth = domain.Actor{Kind: domain.Staff, ID: person.ID}, person.Role, domain.SecondFactor
	s := session{Staff: person.ID, AuthAt: a.Now().UTC(), Expires: a.Now().UTC().Add(sessionAge)}
	body, err := json.Marshal(s)
	if err != nil {
		return answer{}, err
	}
	mac, err := a.Vault.MAC(ctx, purposeSession, body)
	if err != nil {
		return answer{}, err
	}
	b64 := base64.RawURLEncoding
	return answer{
		status: http.StatusCreated,
		body:   sessionBody{"session", b64.EncodeToString(body) + "." + b64.EncodeToString(mac), s.Expires},
		fields: []domain.Field{"staff.session"}, objects: []string{person.ID}, wrote: true,
	}, nil
}

// staffMember identifies a member of staff by their session.
func (a *API) staffMember(ctx context.Context, _ http.Header, r *request) error {
	token, ok := bearer(r.Header)
	body, mac, two := strings.Cut(token, ".")
	if !ok || !two {
		return errStaffToken
	}
	statement, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		return errStaffToken
	}
	got, err := base64.RawURLEncoding.DecodeString(mac)
	if err != nil {
		return errStaffToken
	}
	want, err := a.Vault.MAC(ctx, purposeSession, statement)
	if err != nil {
		return err
	}
	var s session
	if !hmac.Equal(got, want) || json.Unmarshal(statement, &s) != nil || a.Now().After(s.Expires) {
		return errStaffToken
	}
	person, ok := a.Directory.Person(s.Staff)
	if !ok || person.Kind != domain.Staff {
		return errStaffToken
	}
	r.by.Actor, r.by.Role = domain.Actor{Kind: domain.Staff, ID: person.ID}, person.Role
	r.by.Auth, r.by.AuthAt = domain.SecondFactor, s.AuthAt
	return nil
}

type reasonRequest struct {
	Policy   string `json:"policy"`
	Evidence string `json:"evidence"`
	Reason   string `json:"reason"`
	Request  string `json:"request"` // that is approved, if the one who approves names it
}

type blockBody struct {
	Object  string `json:"object"`
	ID      string `json:"id"`
	Blocked bool   `json:"blocked"`
	Settled bool   `json:"settled"` // nothing of the account is on the wire any more
}

// blockAccount stops an account's sending. The block is on disk before anything
// else happens; the answer waits until nothing of the account is on the wire.
func (a *API) blockAccount(ctx context.Context, r *request) (answer, error) {
	id, m, err := a.aboutAccount(ctx, r)
	if err != nil {
		return answer{}, err
	}
	recorded, err := a.commandAccount(ctx, r, id, account.Block{Authority: r.withReason(m.Reason), Policy: m.Policy, Evidence: m.Evidence})
	if err != nil {
		return answer{}, err
	}
	seq := a.Directory.Seq()
	if len(recorded) > 0 {
		seq = recorded[0].Seq
	}
	var desks errgroup.Group
	for p := range a.Store.Partitions() {
		desks.Go(func() error {
			_, err := a.askDesk(ctx, p, email.DeskRequest{Verb: email.DeskSettled, Account: id, By: r.by, Seq: seq})
			return err
		})
	}
	err = desks.Wait()
	if err != nil {
		a.Log.Warn("account is blocked, and a worker has not said that its mail is at rest", "account", id, "error", err)
	}
	return answer{status: http.StatusOK, body: blockBody{"account", id, true, err == nil}, wrote: true}, nil
}

type requestBody struct {
	Object  string `json:"object"`
	ID      string `json:"id"`
	Request string `json:"request,omitempty"`
	Blocked bool   `json:"blocked"`
}

func (a *API) requestUnblock(ctx context.Context, r *request) (answer, error) {
	id, m, err := a.aboutAccount(ctx, r)
	if err != nil {
		return answer{}, err
	}
	if _, err := a.commandAccount(ctx, r, id, account.RequestUnblock{Authority: r.withReason(m.Reason)}); err != nil {
		return answer{}, err
	}
	state, _, err := eventstore.Load(ctx, a.Store, account.Decider, account.Stream(id))
	if err != nil {
		return answer{}, err
	}
	body := requestBody{Object: "unblock_request", ID: id, Blocked: state.Blocked != ""}
	if state.Request != nil {
		body.Request = state.Request.Request.String()
	}
	return answer{status: http.StatusCreated, body: body, wrote: true}, nil
}

func (a *API) withdrawUnblock(ctx context.Context, r *request) (answer, error) {
	id, m, err := a.aboutAccount(ctx, r)
	if err != nil {
		return answer{}, err
	}
	if _, err := a.commandAccount(ctx, r, id, account.WithdrawRequest{Authority: r.withReason(m.Reason)}); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: deletedBody{"unblock_request", id, true}, wrote: true}, nil
}

// unblockAccount approves the open request. The approval that the command
// carries is the request itself, as the log has it; the decider compares them.
func (a *API) unblockAccount(ctx context.Context, r *request) (answer, error) {
	id, m, err := a.aboutAccount(ctx, r)
	if err != nil {
		return answer{}, err
	}
	state, _, err := eventstore.Load(ctx, a.Store, account.Decider, account.Stream(id))
	if err != nil {
		return answer{}, err
	}
	by := r.withReason(m.Reason)
	if state.Request != nil && (m.Request == "" || m.Request == state.Request.Request.String()) {
		by.Approvals = []domain.Approval{state.Request.Approval()}
	}
	if _, err := a.commandAccount(ctx, r, id, account.Unblock{Authority: by}); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: requestBody{Object: "account", ID: id}, wrote: true}, nil
}

// aboutAccount reads what staff say about which account.
func (a *API) aboutAccount(ctx context.Context, r *request) (id string, m reasonRequest, err error) {
	if id, err = pathID(r); err != nil {
		return "", m, err
	}
	return id, m, a.decode(ctx, r, maxBody, &m)
}

func (r *request) withReason(reason string) domain.Authority {
	by := r.command()
	by.Reason = strings.TrimSpace(reason)
	return by
}

func (a *API) commandAccount(ctx context.Context, _ *request, id string, c account.Command) ([]domain.Recorded, error) {
	recorded, err := eventstore.Execute(ctx, a.Store, account.Decider, account.Stream(id), c)
	if err != nil {
		return nil, err
	}
	return recorded, a.settled(ctx, id, recorded)
}

type storyBody struct {
	Object     string      `json:"object"`
	ID         string      `json:"id"`
	Blocked    bool        `json:"blocked"`
	BlockedFor string      `json:"blocked_for,omitempty"` // the policy
	Story      []storyLine `json:"story"`
}

type storyLine struct {
	Event     string            `json:"event"`
	Of        string            `json:"of"` // the aggregate
	ID        string            `json:"id"`
	Seq       uint64            `json:"seq"`
	At        time.Time         `json:"at"`
	By        string            `json:"by"`
	Role      domain.Role       `json:"role,omitempty"`
	Via       domain.Via        `json:"via"`
	IP        string            `json:"ip,omitempty"`
	Auth      domain.Strength   `json:"auth"`
	Reason    string            `json:"reason,omitempty"`
	Approvals []domain.Approval `json:"approvals,omitempty"`
	Data      domain.Event      `json:"data,omitempty"` // of the account itself: keys' and members' have hashes in them
}

// accountStory tells everything that was done to an account, from the log.
func (a *API) accountStory(ctx context.Context, r *request) (answer, error) {
	id, err := pathID(r)
	if err != nil {
		return answer{}, err
	}
	history, err := a.Store.AccountHistory(ctx, id)
	if err != nil {
		return answer{}, err
	}
	if len(history) == 0 {
		return answer{}, notFound("Account not found")
	}
	known, _ := a.Directory.Account(id)
	body := storyBody{Object: "account", ID: id, Blocked: known.Blocked != "", BlockedFor: known.Blocked}
	for _, rec := range history {
		line := storyLine{
			rec.Type, rec.Stream.String(), rec.ID.String(), rec.Seq, rec.Time, rec.By.Actor.String(), rec.By.Role, rec.By.Via,
			rec.By.IP, rec.By.Auth, rec.By.Reason, rec.By.Approvals, nil,
		}
		if rec.Stream == account.Stream(id) {
			line.Data = rec.Event
		}
		body.Story = append(body.Story, line)
	}
	return answer{
		status: http.StatusOK, body: body, objects: []string{id},
		fields: []domain.Field{"account.id", "account.blocked", "account.story"},
	}, nil
}
