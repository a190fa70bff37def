package domain_test

import (
	"bytes"
	"strings"
	"testing"

	"postbook.dev/postbook/domain"
)

type renamed struct {
	Title string `json:"title"`
	Count int    `json:"count"`
}

func lift(from, to string) func([]byte) ([]byte, error) {
	return func(data []byte) ([]byte, error) { return bytes.ReplaceAll(data, []byte(from), []byte(to)), nil }
}

// An event that was written long ago is read as today's type.
func TestOldVersionsAreLiftedStepByStep(t *testing.T) {
	r := domain.NewRegistry(domain.Catalogue{
		domain.FactOf[renamed]("thing.renamed", 3, "A thing got another name.", domain.Old{Version: 1, Upcast: lift("label", "name")}, domain.Old{Version: 2, Upcast: lift("name", "title")}),
	})
	for version, data := range map[int]string{1: `{"label":"a","count":2}`, 2: `{"name":"a","count":2}`, 3: `{"title":"a","count":2}`} {
		e, err := r.Decode("thing.renamed", version, []byte(data))
		if err != nil || e != (renamed{"a", 2}) {
			t.Errorf("version %d: %v, %v", version, e, err)
		}
	}
	for name, ask := range map[string]struct {
		fact    string
		version int
		data    string
	}{
		"an unknown fact":  {"thing.lost", 1, `{}`},
		"a newer version":  {"thing.renamed", 4, `{}`},
		"a version of 0":   {"thing.renamed", 0, `{}`},
		"data of no JSON":  {"thing.renamed", 3, `{`},
		"data of a number": {"thing.renamed", 3, `{"count":"two"}`},
	} {
		if _, err := r.Decode(ask.fact, ask.version, []byte(ask.data)); err == nil || !strings.Contains(err.Error(), ask.fact) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, _, err := r.Encode(struct{}{}); err == nil {
		t.Error("an event that is in no catalogue was written")
	}
}

// Mistakes in a catalogue are found when the program starts, not when the log is
// read.
func TestBadCataloguesDoNotStart(t *testing.T) {
	for name, make := range map[string]func(){
		"a name twice": func() {
			domain.NewRegistry(domain.Catalogue{domain.FactOf[renamed]("a.b", 1, ""), domain.FactOf[struct{ A int }]("a.b", 1, "")})
		},
		"a type twice": func() {
			domain.NewRegistry(domain.Catalogue{domain.FactOf[renamed]("a.b", 1, ""), domain.FactOf[renamed]("a.c", 1, "")})
		},
		"no way up": func() {
			domain.NewRegistry(domain.Catalogue{domain.FactOf[renamed]("a.b", 2, "")})
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: it started", name)
				}
			}()
			make()
		}()
	}
}

func FuzzRegistryDecode(f *testing.F) {
	r := domain.NewRegistry(domain.Catalogue{domain.FactOf[renamed]("thing.renamed", 1, "")})
	f.Add(`{"title":"a"}`)
	f.Fuzz(func(t *testing.T, data string) {
		e, err := r.Decode("thing.renamed", 1, []byte(data))
		if err != nil {
			return
		}
		_, _, again, err := r.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		if e2, err := r.Decode("thing.renamed", 1, again); err != nil || e2 != e {
			t.Errorf("%q is read as %v, and again as %v, %v", data, e, e2, err)
		}
	})
}
