package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"time"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/name"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// Selector names the key of a domain in DNS (RFC 6376, 3.1).
const Selector = "postbook"

var regions = []string{"us-east-1", "eu-west-1", "sa-east-1", "ap-northeast-1"}

type domainRequest struct {
	Name          string        `json:"name"`
	Region        string        `json:"region"`
	ReturnPath    string        `json:"custom_return_path"`
	OpenTracking  *bool         `json:"open_tracking"`
	ClickTracking *bool         `json:"click_tracking"`
	TLS           *string       `json:"tls"`
	Capabilities  *capabilities `json:"capabilities"`
}

type capabilities struct {
	Sending   string `json:"sending"`
	Receiving string `json:"receiving"`
}

type domainBody struct {
	Object        string       `json:"object,omitempty"`
	ID            string       `json:"id"`
	Name          string       `json:"name"`
	Status        string       `json:"status"`
	CreatedAt     stamp        `json:"created_at"`
	Region        string       `json:"region"`
	Capabilities  capabilities `json:"capabilities"`
	OpenTracking  bool         `json:"open_tracking"`
	ClickTracking bool         `json:"click_tracking"`
	TLS           string       `json:"tls"`
	Records       []recordBody `json:"records,omitempty"`
}

type recordBody struct {
	Record   string `json:"record"`
	Name     string `json:"name"`
	Type     string `json:"type"`
	TTL      string `json:"ttl"`
	Status   string `json:"status"`
	Value    string `json:"value"`
	Priority int    `json:"priority,omitempty"`
}

var domainFields = []domain.Field{"domain.id", "domain.name", "domain.status", "domain.created_at", "domain.region", "domain.settings"}

func (m domainRequest) settings(s sender.Settings) (sender.Settings, error) {
	if m.OpenTracking != nil {
		s.OpenTracking = *m.OpenTracking
	}
	if m.ClickTracking != nil {
		s.ClickTracking = *m.ClickTracking
	}
	if m.TLS != nil {
		s.TLS = *m.TLS
	}
	switch {
	case s.OpenTracking || s.ClickTracking:
		return s, invalid("Tracking is not supported yet: leave `open_tracking` and `click_tracking` off.")
	case m.Capabilities != nil && (m.Capabilities.Sending == "disabled" || m.Capabilities.Receiving == "enabled"):
		return s, invalid("Receiving is not supported yet: a domain's `capabilities` are sending alone.")
	}
	return s, nil
}

// AddDomain says what domain is added.
type AddDomain struct {
	Name       string
	Region     string
	ReturnPath string
	Settings   sender.Settings
}

var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (a *API) createDomain(ctx context.Context, r *request) (answer, error) {
	var m domainRequest
	if err := a.decode(ctx, r, maxBody, &m); err != nil {
		return answer{}, err
	}
	settings, err := m.settings(sender.Settings{TLS: sender.TLSOpportunistic})
	if err != nil {
		return answer{}, err
	}
	add := AddDomain{Name: m.Name, Region: m.Region, ReturnPath: m.ReturnPath, Settings: settings}
	id, err := a.AddDomain(ctx, r.command(), r.by.Account, add)
	if err != nil {
		return answer{}, err
	}
	out, err := a.domainAnswer(ctx, r, id)
	out.status, out.wrote = http.StatusCreated, true
	return out, err
}

// AddDomain takes the name, makes a signing key, and adds the domain.
func (a *API) AddDomain(ctx context.Context, by domain.Authority, account string, add AddDomain) (id string, err error) {
	if err := a.checkDomain(&add); err != nil {
		return "", err
	}
	// Whoever asked may go away: what was begun is brought to an end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	id = newID().String()
	if err := a.takeName(ctx, by, account, add.Name, id); err != nil {
		return "", err
	}
	recorded, err := a.addTaken(ctx, by, account, id, add)
	if domain.Refused(err) != nil || errors.Is(err, errNoKey) {
		return "", errors.Join(err, a.releaseName(ctx, by, add.Name, id))
	}
	if err != nil {
		return "", err // the domain may be there: if it is not, the account takes the name again
	}
	return id, a.settled(ctx, account, recorded)
}

// endWithin is how long a change of several steps may take.
const endWithin = time.Minute

// takeName takes a domain name for an account. One that the account holds for a domain
// that is not there any more, because the process ended in the middle, is taken again.
func (a *API) takeName(ctx context.Context, by domain.Authority, account, domainName, id string) error {
	by.Account = account
	take := func() error {
		by.Command = newID()
		_, err := eventstore.Execute(ctx, a.Store, name.Decider, name.Stream(domainName), name.Command(name.Take{Authority: by, Sender: id}))
		return err
	}
	err := take()
	if r := domain.Refused(err); r == nil || r.Code != domain.Taken {
		return err
	}
	taken := domain.RefuseField(domain.Taken, "name", "The `%s` domain has been registered already.", domainName)
	holder, _, err := eventstore.Load(ctx, a.Store, name.Decider, name.Stream(domainName))
	if err != nil || holder.Account != account {
		return errors.Join(err, taken)
	}
	held, _, err := eventstore.Load(ctx, a.Store, sender.Decider, sender.Stream(account, holder.Sender))
	if err != nil || held.Name != "" && !held.Removed {
		return errors.Join(err, taken)
	}
	if held.Name == "" {
		history, err := a.Store.History(ctx, name.Stream(domainName))
		if err != nil || len(history) == 0 || a.Now().Sub(history[len(history)-1].Time) < 2*endWithin {
			return errors.Join(err, taken) // it may be about to be added
		}
	}
	if err := a.releaseName(ctx, by, domainName, holder.Sender); err != nil {
		return err
	}
	return take()
}

func (a *API) releaseName(ctx context.Context, by domain.Authority, domainName, id string) error {
	by.Command = newID()
	_, err := eventstore.Execute(ctx, a.Store, name.Decider, name.Stream(domainName), name.Command(name.Release{Authority: by, Sender: id}))
	return err
}

func (a *API) checkDomain(add *AddDomain) (err error) {
	if add.Name == "" {
		return missing("name")
	}
	if add.Name, err = a.ParseDomain(lower(add.Name)); err != nil {
		return invalid("The `name` must be a domain name, such as `example.com`.")
	}
	if add.Region == "" {
		add.Region = regions[0]
	}
	if !slices.Contains(regions, add.Region) {
		return invalid(`Region must be "us-east-1" | "eu-west-1" | "sa-east-1" | "ap-northeast-1"`)
	}
	if add.ReturnPath == "" {
		add.ReturnPath = "send"
	}
	if !label.MatchString(add.ReturnPath) {
		return invalid("The `custom_return_path` must be one label of a domain name, such as `send`.")
	}
	return nil
}

// errNoKey says that no domain was added, because it has no signing key.
var errNoKey = errors.New("there is no signing key")

func (a *API) addTaken(ctx context.Context, by domain.Authority, account, id string, add AddDomain) ([]domain.Recorded, error) {
	private, public, err := a.NewKey()
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w: %w", errNoKey, err)
	}
	sealed, err := a.Vault.Seal(ctx, account, classSecret, id, private)
	if err != nil {
		return nil, fmt.Errorf("seal a signing key: %w: %w", errNoKey, err)
	}
	return eventstore.Execute(ctx, a.Store, sender.Decider, sender.Stream(account, id), sender.Command(sender.Add{
		Authority: by,
		Added: sender.Added{
			Name: add.Name, Region: add.Region, ReturnPath: add.ReturnPath,
			Selector: Selector, PublicKey: public, PrivateKey: sealed, Settings: add.Settings,
		},
	}))
}

func (a *API) listDomains(ctx context.Context, r *request) (answer, error) {
	p, err := page(r.URL.Query(), pageAll)
	if err != nil {
		return answer{}, err
	}
	if err := a.caughtUp(ctx, r.by.Account, "domains", eventstore.Ledger); err != nil {
		return answer{}, err
	}
	rows, more, err := a.Tables.Domains(ctx, r.by.Account, p)
	if err != nil {
		return answer{}, listError(err)
	}
	var data []domainBody
	var ids []string
	for _, row := range rows {
		body, err := domainOf(row)
		if err != nil {
			return answer{}, err
		}
		data, ids = append(data, body), append(ids, row.ID)
	}
	return answer{status: http.StatusOK, body: listOf(data, more), fields: domainFields, objects: ids}, nil
}

func domainOf(row projections.Domain) (domainBody, error) {
	var s sender.Settings
	if err := json.Unmarshal(row.Settings, &s); err != nil {
		return domainBody{}, err
	}
	return domainBody{
		ID: row.ID, Name: row.Name, Status: row.Status, CreatedAt: stamp(row.CreatedAt), Region: row.Region,
		Capabilities: capabilities{Sending: "enabled", Receiving: "disabled"},
		OpenTracking: s.OpenTracking, ClickTracking: s.ClickTracking, TLS: s.TLS,
	}, nil
}

func (a *API) getDomain(ctx context.Context, r *request) (answer, error) {
	id, err := pathID(r)
	if err != nil {
		return answer{}, err
	}
	return a.domainAnswer(ctx, r, id)
}

func (a *API) domainAnswer(ctx context.Context, r *request, id string) (answer, error) {
	if err := a.caughtUp(ctx, r.by.Account, "domains", eventstore.Ledger); err != nil {
		return answer{}, err
	}
	row, err := a.Tables.Domain(ctx, r.by.Account, id)
	if err != nil {
		return answer{}, orNotFound(err, "Domain not found")
	}
	body, err := domainOf(row)
	if err != nil {
		return answer{}, err
	}
	var results []sender.Result
	if len(row.Results) > 0 {
		if err := json.Unmarshal(row.Results, &results); err != nil {
			return answer{}, err
		}
	}
	body.Object = "domain"
	published := sender.Published{Name: row.Name, ReturnPath: row.ReturnPath, Selector: row.Selector, PublicKey: row.PublicKey}
	for _, rec := range sender.Records(published, a.Expected) {
		if rec.Advice {
			continue
		}
		body.Records = append(body.Records, recordBody{
			Record: rec.Record, Name: rec.Name, Type: rec.Type, TTL: "Auto", Value: rec.Value, Priority: rec.Priority,
			Status: recordStatus(row, results, rec),
		})
	}
	fields := append([]domain.Field{"domain.records"}, domainFields...)
	return answer{status: http.StatusOK, body: body, fields: fields, objects: []string{id}}, nil
}

func recordStatus(row projections.Domain, results []sender.Result, rec sender.Record) string {
	if row.Vouched {
		return string(sender.Found)
	}
	for _, res := range results {
		if res.Record == rec.Check {
			return string(res.Status)
		}
	}
	if row.Status == string(sender.Pending) {
		return string(sender.Pending)
	}
	return string(sender.NotStarted)
}

func (a *API) updateDomain(ctx context.Context, r *request) (answer, error) {
	id, err := pathID(r)
	if err != nil {
		return answer{}, err
	}
	var m domainRequest
	if err := a.decode(ctx, r, maxBody, &m); err != nil {
		return answer{}, err
	}
	of := sender.Stream(r.by.Account, id)
	state, _, err := eventstore.Load(ctx, a.Store, sender.Decider, of)
	if err != nil {
		return answer{}, err
	}
	settings, err := m.settings(state.Settings)
	if err != nil {
		return answer{}, err
	}
	return a.commandDomain(ctx, r, id, sender.Change{Authority: r.command(), Settings: settings}, objectBody{"domain", id})
}

func (a *API) verifyDomain(ctx context.Context, r *request) (answer, error) {
	id, err := pathID(r)
	if err != nil {
		return answer{}, err
	}
	return a.commandDomain(ctx, r, id, sender.Verify{Authority: r.command()}, objectBody{"domain", id})
}

type deletedBody struct {
	Object  string `json:"object"`
	ID      string `json:"id"`
	Deleted bool   `json:"deleted"`
}

func (a *API) deleteDomain(ctx context.Context, r *request) (answer, error) {
	id, err := pathID(r)
	if err != nil {
		return answer{}, err
	}
	of, known := a.Directory.Sender(id)
	// As when one is added. A process that ends in between leaves the name to the account.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	out, err := a.commandDomain(ctx, r, id, sender.Remove{Authority: r.command()}, deletedBody{"domain", id, true})
	if err != nil || !known {
		return out, err
	}
	return out, a.releaseName(ctx, r.command(), of.Name, id)
}

func (a *API) commandDomain(ctx context.Context, r *request, id string, c sender.Command, body any) (answer, error) {
	recorded, err := eventstore.Execute(ctx, a.Store, sender.Decider, sender.Stream(r.by.Account, id), c)
	if err != nil {
		return answer{}, err
	}
	if err := a.settled(ctx, r.by.Account, recorded); err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: body, wrote: true}, nil
}

func orNotFound(err error, message string) error {
	if errors.Is(err, projections.ErrNotFound) {
		return notFound(message)
	}
	return err
}

func listError(err error) error {
	if errors.Is(err, projections.ErrBadCursor) {
		return invalid("The cursor does not name an item of this list.")
	}
	return err
}
