package projections_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/projections"
)

// An entry that cannot be applied, be it that it cannot be read or that a table
// does not take it, stops the models that need it on its log, right before it.
// Everything else goes on.
func TestAnEntryThatCannotBeAppliedStopsOneModel(t *testing.T) {
	w := newWorld(t)
	stop := w.run(t)
	before := map[string]uint64{}
	for _, log := range []string{eventstore.Ledger, "MAIL_02"} {
		before[log] = must(w.store.Head(t.Context(), log))(t)
	}
	for _, c := range []struct {
		id    string
		limit int
	}{{"fine", 5}, {"poison", 1 << 40}, {"after", 5}} {
		open := eventstore.Commit{Stream: account.Stream(c.id), By: operator(), Events: []domain.Event{account.Opened{Name: c.id, RateLimit: c.limit}}}
		must(w.store.Append(t.Context(), open, 0))(t)
	}
	nc := must(nats.Connect(w.store.URL()))(t)
	defer nc.Close()
	if _, err := nc.Request("mail.02.acme", []byte("this is no event"), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	w.fill(t) // more of everything, in all logs

	check := func() error {
		states, err := projections.Status(t.Context(), w.writer, w.store, time.Now())
		if err != nil {
			return err
		}
		stopped := map[string]string{}
		for _, s := range states {
			if s.State == projections.Stopped {
				stopped[s.Model+" on "+s.Log] = s.Error
				if s.Lag == 0 || s.Behind <= 0 {
					return fmt.Errorf("a model that has stopped is not behind: %+v", s)
				}
				continue
			}
			if s.Lag != 0 || s.Behind != 0 {
				return fmt.Errorf("it is behind: %+v", s)
			}
		}
		for what, at := range map[string]string{
			"accounts on LEDGER": fmt.Sprint("LEDGER ", before[eventstore.Ledger]+2),
			"emails on MAIL_02":  fmt.Sprint("MAIL_02 ", before["MAIL_02"]+1),
		} {
			if !strings.HasPrefix(stopped[what], at+": ") {
				return fmt.Errorf("%s says %q and should name %s; stopped are %v", what, stopped[what], at, stopped)
			}
		}
		if len(stopped) != 2 {
			return fmt.Errorf("stopped are %v", stopped)
		}
		return nil
	}
	testenv.Eventually(t, 20*time.Second, check)
	var fine, after bool
	if err := w.writer.QueryRow(t.Context(), "select exists (select from accounts where id = 'fine'), exists (select from accounts where id = 'after')").Scan(&fine, &after); err != nil || !fine || after {
		t.Errorf("the account before it is there: %v; the one after it: %v; %v", fine, after, err)
	}

	// It is the same after a restart, and a new email in another partition is shown.
	stop()
	defer w.runAgain(t)()
	testenv.Eventually(t, 20*time.Second, check)
	id := uuid.Must(uuid.NewV7())
	for w.store.Partition(id) == 2 {
		id = uuid.Must(uuid.NewV7())
	}
	w.accept(t, id)
	testenv.Eventually(t, 20*time.Second, func() error {
		_, err := w.tables.Email(t.Context(), "acme", id.String())
		return err
	})
}

// Whatever somebody puts into a text, also what no database text can hold, stops no model.
func TestNoTextStopsAModel(t *testing.T) {
	w := newWorld(t)
	by, now := operator(), time.Now()
	last := map[string]uint64{} // of each kind's one aggregate
	for _, f := range catalogue.Registry().Facts() {
		e := reflect.New(f.Go).Elem()
		fillTexts(e, "a\x00b\\u0000")
		kind, what, _ := strings.Cut(f.Type, ".")
		if what == "removed" || what == "revoked" {
			continue // no row is left
		}
		by.Command = uuid.New()
		c := eventstore.Commit{Stream: domain.Stream{Account: "acme", Kind: kind, ID: uuid.NewString()}, By: by, Events: []domain.Event{e.Interface().(domain.Event)}}
		switch kind {
		case "access", "command":
			log := map[string]string{"access": eventstore.Access, "command": eventstore.Asked}[kind]
			if err := w.store.Record(t.Context(), log, "acme", []eventstore.Commit{c}, true); err != nil {
				t.Fatalf("%s: %v", f.Type, err)
			}
		case "email": // what anybody wrote is sealed in them
		default:
			c.Stream.ID = "nasty"
			last[kind] = must(w.store.Append(t.Context(), c, last[kind]))(t)[0].Seq
		}
	}
	defer w.runAgain(t)()
	testenv.Eventually(t, 20*time.Second, func() error {
		for _, s := range must(projections.Status(t.Context(), w.writer, w.store, now))(t) {
			if s.State == projections.Stopped || s.Behind > 0 {
				return fmt.Errorf("%s on %s is %s: %s", s.Model, s.Log, s.State, s.Error)
			}
		}
		return nil
	})
}

// fillTexts puts a text wherever one can be.
func fillTexts(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				fillTexts(v.Field(i), text)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fillTexts(v.Index(0), text)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillTexts(v.Elem(), text)
	}
}

// A model that stopped because of rows that somebody had put there goes on when it was
// built again, without a restart.
func TestAStoppedModelGoesOnWhenItWasBuiltAgain(t *testing.T) {
	w := newWorld(t)
	defer w.run(t)()
	c := eventstore.Commit{Stream: domain.Stream{Account: "acme", Kind: "access", ID: uuid.NewString()}, By: operator(), Events: []domain.Event{
		access.Answered{Route: "GET /emails", Method: "GET", Path: "/emails", Status: 200},
	}}
	must(w.writer.Exec(t.Context(), "insert into requests select (jsonb_populate_record(r, jsonb_build_object('id', $1::text))).* from requests r limit 1", c.Stream.ID))(t)
	if err := w.store.Record(t.Context(), eventstore.Access, "acme", []eventstore.Commit{c}, true); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		for _, s := range must(projections.Status(t.Context(), w.writer, w.store, time.Now()))(t) {
			if s.Model == "requests" && s.State != projections.Stopped {
				return fmt.Errorf("it is %s", s.State)
			}
		}
		return nil
	})
	requests := must(projections.Find("requests"))(t)
	if err := w.rebuilder(t).Rebuild(t.Context(), requests, nil); err != nil {
		t.Fatal(err)
	}
	w.fill(t)
	w.await(t, requests)
}
