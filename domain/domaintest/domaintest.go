// Package domaintest tells stories about aggregates: given, when, then.
package domaintest

import (
	"reflect"
	"testing"

	"postbook.dev/postbook/domain"
)

// Story is one thing that a decider does.
type Story[C domain.Command, E domain.Event] struct {
	Name    string
	Given   []E
	When    C
	Then    []E
	Refused domain.Code // instead of Then
	Field   string      // the field that the refusal names
}

// Tell runs stories about the aggregate called of.
func Tell[S any, C domain.Command, E domain.Event](t *testing.T, d domain.Decider[S, C, E], of domain.Stream, stories []Story[C, E]) {
	t.Helper()
	for _, s := range stories {
		t.Run(s.Name, func(t *testing.T) {
			t.Helper()
			before := d.Replay(s.Given...)
			got, err := d.Decide(of, before, s.When)
			if s.Refused != "" {
				refusal := domain.Refused(err)
				if refusal == nil {
					t.Fatalf("got %v and error %v, want the refusal %q", got, err, s.Refused)
				}
				if refusal.Code != s.Refused || refusal.Field != s.Field {
					t.Fatalf("refused as %q in field %q (%s), want %q in field %q", refusal.Code, refusal.Field, refusal.Message, s.Refused, s.Field)
				}
				return
			}
			if err != nil {
				t.Fatalf("refused: %v", err)
			}
			if len(got) != len(s.Then) || len(got) > 0 && !reflect.DeepEqual(got, s.Then) {
				t.Fatalf("got  %+v\nwant %+v", got, s.Then)
			}
			again, err := d.Decide(of, d.Replay(append(append([]E{}, s.Given...), got...)...), s.When)
			if err == nil && len(again) > 0 && len(got) > 0 && reflect.DeepEqual(again, got) {
				t.Errorf("asked a second time, it records the same again: %+v", again)
			}
		})
	}
}
