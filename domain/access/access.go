// Package access is what was asked of the platform and what it answered: every
// request, every opening of sealed data, and every refused command. These are
// facts about reads. Nothing is decided on them.
package access

import (
	"crypto/sha256"
	"encoding/hex"

	"postbook.dev/postbook/domain"
)

// Answered is one request and its answer.
type Answered struct {
	Route     string         `json:"route"` // the pattern that matched, "GET /emails/{id}"; empty if none did
	Method    string         `json:"method"`
	Path      string         `json:"path"` // without its query
	Status    int            `json:"status"`
	Error     string         `json:"error,omitempty"`  // stable name of the error that was answered
	Fields    []domain.Field `json:"fields,omitempty"` // what the answer disclosed
	Form      domain.Form    `json:"form,omitempty"`
	Objects   []string       `json:"objects,omitempty"` // ids of what was disclosed, at most MaxObjects
	Count     int            `json:"count,omitempty"`   // how many there were
	Digest    string         `json:"digest,omitempty"`  // SHA-256 over all ids, each followed by a line feed, if there were more than MaxObjects
	UserAgent string         `json:"user_agent,omitempty"`
	Took      int64          `json:"took_us"` // microseconds
}

// MaxObjects is how many ids an access event lists.
const MaxObjects = 50

// Unsealed says how often sealed data was opened, by whom and for what.
type Unsealed struct {
	Class   string `json:"class"`
	Purpose string `json:"purpose"`
	Count   int    `json:"count"`
}

// Refused is a command that was answered with no.
type Refused struct {
	Verb    domain.Verb `json:"verb"`
	Of      string      `json:"of"` // the aggregate it was put to
	Code    domain.Code `json:"code"`
	Field   string      `json:"field,omitempty"`
	Message string      `json:"message"`
}

// Catalogue lists the facts about access.
var Catalogue = domain.Catalogue{
	domain.FactOf[Answered]("access.answered", 1, "A request was answered."),
	domain.FactOf[Unsealed]("access.unsealed", 1, "Sealed data was opened."),
	domain.FactOf[Refused]("command.refused", 1, "A command was refused."),
}

// Disclosed notes which objects were shown: all ids if they are few, else their
// number and a digest that can be compared.
func (a *Answered) Disclosed(ids []string) {
	a.Count = len(ids)
	if len(ids) <= MaxObjects {
		a.Objects = ids
		return
	}
	h := sha256.New()
	for _, id := range ids {
		h.Write([]byte(id + "\n"))
	}
	a.Digest = hex.EncodeToString(h.Sum(nil))
}
