package projections

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Marks is what PostgreSQL counts of a model's tables beside what the projection has
// counted itself. It tells cheaply that somebody else may have written to them, which
// only a verification can show: whoever owns the database can set counters back.
type Marks struct {
	files   string // of the tables: emptying one, or putting another in its place, gives it a new one
	foreign int64  // rows that were written, less those that the projection wrote
}

// Marks are read several times, because a batch of the projection counts a moment
// after it is there.
const (
	readings    = 3
	readingsTry = 30
	readingGap  = 20 * time.Millisecond
)

// Marks reads the marks of a model. As long as they stay the same, nobody but the
// projection has written to the tables; they may differ for other reasons, such as
// a crash of the database.
func (b *Rebuilder) Marks(ctx context.Context, m Model) (Marks, error) {
	var all []Marks
	for range readingsTry {
		before, err := b.written(ctx, m)
		if err != nil {
			return Marks{}, err
		}
		now, err := b.counted(ctx, m)
		if err != nil {
			return Marks{}, err
		}
		after, err := b.written(ctx, m)
		if err != nil {
			return Marks{}, err
		}
		if before == after {
			now.foreign -= after
			all = append(all, now)
		}
		if len(all) == readings {
			break
		}
		select {
		case <-time.After(readingGap):
		case <-ctx.Done():
			return Marks{}, ctx.Err()
		}
	}
	if len(all) == 0 {
		return Marks{}, fmt.Errorf("projections: the tables of %s are written to without a pause", m.Name)
	}
	// One that is less was read between a commit and its count.
	most := all[0]
	for _, one := range all[1:] {
		if one.foreign > most.foreign {
			most = one
		}
	}
	return most, nil
}

// written is how many rows the projection says that it has written.
func (b *Rebuilder) written(ctx context.Context, m Model) (rows int64, err error) {
	err = b.pool.QueryRow(ctx, "select coalesce(sum(written), 0)::bigint from public.checkpoints where model = $1", m.Name).Scan(&rows)
	if err != nil {
		return 0, fmt.Errorf("projections: count what %s has written: %w", m.Name, err)
	}
	return rows, nil
}

// counted is what PostgreSQL says was written.
func (b *Rebuilder) counted(ctx context.Context, m Model) (now Marks, err error) {
	err = b.pool.QueryRow(ctx, `
		select coalesce(string_agg(c.oid || '/' || pg_relation_filenode(c.oid), ' ' order by c.oid), ''),
		       coalesce(sum(pg_stat_get_tuples_inserted(c.oid) + pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid)), 0)::bigint
		from pg_class c where c.relnamespace = 'public'::regnamespace and c.relname = any($1)`, m.Tables).Scan(&now.files, &now.foreign)
	if err != nil {
		return now, fmt.Errorf("projections: count what was written to %s: %w", m.Name, err)
	}
	return now, nil
}

// ToReplay is how many entries a verification of a model has to read first, of how many
// there are: all, unless there was one before.
func (b *Rebuilder) ToReplay(ctx context.Context, m Model) (left, all uint64, err error) {
	at := map[string]uint64{}
	var begun bool
	if err := b.pool.QueryRow(ctx, "select to_regclass($1) is not null", named(verifying(m), "checkpoints")).Scan(&begun); err != nil {
		return 0, 0, fmt.Errorf("projections: look for an earlier verification of %s: %w", m.Name, err)
	}
	if begun {
		if at, err = checkpoints(ctx, b.pool, verifying(m), m, ""); err != nil {
			return 0, 0, err
		}
	}
	for _, log := range m.Logs(b.store) {
		head, err := b.store.Head(ctx, log)
		if err != nil {
			return 0, 0, err
		}
		left, all = left+head-min(at[log], head), all+head
	}
	return left, all, nil
}

// counting is a transaction that counts the rows it writes.
type counting struct {
	pgx.Tx
	rows int64
}

// Exec makes a change.
func (c *counting) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	tag, err := c.Tx.Exec(ctx, sql, args...)
	c.rows += tag.RowsAffected()
	return tag, err
}

// CopyFrom copies rows in.
func (c *counting) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, from pgx.CopyFromSource) (int64, error) {
	n, err := c.Tx.CopyFrom(ctx, table, columns, from)
	c.rows += n
	return n, err
}

// flush has the server count what a transaction wrote as soon as it ends, not up to
// a second later. PostgreSQL can be told so since version 15.
func flush(conn *pgx.Conn) string {
	version, _, _ := strings.Cut(conn.PgConn().ParameterStatus("server_version"), ".")
	if len(version) < 2 || version < "15" {
		return ""
	}
	return " returning pg_stat_force_next_flush()"
}
