package forensics

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/access"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/domain/email"
	"postbook.dev/postbook/domain/member"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/internal/testenv"
	"postbook.dev/postbook/migrations"
	"postbook.dev/postbook/projections"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

var quiet = slog.New(slog.DiscardHandler)

var registry = catalogue.Registry()

// world is a log that a seed fills, with a little of everything.
type world struct {
	t     testing.TB
	r     *rand.Rand
	store *eventstore.Store
	last  map[domain.Stream]uint64 // sequence of an aggregate's last commit
	open  []domain.Stream          // emails
	about []domain.Stream          // aggregates of the ledger
	owner []*eventstore.Owner
}

var accounts = []string{"acme", "beta", "gamma"}

func newWorld(t testing.TB, seed uint64) *world {
	t.Helper()
	w := &world{t: t, r: rand.New(rand.NewPCG(seed, 0)), last: map[domain.Stream]uint64{}}
	w.store = openStore(t, t.TempDir())
	t.Cleanup(func() { w.store.Close() })
	w.owner = make([]*eventstore.Owner, w.store.Partitions())
	for p := range w.owner {
		w.claim(p)
	}
	for _, a := range accounts {
		w.append(account.Stream(a), account.Opened{Name: "The " + a + "\x00 company", RateLimit: 5})
	}
	return w
}

func openStore(t testing.TB, dir string) *eventstore.Store {
	t.Helper()
	store, err := eventstore.Open(t.Context(), eventstore.Config{Dir: dir, Durability: eventstore.Interval, Partitions: 2, Registry: registry, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (w *world) claim(p int) {
	w.t.Helper()
	w.owner[p] = must(w.store.Own(w.t.Context(), p, "test"))(w.t)
}

func (w *world) by(kind domain.ActorKind, id string) domain.Authority {
	return domain.Authority{
		Actor: domain.Actor{Kind: kind, ID: id}, Account: domain.Platform, Via: domain.ViaCLI, Auth: domain.Internal, At: time.Now(),
		Command: uuid.Must(uuid.NewV7()), Reason: fmt.Sprint("reason ", w.r.IntN(1000)),
	}
}

// append records events of an aggregate of the ledger.
func (w *world) append(of domain.Stream, events ...domain.Event) []domain.Recorded {
	w.t.Helper()
	rec := must(w.store.Append(w.t.Context(), eventstore.Commit{Stream: of, By: w.by(domain.Staff, "ada"), Events: events}, w.last[of]))(w.t)
	w.last[of] = rec[0].Seq
	return rec
}

// accept records an email, with what else happens in the same commit.
func (w *world) accept(acc string, more ...domain.Event) []domain.Recorded {
	w.t.Helper()
	id := uuid.Must(uuid.NewV7())
	of := email.Stream(acc, id)
	accepted := email.Accepted{
		Sender: "s1", MessageID: id.String() + "@test", Envelope: domain.Sealed(id.String()), Recipients: []email.Recipient{{Kind: email.To, Index: "i"}},
		Content: domain.ContentRef{SHA256: id.String(), Size: w.r.IntN(1000)}, Expires: time.Now().Add(time.Hour),
	}
	rec := must(w.store.Accept(w.t.Context(), []eventstore.Commit{{Stream: of, By: w.by(domain.APIKey, "key1"), Events: append([]domain.Event{accepted}, more...)}}))(w.t)
	w.last[of] = rec[0][0].Seq
	w.open = append(w.open, of)
	return rec[0]
}

// decide records events of an email, as the owner of its partition does.
func (w *world) decide(of domain.Stream, events ...domain.Event) []domain.Recorded {
	w.t.Helper()
	p := w.store.Partition(uuid.MustParse(of.ID))
	rec := must(w.owner[p].Append(w.t.Context(), eventstore.Commit{Stream: of, By: w.by(domain.System, "dispatcher"), Prev: w.last[of], Events: events}))(w.t)
	w.last[of] = rec[0][0].Seq
	return rec[0]
}

// step makes something happen.
func (w *world) step() {
	w.t.Helper()
	r := w.r
	acc := accounts[r.IntN(len(accounts))]
	switch n := r.IntN(100); {
	case n < 25:
		var more []domain.Event
		if r.IntN(4) == 0 {
			more = append(more, email.Scheduled{Due: time.Now().Add(time.Duration(r.Int64N(1e15))), Expires: time.Now()})
		}
		w.accept(acc, more...)
	case n < 65 && len(w.open) > 0:
		w.decide(w.open[r.IntN(len(w.open))], w.emailEvents()...)
	case n < 67:
		w.claim(r.IntN(len(w.owner)))
	case n < 72:
		w.append(account.Stream(acc), account.Blocked{Policy: fmt.Sprint("policy", r.IntN(3)), Evidence: "seen"})
	case n < 77:
		w.append(account.Stream(acc), account.UnblockRequested{Reason: "r"}, account.Unblocked{})
	case n < 82 || len(w.about) == 0:
		id := uuid.NewString()
		of, event := apikey.Stream(acc, id), domain.Event(apikey.Issued{Name: "k\x00", Permission: domain.FullAccess, Hash: "h", Hint: "re_1"})
		switch r.IntN(3) {
		case 0:
			of, event = sender.Stream(acc, id), sender.Added{Name: id + ".test", Region: "eu", Selector: "s", Settings: sender.Settings{TLS: sender.TLSOpportunistic}}
		case 1:
			of, event = member.Stream(acc, id), member.Joined{Email: domain.Sealed("sealed"), Index: "i", Role: domain.MemberAdmin}
		}
		w.append(of, event)
		w.about = append(w.about, of)
	case n < 90:
		of := w.about[r.IntN(len(w.about))]
		switch of.Kind {
		case "apikey":
			w.append(of, apikey.Revoked{})
		case "member":
			w.append(of, member.Left{})
		default:
			w.append(of, []domain.Event{
				sender.Verified{},
				sender.Lapsed{Since: time.Now()},
				sender.Failed{},
				sender.Removed{},
				sender.Changed{Settings: sender.Settings{OpenTracking: true}},
				sender.Checked{Results: []sender.Result{{Record: "SPF", Name: "n", Status: sender.NotStarted}}},
				sender.Vouched{},
				sender.VerificationRequested{At: time.Now()},
			}[r.IntN(8)])
		}
	case n < 96:
		commits := make([]eventstore.Commit, 1+r.IntN(3))
		for i := range commits {
			by := w.by([]domain.ActorKind{domain.APIKey, domain.Staff}[r.IntN(2)], fmt.Sprint("key", r.IntN(3), acc))
			commits[i] = eventstore.Commit{Stream: domain.Stream{Account: acc, Kind: "access", ID: uuid.NewString()}, By: by, Events: []domain.Event{access.Answered{Route: "GET /emails", Method: "GET", Path: "/emails", Status: 200}}}
		}
		must(0, w.store.Record(w.t.Context(), eventstore.Access, acc, commits, true))(w.t)
	default:
		commits := []eventstore.Commit{{Stream: domain.Stream{Account: acc, Kind: "refusal", ID: uuid.NewString()}, By: w.by(domain.Member, "m"), Events: []domain.Event{access.Refused{Verb: "account.unblock", Code: domain.Forbidden}}}}
		must(0, w.store.Record(w.t.Context(), eventstore.Asked, acc, commits, true))(w.t)
	}
}

func (w *world) emailEvents() []domain.Event {
	return [][]domain.Event{
		{email.Prepared{Digest: "d"}, email.Attempted{Attempt: 1, Recipients: []int{0}}},
		{email.Delivered{Attempt: 1}},
		{email.Deferred{Attempt: 1}, email.Prepared{}},
		{email.Bounced{Attempt: 1}},
		{email.Scheduled{Due: time.Now().Add(time.Minute)}},
		{email.Prepared{}},
		{email.Cancelled{}},
		{email.Unresolved{}, email.Failed{Reason: "r"}},
	}[w.r.IntN(8)]
}

// database is the read models of a world, kept by the projections.
type database struct {
	pool   *pgxpool.Pool
	tables *projections.Tables
}

func (w *world) project() database {
	w.t.Helper()
	db := testenv.Postgres(w.t)
	must(0, migrations.Apply(w.t.Context(), db.Owner))(w.t)
	d := database{pool: must(projections.Connect(w.t.Context(), db.Projector))(w.t)}
	d.tables = projections.NewTables(d.pool)
	ctx, stop := context.WithCancel(w.t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = projections.NewRunner(d.pool, w.store, quiet, projections.Models...).Run(ctx)
	}()
	w.t.Cleanup(func() { stop(); <-ended; d.pool.Close() })
	return d
}

// shown is what the read models showed at a moment.
type shown struct {
	at     string            // names the moment
	rows   map[string]string // table/id → row as JSON
	emails map[string]projections.Email
	counts map[string]int // table/account
}

// look waits until the read models show everything, and takes down what they show.
func (d database) look(w *world, at string) shown {
	t := w.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, m := range projections.Models {
		for _, log := range m.Logs(w.store) {
			if head := must(w.store.Head(ctx, log))(t); head > 0 {
				if err := d.tables.Await(ctx, m.Name, log, head); err != nil {
					t.Fatal(err, must(projections.Status(t.Context(), d.pool, w.store, time.Now()))(t))
				}
			}
		}
	}
	s := shown{at: at, rows: map[string]string{}, emails: map[string]projections.Email{}, counts: map[string]int{}}
	for _, table := range []string{"accounts", "api_keys", "domains"} {
		d.rows(t, s.rows, table, "select to_jsonb(x)::text from "+table+" x")
	}
	d.rows(t, s.rows, "api_key_usage", "select to_jsonb(x)::text from (select key_id as id, * from api_key_usage) x")
	for _, a := range accounts {
		for _, e := range first(d.tables.Emails(ctx, a, projections.Page{}))(t) {
			s.emails[e.ID] = e
		}
		for _, table := range []string{"requests", "refusals"} {
			var n int
			must(0, d.pool.QueryRow(ctx, "select count(*) from "+table+" where account_id = $1", a).Scan(&n))(t)
			s.counts[table+"/"+a] = n
			s.counts[table+"/"] += n
		}
	}
	return s
}

func first[T any](v T, _ bool, err error) func(testing.TB) T { return must(v, err) }

func (d database) rows(t testing.TB, into map[string]string, table, query string, args ...any) {
	t.Helper()
	found := must(pgx.CollectRows(must(d.pool.Query(t.Context(), query, args...))(t), pgx.RowTo[string]))(t)
	for _, row := range found {
		var key struct{ ID string }
		must(0, json.Unmarshal([]byte(row), &key))(t)
		into[table+"/"+key.ID] = row
	}
}
