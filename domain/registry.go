package domain

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sort"

	jsonv2 "github.com/go-json-experiment/json" // reads twice as fast as encoding/json
	jsonv1 "github.com/go-json-experiment/json/v1"
)

// Catalogue lists what one aggregate can record.
type Catalogue []Fact

// A Fact is one type of event: its name, today's schema version, and one plain
// sentence. It is made by FactOf.
type Fact struct {
	Type    string
	Version int
	Doc     string
	Go      reflect.Type

	zero   Event
	decode func([]byte) (Event, error)
	old    map[int]func([]byte) ([]byte, error)
}

// Old is the step up from an older schema version to the one after it: data
// in, data out.
type Old struct {
	Version int
	Upcast  func([]byte) ([]byte, error)
}

// FactOf lists the event type E under a name that outlives its Go name.
func FactOf[E any](name string, version int, doc string, old ...Old) Fact {
	f := Fact{Type: name, Version: version, Doc: doc, Go: reflect.TypeFor[E](), old: map[int]func([]byte) ([]byte, error){}}
	var zero E
	f.zero = zero
	f.decode = func(data []byte) (Event, error) {
		var e E
		err := jsonv2.Unmarshal(data, &e, jsonv1.FormatDurationAsNano(true))
		return e, err
	}
	for _, o := range old {
		f.old[o.Version] = o.Upcast
	}
	return f
}

// Registry is what the log is read and written with.
type Registry struct {
	byName map[string]Fact
	byType map[reflect.Type]Fact
}

// NewRegistry joins catalogues. It panics at start-up if a name or a Go type is
// listed twice, or if an old version has no way up: both are mistakes that no
// run should survive.
func NewRegistry(catalogues ...Catalogue) *Registry {
	r := &Registry{byName: map[string]Fact{}, byType: map[reflect.Type]Fact{}}
	for _, c := range catalogues {
		for _, f := range c {
			if _, dup := r.byName[f.Type]; dup {
				panic("domain: two facts are called " + f.Type)
			}
			if _, dup := r.byType[f.Go]; dup {
				panic("domain: two facts share the Go type " + f.Go.String())
			}
			for v := 1; v < f.Version; v++ {
				if f.old[v] == nil {
					panic(fmt.Sprintf("domain: %s has no step up from version %d", f.Type, v))
				}
			}
			r.byName[f.Type], r.byType[f.Go] = f, f
		}
	}
	return r
}

// Facts lists every fact by name.
func (r *Registry) Facts() []Fact {
	facts := make([]Fact, 0, len(r.byName))
	for _, f := range r.byName {
		facts = append(facts, f)
	}
	sort.Slice(facts, func(i, j int) bool { return facts[i].Type < facts[j].Type })
	return facts
}

// Encode gives the name, version and JSON of an event.
func (r *Registry) Encode(e Event) (name string, version int, data []byte, err error) {
	f, ok := r.byType[reflect.TypeOf(e)]
	if !ok {
		return "", 0, nil, fmt.Errorf("domain: %T is in no catalogue", e)
	}
	data, err = json.Marshal(e)
	if err != nil {
		return "", 0, nil, fmt.Errorf("domain: encode %s: %w", f.Type, err)
	}
	return f.Type, f.Version, data, nil
}

// Zero is an event of a type without its data, for those who need only to know
// what it is. It refuses what Decode would refuse.
func (r *Registry) Zero(name string, version int) (Event, error) {
	f, err := r.fact(name, version)
	return f.zero, err
}

func (r *Registry) fact(name string, version int) (Fact, error) {
	f, ok := r.byName[name]
	if !ok {
		return f, fmt.Errorf("domain: no fact is called %q", name)
	}
	if version > f.Version || version < 1 {
		return f, fmt.Errorf("domain: %s version %d was written by a newer program; this one knows %d", name, version, f.Version)
	}
	return f, nil
}

// Decode reads an event of any version that was ever written, as today's type.
func (r *Registry) Decode(name string, version int, data []byte) (Event, error) {
	f, err := r.fact(name, version)
	if err != nil {
		return nil, err
	}
	for v := version; v < f.Version; v++ {
		up, err := f.old[v](data)
		if err != nil {
			return nil, fmt.Errorf("domain: %s: step up from version %d: %w", name, v, err)
		}
		data = up
	}
	e, err := f.decode(data)
	if err != nil {
		return nil, fmt.Errorf("domain: decode %s version %d: %w", name, version, err)
	}
	return e, nil
}
