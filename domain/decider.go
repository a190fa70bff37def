package domain

// A Decider is one aggregate as two pure functions over plain structs.
//
// Its decide answers a command with the events that follow from it: none if
// what was asked is already so, or a Refusal if it may not be. Its evolve folds
// an event into the state, and never refuses: what happened, happened. Both are
// reached only through the Decider, so that nobody decides past the authority
// table.
type Decider[S any, C Command, E Event] struct {
	Kind   string // first word of every event name, "account"
	decide func(S, C) ([]E, error)
	evolve func(S, E) S
}

// NewDecider joins an aggregate's two functions.
func NewDecider[S any, C Command, E Event](kind string, decide func(S, C) ([]E, error), evolve func(S, E) S) Decider[S, C, E] {
	return Decider[S, C, E]{Kind: kind, decide: decide, evolve: evolve}
}

// Decide answers c, put to the aggregate called of, which is in state s.
func (d Decider[S, C, E]) Decide(of Stream, s S, c C) ([]E, error) {
	if err := Authorize(of, c.Verb(), c.By()); err != nil {
		return nil, err
	}
	return d.decide(s, c)
}

// Evolve folds one event into the state.
func (d Decider[S, C, E]) Evolve(s S, e E) S { return d.evolve(s, e) }

// Replay folds events into a state, starting from nothing.
func (d Decider[S, C, E]) Replay(events ...E) S {
	var s S
	for _, e := range events {
		s = d.evolve(s, e)
	}
	return s
}
