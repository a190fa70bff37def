package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

type idBody struct {
	ID string `json:"id"`
}

type objectBody struct {
	Object string `json:"object"`
	ID     string `json:"id"`
}

func (a *API) sendEmail(ctx context.Context, r *request) (answer, error) {
	var m sendRequest
	if err := a.decode(ctx, r, maxEmailBody, &m); err != nil {
		return answer{}, err
	}
	return a.send(ctx, r, m)
}

// send accepts one email, however it came here.
func (a *API) send(ctx context.Context, r *request, m sendRequest) (answer, error) {
	d, err := a.draft(m, r.by.At, false)
	if err != nil {
		return answer{}, err
	}
	asked := any(m)
	if m.envelope != nil {
		asked = []any{m, m.envelope}
	}
	o, err := a.claim(ctx, r, "POST /emails", asked, []uuid.UUID{newID()})
	if err != nil {
		return answer{}, err
	}
	if !o.repeated {
		_, err = a.accept(ctx, r, o.claim.IDs, []draft{d}, o.claim.Key, true)
		a.finish(ctx, o, err)
		if err != nil {
			return answer{}, err
		}
	}
	return answer{status: http.StatusOK, body: idBody{o.claim.IDs[0].String()}, wrote: true}, nil
}

// maxBatch is how many emails one request may send.
const maxBatch = 100

type batchBody struct {
	Data   []idBody     `json:"data"`
	Errors []batchError `json:"errors,omitempty"`
}

type batchError struct {
	Index   int    `json:"index"`
	Message string `json:"message"`
}

// sendBatch accepts several emails. In strict mode, which is the default, the
// first that is wrong fails the request and nothing is sent; in permissive mode
// the others are.
func (a *API) sendBatch(ctx context.Context, r *request) (answer, error) {
	permissive := false
	switch mode := r.Header.Get("X-Batch-Validation"); mode {
	case "permissive":
		permissive = true
	case "", "strict":
	default:
		return answer{}, invalid("The `x-batch-validation` header must be `strict` or `permissive`.")
	}
	var batch batch
	if err := a.decode(ctx, r, maxEmailBody, &batch); err != nil {
		return answer{}, err
	}
	if len(batch) < 1 || len(batch) > maxBatch {
		return answer{}, invalid("A batch holds 1 to %d emails.", maxBatch)
	}
	drafts, refused := make([]draft, len(batch)), map[int]string{}
	for i, m := range batch {
		var err error
		if drafts[i], err = a.draft(m, r.by.At, true); err == nil {
			continue
		}
		if !permissive {
			return answer{}, err
		}
		told, _ := answerTo(err)
		refused[i] = told.Message
	}
	c := eventstore.Claim{Refused: refused}
	if len(refused) < len(batch) { // else nothing could happen twice
		asked := any(batch)
		if permissive {
			asked = []any{"permissive", batch}
		}
		var err error
		if c, err = a.acceptOnce(ctx, r, asked, drafts, refused, !permissive); err != nil {
			return answer{}, err
		}
	}
	body := batchBody{Data: []idBody{}}
	for i := range batch {
		if why, bad := c.Refused[i]; bad {
			body.Errors = append(body.Errors, batchError{i, why})
			continue
		}
		body.Data = append(body.Data, idBody{c.IDs[i].String()})
	}
	return answer{status: http.StatusOK, body: body, wrote: len(body.Data) > 0}, nil
}

// acceptOnce accepts those of a batch that are not refused yet, or finds what
// became of it when it was asked for before.
func (a *API) acceptOnce(ctx context.Context, r *request, asked any, drafts []draft, refused map[int]string, allOrNone bool) (eventstore.Claim, error) {
	ids := make([]uuid.UUID, len(drafts))
	for i := range ids {
		ids[i] = newID()
	}
	o, err := a.claim(ctx, r, "POST /emails/batch", asked, ids)
	if err != nil || o.repeated {
		return o.claim, err
	}
	o.claim.Refused = refused
	var missing []int // those that a request which died has not accepted
	var missingIDs []uuid.UUID
	var missingDrafts []draft
	for i, id := range o.claim.IDs {
		if o.there[id] {
			delete(refused, i) // a time that was good then
		} else if _, bad := refused[i]; !bad {
			missing, missingIDs, missingDrafts = append(missing, i), append(missingIDs, id), append(missingDrafts, drafts[i])
		}
	}
	refusals, err := a.accept(ctx, r, missingIDs, missingDrafts, o.claim.Key, allOrNone)
	for i, refusal := range refusals {
		if refusal != nil {
			refused[missing[i]] = refusal.Error()
		}
	}
	a.finish(ctx, o, err)
	return o.claim, err
}

// emailBody is an email as the contract shows it. A list leaves the last four
// out.
type emailBody struct {
	Object      string      `json:"object,omitempty"`
	ID          string      `json:"id"`
	To          []string    `json:"to"`
	From        string      `json:"from"`
	CreatedAt   stamp       `json:"created_at"`
	Subject     string      `json:"subject"`
	Bcc         []string    `json:"bcc"`
	Cc          []string    `json:"cc"`
	ReplyTo     []string    `json:"reply_to"`
	LastEvent   string      `json:"last_event"`
	ScheduledAt *stamp      `json:"scheduled_at"`
	MessageID   string      `json:"message_id"`
	HTML        **string    `json:"html,omitempty"`
	Text        **string    `json:"text,omitempty"`
	Tags        []email.Tag `json:"tags,omitempty"`
	Erased      bool        `json:"erased,omitempty"` // what was personal in it was erased on request
}

var emailListFields = []domain.Field{
	"email.id", "email.to", "email.from", "email.created_at", "email.subject", "email.bcc", "email.cc",
	"email.reply_to", "email.last_event", "email.scheduled_at", "email.message_id",
}

var emailFields = append([]domain.Field{"email.html", "email.text", "email.tags"}, emailListFields...)

func (a *API) listEmails(ctx context.Context, r *request) (answer, error) {
	p, err := page(r.URL.Query(), pageDefault)
	if err != nil {
		return answer{}, err
	}
	if err := a.caughtUp(ctx, r.by.Account, "emails", a.Store.MailLogs()...); err != nil {
		return answer{}, err
	}
	rows, more, err := a.Tables.Emails(ctx, r.by.Account, p)
	if err != nil {
		return answer{}, listError(err)
	}
	var data []emailBody
	var ids []string
	for _, row := range rows {
		body, err := a.emailBody(ctx, row)
		if err != nil {
			return answer{}, err
		}
		body.Tags = nil // which a list leaves out
		data, ids = append(data, body), append(ids, body.ID)
	}
	return answer{status: http.StatusOK, body: listOf(data, more), fields: emailListFields, objects: ids}, nil
}

func (a *API) emailBody(ctx context.Context, row projections.Email) (emailBody, error) {
	id := row.ID
	e := email.ErasedEnvelope()
	plain, err := a.Vault.Open(ctx, row.AccountID, classEnvelope, id, row.Envelope)
	erased := errors.Is(err, domain.ErrErased)
	if !erased {
		if err == nil {
			e = email.Envelope{}
			err = json.Unmarshal(plain, &e)
		}
		if err != nil {
			return emailBody{}, err
		}
	}
	return emailBody{
		ID: id, To: e.To, From: e.From, CreatedAt: stamp(row.CreatedAt), Subject: e.Subject,
		Bcc: orEmpty(e.Bcc), Cc: orEmpty(e.Cc), ReplyTo: orEmpty(e.ReplyTo),
		LastEvent: row.LastEvent, ScheduledAt: stampOf(row.ScheduledAt), MessageID: "<" + row.MessageID + ">",
		Tags: e.Tags, Erased: erased,
	}, nil
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func (a *API) getEmail(ctx context.Context, r *request) (answer, error) {
	row, err := a.findEmail(ctx, r)
	if err != nil {
		return answer{}, err
	}
	body, err := a.emailBody(ctx, row)
	if err != nil {
		return answer{}, err
	}
	var content email.Content
	if !body.Erased {
		if content, err = a.content(ctx, row); errors.Is(err, domain.ErrErased) {
			body.Erased = true // just now
		} else if err != nil {
			return answer{}, err
		}
	}
	html, text := orNull(content.HTML), orNull(content.Text)
	body.Object, body.HTML, body.Text = "email", &html, &text
	return answer{status: http.StatusOK, body: body, fields: emailFields, objects: []string{body.ID}}, nil
}

func (a *API) content(ctx context.Context, row projections.Email) (email.Content, error) {
	var content email.Content
	sealed, err := a.Store.Content(ctx, row.Content)
	if err != nil {
		return content, err
	}
	plain, err := a.Vault.Open(ctx, row.AccountID, classBody, row.ID, sealed)
	if err != nil {
		return content, err
	}
	return content, json.Unmarshal(plain, &content)
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// findEmail finds the email that a request's path names, if it is the caller's.
func (a *API) findEmail(ctx context.Context, r *request) (projections.Email, error) {
	id, err := pathID(r)
	if err != nil {
		return projections.Email{}, err
	}
	log := eventstore.MailLog(a.Store.Partition(uuid.MustParse(id)))
	if err := a.caughtUp(ctx, r.by.Account, "emails", log); err != nil {
		return projections.Email{}, err
	}
	row, err := a.Tables.Email(ctx, r.by.Account, id)
	return row, orNotFound(err, "Email not found")
}

func (a *API) updateEmail(ctx context.Context, r *request) (answer, error) {
	var m struct {
		ScheduledAt *string `json:"scheduled_at"`
	}
	if err := a.decode(ctx, r, maxBody, &m); err != nil {
		return answer{}, err
	}
	if m.ScheduledAt == nil || strings.TrimSpace(*m.ScheduledAt) == "" {
		return answer{}, missing("scheduled_at")
	}
	due, err := parseTime(*m.ScheduledAt, r.by.At)
	if err != nil {
		return answer{}, err
	}
	return a.askOwner(ctx, r, email.DeskRequest{Verb: email.DeskReschedule, Due: due})
}

func (a *API) cancelEmail(ctx context.Context, r *request) (answer, error) {
	return a.askOwner(ctx, r, email.DeskRequest{Verb: email.DeskCancel})
}

// askOwner puts a command about an email to the one who decides about it: the
// owner of its partition.
func (a *API) askOwner(ctx context.Context, r *request, ask email.DeskRequest) (answer, error) {
	id, err := pathID(r)
	if err != nil {
		return answer{}, err
	}
	ask.Account, ask.Email, ask.By = r.by.Account, id, r.command()
	partition := a.Store.Partition(uuid.MustParse(id))
	ask.Seq, _ = a.written.in(r.by.Account, eventstore.MailLog(partition))
	reply, err := a.askDesk(ctx, partition, ask)
	if refusal := domain.Refused(err); refusal != nil && refusal.Code == domain.NotFound {
		// The owner knows the emails that are open. Of others it needs the place.
		row, missing := a.findEmail(ctx, r)
		if missing != nil {
			return answer{}, missing
		}
		ask.Last = row.LastSeq
		reply, err = a.askDesk(ctx, partition, ask)
	}
	if refusal := domain.Refused(err); refusal != nil {
		a.Refused(ctx, email.Stream(r.by.Account, uuid.MustParse(id)), ask.Command(), refusal)
	}
	if err != nil {
		return answer{}, err
	}
	a.written.note(r.by.Account, domain.Position{Log: reply.Log, Seq: reply.Seq})
	return answer{status: http.StatusOK, body: objectBody{"email", id}, wrote: true}, nil
}

func (a *API) askDesk(ctx context.Context, partition int, ask email.DeskRequest) (email.DeskAnswer, error) {
	var reply email.DeskAnswer
	body, err := json.Marshal(ask)
	if err != nil {
		return reply, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	got, err := a.Store.Ask(ctx, email.Desk(partition), body)
	if err != nil {
		return reply, err
	}
	return reply, json.Unmarshal(got, &reply)
}
