package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/domain/directory"
)

// handler answers one request.
type handler func(context.Context, *request) (answer, error)

// identify finds out who asks. It may set headers of the answer.
type identify func(context.Context, http.Header, *request) error

// request is a request and whoever made it.
type request struct {
	*http.Request
	id  uuid.UUID
	by  domain.Authority
	key directory.Key // of a customer's program
}

// answer is what is sent back, and what of it discloses something.
type answer struct {
	status  int
	body    any
	fields  []domain.Field
	objects []string
	wrote   bool // the request changed something, so its event is already on record
}

// endpoint wraps a handler: it finds out who asks, renders what is answered, and
// puts the request on record. What an answer discloses is on record before the
// answer is sent.
func (a *API) endpoint(route string, who identify, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		start := a.Now()
		r := &request{Request: hr, id: newID()}
		r.by = domain.Authority{
			Actor: domain.Actor{Kind: domain.Anonymous, ID: "anonymous"}, Account: domain.Platform,
			Via: domain.ViaAPI, IP: remoteIP(hr), Auth: domain.NoAuth,
			At: start, Command: r.id, Correlation: r.id, Traceparent: traceparent(hr),
		}
		w.Header().Set("X-Request-Id", r.id.String())

		out, err := a.run(w, r, who, h)
		if err == nil && len(out.fields) > 0 {
			err = a.record(r, route, out, start, true)
		}
		if err != nil {
			told, mine := answerTo(err)
			if !mine && !errors.Is(err, context.Canceled) {
				a.Log.Error("request failed", "request", r.id, "route", route, "account", r.by.Account, "error", err)
			}
			out = answer{status: told.Status, body: told}
		}
		a.render(w, out)
		if err != nil || len(out.fields) == 0 {
			if err := a.record(r, route, out, start, false); err != nil {
				a.Log.Error("request is not on record", "request", r.id, "route", route, "error", err)
			}
		}
	})
}

func (a *API) run(w http.ResponseWriter, r *request, who identify, h handler) (out answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("api: panic: %v", p)
			a.Log.Error("panic", "request", r.id, "panic", p, "stack", stack())
		}
	}()
	ctx := r.Context()
	if err := who(ctx, w.Header(), r); err != nil {
		return answer{}, err
	}
	return h(domain.Within(ctx, r.by), r)
}

func (a *API) render(w http.ResponseWriter, out answer) {
	var rendered bytes.Buffer
	enc := json.NewEncoder(&rendered)
	enc.SetEscapeHTML(false) // it is not HTML, and "<" is in every address with a name
	if err := enc.Encode(out.body); err != nil {
		a.Log.Error("render answer", "error", err)
		out.status = http.StatusInternalServerError
		rendered.Reset()
		rendered.WriteString(`{"statusCode":500,"name":"application_error","message":"An unexpected error occurred."}`)
	}
	body := bytes.TrimSuffix(rendered.Bytes(), []byte("\n"))
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(out.status)
	_, _ = w.Write(body) // a caller who has gone misses the answer, not the fact
}

// record puts the request and its answer on record.
func (a *API) record(r *request, route string, out answer, start time.Time, wait bool) error {
	e := access.Answered{
		Route:     route,
		Method:    r.Method,
		Path:      r.URL.Path,
		Status:    out.status,
		Fields:    out.fields,
		UserAgent: r.UserAgent(),
		Took:      a.Now().Sub(start).Microseconds(),
	}
	if told, ok := out.body.(*Error); ok {
		e.Error = told.Name
	}
	if len(out.fields) > 0 {
		e.Form = domain.Plain
	}
	e.Disclosed(out.objects)
	return a.recorder.record(r.Context(), r.by, e, wait)
}

func remoteIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return ""
	}
	return host
}

// traceparent is the caller's trace context, if it has the form of W3C Trace
// Context, 3.2.
func traceparent(r *http.Request) string {
	v := r.Header.Get("Traceparent")
	if len(v) != 55 {
		return ""
	}
	for i := range len(v) {
		c := v[i]
		if dash := i == 2 || i == 35 || i == 52; dash != (c == '-') || !dash && !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return ""
		}
	}
	return v
}

// The largest bodies, in bytes.
const (
	maxEmailBody      = 42 << 20 // 40 MB of email, and the JSON around it
	maxBody           = 1 << 20
	maxBodiesInMemory = 256 << 20
)

// bodies bounds the large bodies that are in memory at once. JSON and its parts
// are there at the same time, about three times. An account has half of the room at
// most: whoever sends slowly keeps nobody else waiting.
type bodies struct {
	room *semaphore.Weighted

	mu   sync.Mutex
	held map[string]int64 // bytes, by account
}

func newBodies() *bodies {
	return &bodies{room: semaphore.NewWeighted(maxBodiesInMemory), held: map[string]int64{}}
}

// take waits until there is room for a body, and is refused if its account has too
// many under way.
func (b *bodies) take(ctx context.Context, account string, size int64) (release func(), err error) {
	b.mu.Lock()
	if b.held[account]+size > maxBodiesInMemory/2 {
		b.mu.Unlock()
		return nil, errTooMuchAtOnce
	}
	b.held[account] += size
	b.mu.Unlock()
	leave := func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.held[account] -= size; b.held[account] == 0 {
			delete(b.held, account)
		}
	}
	if err := b.room.Acquire(ctx, size); err != nil {
		leave()
		return nil, errUnavailable
	}
	return func() {
		b.room.Release(size)
		leave()
	}, nil
}

// decode reads the body of a request into v. A body is not needed where v says
// so by being able to be empty.
func (a *API) decode(ctx context.Context, r *request, limit int64, v any) error {
	if r.ContentLength > limit {
		return invalid("The request body is larger than %d MB.", limit>>20)
	}
	hold := r.ContentLength
	if hold < 0 {
		hold = limit
	}
	if hold > maxBody {
		release, err := a.bodies.take(ctx, r.by.Account, hold)
		if err != nil {
			return err
		}
		defer release()
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, limit))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return invalid("The request body is larger than %d MB.", limit>>20)
		}
		return invalid("The request body could not be read.")
	}
	if len(body) == 0 {
		body = []byte("{}")
	}
	if err = a.unmarshal(r, body, v); err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && t.Field != "" {
		return invalid("The `%s` field must be %s, not %s.", t.Field, jsonKind(t.Type.Kind().String()), t.Value)
	}
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return invalid("The request body must be %s, not %s.", jsonKind(t.Type.Kind().String()), t.Value)
	}
	return invalid("The request body is not valid JSON.")
}

// unmarshal reads a body. Staff are told of fields that no command carries; the
// contract of customers has them ignored.
func (a *API) unmarshal(r *request, body []byte, v any) error {
	if !strings.HasPrefix(r.URL.Path, "/staff/") {
		return json.Unmarshal(body, v)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err != nil {
		if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			return invalid("There is no field %s here.", field)
		}
		return err
	}
	if d.More() {
		return invalid("The request body is not valid JSON.")
	}
	return nil
}

func jsonKind(kind string) string {
	switch kind {
	case "slice", "array":
		return "an array"
	case "struct", "map":
		return "an object"
	case "bool":
		return "true or false"
	case "string":
		return "a string"
	default:
		return "a number"
	}
}
