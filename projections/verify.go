package projections

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Drift is a row of a read model that the log does not explain: somebody has
// changed it by another way than the projection.
type Drift struct {
	Model  string       `json:"model"`
	Table  string       `json:"table"`
	Key    string       `json:"key"`
	Kind   DriftKind    `json:"kind"`
	Fields []Difference `json:"fields,omitempty"`
}

// DriftKind says what was done to a row.
type DriftKind string

// The kinds of drift.
const (
	Edited   DriftKind = "edited"
	Deleted  DriftKind = "deleted"
	Inserted DriftKind = "inserted"
)

// Difference is a field that is not what the log makes of it.
type Difference struct {
	Field    string          `json:"field"`
	Found    json.RawMessage `json:"found"`
	Expected json.RawMessage `json:"expected"`
}

func (d Drift) String() string {
	s := fmt.Sprintf("%s: row %s was %s", d.Table, d.Key, d.Kind)
	for _, f := range d.Fields {
		s += fmt.Sprintf("; %s is %s, and the log says %s", f.Field, f.Found, f.Expected)
	}
	return s
}

// MaxDrift bounds the rows that are listed of one table.
const MaxDrift = 1000

func verifying(m Model) string { return "verifying_" + m.Name }

// Verify compares a model with what the log makes of it, and lists the rows that
// differ. It replays the log into tables of its own, which it keeps: the next time
// it reads only what has come since, unless Anew was called. The live tables are read
// as they were at one moment, and the replay is brought to the same.
func (b *Rebuilder) Verify(ctx context.Context, m Model, progress func(done, total uint64)) ([]Drift, error) {
	found, err := b.beyond(ctx, m)
	if err != nil || len(found) > 0 {
		return found, err
	}
	oldest, err := b.oldest(ctx, m)
	if err != nil {
		return nil, err
	}
	if found, err = b.keyless(ctx, m); err != nil {
		return nil, err
	}
	err = b.alone(ctx, verifying(m), func(ctx context.Context) error {
		return b.compared(ctx, m, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, "", progress, func(tx pgx.Tx, aside *Runner) (err error) {
			for _, table := range m.Tables {
				drift, err := compare(ctx, tx, aside, m, table, oldest)
				if err != nil {
					return fmt.Errorf("compare %s: %w", table, err)
				}
				found = append(found, drift...)
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("projections: verify %s: %w", m.Name, err)
	}
	return found, nil
}

// Anew has the next verification of a model replay the whole log. The tables of the
// replay are in the same database, and whoever can edit the live ones can make the
// same edit there.
func (b *Rebuilder) Anew(ctx context.Context, m Model) error {
	err := b.alone(ctx, verifying(m), func(ctx context.Context) error { return b.dropReplay(ctx, m) })
	if err != nil {
		return fmt.Errorf("projections: verify %s anew: %w", m.Name, err)
	}
	return nil
}

func (b *Rebuilder) dropReplay(ctx context.Context, m Model) error {
	_, err := b.pool.Exec(ctx, "drop schema if exists "+verifying(m)+" cascade")
	return err
}

// beyond finds checkpoints that lie behind the end of their logs: somebody has
// moved them, and what they say is not to be believed.
func (b *Rebuilder) beyond(ctx context.Context, m Model) ([]Drift, error) {
	at, err := checkpoints(ctx, b.pool, live, m, "")
	if err != nil {
		return nil, err
	}
	var found []Drift
	for log, seq := range at {
		head, err := b.store.Head(ctx, log)
		if err != nil {
			return nil, err
		}
		if seq > head {
			found = append(found, Drift{m.Name, "checkpoints", m.Name + "/" + log, Edited, []Difference{{"seq", fmt.Append(nil, seq), fmt.Append(nil, head)}}})
		}
	}
	return found, nil
}

// primaryKey is the field of a finding about a table that has lost its primary key. Such a
// table can have two rows where there should be one.
const primaryKey = "primary key"

// keyless finds tables whose primary key is not what it was made to be.
func (b *Rebuilder) keyless(ctx context.Context, m Model) ([]Drift, error) {
	var found []Drift
	for _, table := range m.Tables {
		var has string
		err := b.pool.QueryRow(ctx, `
			select coalesce(string_agg(a.attname, ', ' order by a.attnum), '') from pg_constraint k
			join pg_attribute a on a.attrelid = k.conrelid and a.attnum = any(k.conkey)
			where k.conrelid = $1::regclass and k.contype = 'p'`, named(live, table)).Scan(&has)
		if err != nil {
			return nil, fmt.Errorf("projections: look for the primary key of %s: %w", table, err)
		}
		if has != keyOf(table) {
			found = append(found, Drift{m.Name, table, "*", Edited, []Difference{{primaryKey, fmt.Appendf(nil, "%q", has), fmt.Appendf(nil, "%q", keyOf(table))}}})
		}
	}
	return found, nil
}

// Repair puts back the rows that differ, as the log makes them, and primary keys.
func (b *Rebuilder) Repair(ctx context.Context, m Model, drift []Drift) error {
	err := b.alone(ctx, verifying(m), func(ctx context.Context) error {
		return b.whenFree(ctx, m, func() error {
			return b.compared(ctx, m, pgx.TxOptions{}, "for update", nil, func(tx pgx.Tx, _ *Runner) error {
				for _, table := range m.Tables {
					if err := repairTable(ctx, tx, m, table, drift); err != nil {
						return err
					}
				}
				return nil
			})
		})
	})
	if err != nil {
		return fmt.Errorf("projections: repair %s: %w", m.Name, err)
	}
	return nil
}

func repairTable(ctx context.Context, tx pgx.Tx, m Model, table string, drift []Drift) error {
	into, from, key := named(live, table), named(verifying(m), table), keyOf(table)
	var keys []string
	for _, d := range drift {
		if d.Table != table {
			continue
		}
		if len(d.Fields) == 1 && d.Fields[0].Field == primaryKey {
			// There may be rows with the key of others: all are put back.
			_, err := tx.Exec(ctx, "set local lock_timeout = '2s'; truncate "+into+"; alter table "+into+" drop constraint if exists "+table+"_pkey, add primary key ("+key+"); insert into "+into+" select * from "+from)
			return err
		}
		keys = append(keys, d.Key)
	}
	where := " x where x." + key + " = any($1)"
	if _, err := tx.Exec(ctx, "delete from "+into+where, keys); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "insert into "+into+" select * from "+from+where, keys)
	return err
}

// compared calls do with a transaction in which the live tables are as they were
// at one moment, and a replay that ends at the same.
func (b *Rebuilder) compared(ctx context.Context, m Model, options pgx.TxOptions, lock string, progress func(done, total uint64), do func(pgx.Tx, *Runner) error) error {
	if err := b.prepare(ctx, m, verifying(m)); err != nil {
		return err
	}
	aside, err := b.aside(ctx, m, verifying(m))
	if err != nil {
		return err
	}
	defer aside.pool.Close()
	// Most of the way is gone before the moment is fixed.
	if _, err := aside.catchUpTo(ctx, m, b, progress); err != nil {
		return err
	}
	return pgx.BeginTxFunc(ctx, b.pool, options, func(tx pgx.Tx) error {
		// Before the first look fixes the moment: a model that is built again cannot
		// take the place of one that is being compared.
		tables := make([]string, len(m.Tables))
		for n, table := range m.Tables {
			tables[n] = named(live, table)
		}
		if _, err := tx.Exec(ctx, "lock table "+strings.Join(tables, ", ")+" in access share mode"); err != nil {
			return err
		}
		heads, err := checkpoints(ctx, tx, live, m, lock)
		if err != nil {
			return err
		}
		if err := aside.reach(ctx, m, heads, nil); err != nil {
			return err
		}
		at, err := checkpoints(ctx, aside.pool, verifying(m), m, "")
		if err != nil {
			return err
		}
		if !maps.Equal(at, heads) {
			return errAhead
		}
		return do(tx, aside)
	})
}

// errAhead says that the live model was put back behind what was replayed. The
// next try begins anew.
var errAhead = errors.New("projections: the model was put back while it was verified: try again")

// catchUpTo replays up to where the live model is. A replay that is ahead of it
// begins anew.
func (r *Runner) catchUpTo(ctx context.Context, m Model, b *Rebuilder, progress func(done, total uint64)) (map[string]uint64, error) {
	heads, err := checkpoints(ctx, b.pool, live, m, "")
	if err != nil {
		return nil, err
	}
	at, err := checkpoints(ctx, r.pool, verifying(m), m, "")
	if err != nil {
		return nil, err
	}
	var total uint64
	for _, head := range heads {
		total += head
	}
	for log := range at {
		if at[log] > heads[log] {
			if err := b.dropReplay(ctx, m); err != nil {
				return nil, err
			}
			if err := b.prepare(ctx, m, verifying(m)); err != nil {
				return nil, err
			}
			return r.catchUpTo(ctx, m, b, progress)
		}
	}
	return heads, r.reach(ctx, m, heads, func(done uint64) {
		if progress != nil {
			progress(done, total)
		}
	})
}

// querier is a pool, or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// checkpoints are how far a model in a schema has read each log.
func checkpoints(ctx context.Context, q querier, schema string, m Model, lock string) (map[string]uint64, error) {
	rows, err := q.Query(ctx, "select log, seq from "+named(schema, "checkpoints")+" where model = $1 order by log "+lock, m.Name)
	if err != nil {
		return nil, fmt.Errorf("projections: read the checkpoints of %s: %w", m.Name, err)
	}
	at := map[string]uint64{}
	var log string
	var seq uint64
	_, err = pgx.ForEachRow(rows, []any{&log, &seq}, func() error {
		at[log] = seq
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("projections: read the checkpoints of %s: %w", m.Name, err)
	}
	return at, nil
}

// settled is how much later than the oldest entry of a log a row is, of which one can be
// sure that its entry is still there: rows have their writers' time, and entries the log's.
const settled = time.Hour

// oldest is when the oldest entry of a model's logs was recorded, and zero if none was
// forgotten.
func (b *Rebuilder) oldest(ctx context.Context, m Model) (time.Time, error) {
	var at time.Time
	if len(m.ages) == 0 {
		return at, nil
	}
	for _, log := range m.Logs(b.store) {
		s, err := b.store.Stats(ctx, log)
		if err != nil {
			return at, err
		}
		if s.First > 1 && s.From.After(at) {
			at = s.From
		}
	}
	return at, nil
}

// Forget deletes the rows of entries that the log no longer has.
func (b *Rebuilder) Forget(ctx context.Context, m Model) error {
	at, err := b.oldest(ctx, m)
	if err != nil || at.IsZero() {
		return err
	}
	for table, column := range m.ages {
		if _, err := b.pool.Exec(ctx, "delete from "+named(live, table)+" where "+column+" < $1", at.Add(-settled)); err != nil {
			return fmt.Errorf("projections: forget old rows of %s: %w", table, err)
		}
	}
	return nil
}

// buckets is how many parts of a table are compared by their hashes alone.
const buckets = 1024

// keyOf is the column that names the rows of a table. The table itself is not asked:
// whoever edits rows could have dropped its key before.
func keyOf(table string) string {
	if table == "api_key_usage" {
		return "key_id"
	}
	return "id"
}

// hashesAtOnce bounds the rows whose hashes are in memory at a time.
const hashesAtOnce = 100_000

// compare finds the rows in which a live table differs from its replay. Parts of
// them are compared by the sum of their rows' hashes under a seed that nobody can
// know before, so that a row cannot be made to fit; of parts that differ the rows'
// hashes are, and of rows that differ the fields. However many differ, memory is
// bounded.
// Rows from before what the log still has are passed over.
func compare(ctx context.Context, tx pgx.Tx, aside *Runner, m Model, table string, oldest time.Time) ([]Drift, error) {
	key := "x." + keyOf(table)
	where := "true"
	if column := m.ages[table]; column != "" && !oldest.IsZero() {
		where = "x." + column + " >= '" + oldest.Add(settled).UTC().Format(time.RFC3339Nano) + "'"
	}
	c := comparison{where: where, key: key, bucket: fmt.Sprintf("(hashtextextended(%s, 0) & %d)", key, buckets-1), seed: rand.Int64()}
	found, err := c.parts(ctx, tx, named(live, table))
	if err != nil {
		return nil, err
	}
	expected, err := c.parts(ctx, aside.pool, named(verifying(m), table))
	if err != nil {
		return nil, err
	}
	var keys []string
	var some []int64
	rows := 0
	for n := range int64(buckets) {
		if found[n] != expected[n] {
			some = append(some, n)
			rows += found[n].rows + expected[n].rows
		}
		if len(some) == 0 || rows < hashesAtOnce && n < buckets-1 {
			continue
		}
		have, err := c.rows(ctx, tx, named(live, table), some)
		if err != nil {
			return nil, err
		}
		want, err := c.rows(ctx, aside.pool, named(verifying(m), table), some)
		if err != nil {
			return nil, err
		}
		if keys = append(keys, differing(have, want)...); len(keys) >= MaxDrift {
			keys = keys[:MaxDrift]
			break
		}
		some, rows = nil, 0
	}
	if len(keys) == 0 {
		return nil, nil
	}
	liveRows, err := c.fields(ctx, tx, named(live, table), keys)
	if err != nil {
		return nil, err
	}
	replayed, err := c.fields(ctx, aside.pool, named(verifying(m), table), keys)
	if err != nil {
		return nil, err
	}
	return differences(m, table, liveRows, replayed), nil
}

// comparison is how the rows of a table are compared.
type comparison struct {
	where, key, bucket string // expressions, of a row x
	seed               int64
}

// part is what the rows of a bucket come to.
type part struct {
	rows int
	sum  string
}

func (c comparison) parts(ctx context.Context, q querier, table string) (map[int64]part, error) {
	rows, err := q.Query(ctx, "select "+c.bucket+", count(*), sum(hashtextextended(x::text, $1))::text from "+table+" x where "+c.where+" group by 1", c.seed)
	if err != nil {
		return nil, err
	}
	of := map[int64]part{}
	var n int64
	var p part
	_, err = pgx.ForEachRow(rows, []any{&n, &p.rows, &p.sum}, func() error {
		of[n] = p
		return nil
	})
	return of, err
}

// rows are the hashes of the rows of some buckets, by their keys.
func (c comparison) rows(ctx context.Context, q querier, table string, some []int64) (map[string]int64, error) {
	rows, err := q.Query(ctx, "select "+c.key+", hashtextextended(x::text, $1) from "+table+" x where "+c.where+" and "+c.bucket+" = any($2)", c.seed, some)
	if err != nil {
		return nil, err
	}
	of := map[string]int64{}
	var k string
	var hash int64
	_, err = pgx.ForEachRow(rows, []any{&k, &hash}, func() error {
		of[k] = hash
		return nil
	})
	return of, err
}

// differing are the keys of rows that are not in both, or not the same.
func differing(have, want map[string]int64) []string {
	var keys []string
	for k, hash := range have {
		if expected, ok := want[k]; !ok || expected != hash {
			keys = append(keys, k)
		}
	}
	for k := range want {
		if _, ok := have[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// fields are the rows of some keys, field by field.
func (c comparison) fields(ctx context.Context, q querier, table string, keys []string) (map[string]map[string]json.RawMessage, error) {
	rows, err := q.Query(ctx, "select "+c.key+", to_jsonb(x) from "+table+" x where "+c.where+" and "+c.key+" = any($1)", keys)
	if err != nil {
		return nil, err
	}
	of := map[string]map[string]json.RawMessage{}
	var k string
	var row []byte
	_, err = pgx.ForEachRow(rows, []any{&k, &row}, func() error {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(row, &fields); err != nil {
			return err
		}
		of[k] = fields
		return nil
	})
	return of, err
}

func differences(m Model, table string, found, expected map[string]map[string]json.RawMessage) []Drift {
	keys := slices.Collect(maps.Keys(expected))
	for k := range found {
		if _, both := expected[k]; !both {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	var all []Drift
	for _, k := range keys {
		if len(all) == MaxDrift {
			break
		}
		d := Drift{Model: m.Name, Table: table, Key: k}
		switch have, want := found[k], expected[k]; {
		case have == nil:
			d.Kind = Deleted
		case want == nil:
			d.Kind = Inserted
		case !reflect.DeepEqual(have, want):
			d.Kind = Edited
			for _, field := range slices.Sorted(maps.Keys(want)) {
				if string(have[field]) != string(want[field]) {
					d.Fields = append(d.Fields, Difference{field, have[field], want[field]})
				}
			}
		default:
			continue
		}
		all = append(all, d)
	}
	return all
}
