package api

import (
	"errors"
	"net/url"
	"strconv"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/projections"
)

// list is the contract's shape of a list.
type list[T any] struct {
	Object  string `json:"object"`
	HasMore bool   `json:"has_more"`
	Data    []T    `json:"data"`
}

func listOf[T any](rows []T, more bool) list[T] {
	if rows == nil {
		rows = []T{}
	}
	return list[T]{"list", more, rows}
}

// The sizes of a page. Older lists answer with everything if no limit is given.
const (
	pageDefault = 20
	pageMost    = 100
	pageAll     = 0
)

// page reads the cursor of a list.
func page(q url.Values, fallback int) (projections.Page, error) {
	p := projections.Page{Limit: fallback, After: q.Get("after"), Before: q.Get("before")}
	if q.Has("limit") {
		n, err := strconv.Atoi(q.Get("limit"))
		if err != nil || n < 1 || n > pageMost {
			return p, invalid("The pagination limit must be a number between 1 and 100. See https://resend.com/docs/api-reference/pagination for more information.")
		}
		p.Limit = n
	}
	if p.After != "" && p.Before != "" {
		return p, invalid("The `after` and `before` parameters cannot be used together.")
	}
	for name, cursor := range map[string]string{"after": p.After, "before": p.Before} {
		if _, err := parseID(cursor); cursor != "" && err != nil {
			return p, invalid("The `%s` cursor must be a valid id.", name)
		}
	}
	return p, nil
}

// parseID reads an id in the one form that this API gives out.
func parseID(s string) (uuid.UUID, error) {
	id, err := uuid.Parse(s)
	if err == nil && id.String() != s {
		err = errors.New("not in the form of an id")
	}
	return id, err
}

// pathID reads the id in the path of a request.
func pathID(r *request) (string, error) {
	id, err := parseID(r.PathValue("id"))
	if err != nil {
		return "", &Error{422, "The `id` must be a valid UUID.", "invalid_parameter"}
	}
	return id.String(), nil
}

// stamp is a time as PostgreSQL prints it, which is the contract's form.
type stamp time.Time

const stampLayout = "2006-01-02 15:04:05.999999+00"

// MarshalJSON implements json.Marshaler.
func (s stamp) MarshalJSON() ([]byte, error) {
	return []byte(`"` + time.Time(s).UTC().Format(stampLayout) + `"`), nil
}

func stampOf(t *time.Time) *stamp {
	if t == nil || t.IsZero() {
		return nil
	}
	s := stamp(*t)
	return &s
}
