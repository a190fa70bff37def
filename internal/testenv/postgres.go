package testenv

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/internal/pgcluster"
)

var (
	clusterOnce sync.Once
	cluster     *pgcluster.Cluster
	clusterDir  string
	errCluster  error
	databases   atomic.Int64
)

// Main runs a package's tests, stops the cluster that they have used, and returns
// the code to exit with. A package that uses Postgres calls it from its TestMain.
func Main(m *testing.M) int {
	code := m.Run()
	if cluster != nil {
		if err := cluster.Stop(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, "stop the tests' PostgreSQL:", err)
		}
	}
	os.RemoveAll(clusterDir)
	return code
}

// Database is an empty database of a test's own.
type Database struct {
	Owner, Projector, Reader string
	name                     string
}

// Postgres makes a database in a cluster that the package's tests share.
func Postgres(t testing.TB) Database {
	t.Helper()
	clusterOnce.Do(func() {
		clusterDir, errCluster = os.MkdirTemp("", "postbook-test-")
		if errCluster == nil {
			cluster, errCluster = pgcluster.Start(context.Background(), pgcluster.Options{Dir: clusterDir})
		}
	})
	if errCluster != nil {
		t.Fatal(errCluster)
	}
	name := fmt.Sprintf("test_%d", databases.Add(1))
	if err := cluster.Provision(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	return Database{cluster.URL(name, "postbook"), cluster.URL(name, "postbook_projector"), cluster.URL(name, "postbook_reader"), name}
}

// CutDatabase ends the connections to a database and lets no new ones in, until
// back is called.
func CutDatabase(t testing.TB, d Database) (back func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), cluster.URL("postgres", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	do := func(statement string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	do("alter database " + d.name + " with allow_connections false")
	do("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1", d.name)
	return func() {
		t.Helper()
		do("alter database " + d.name + " with allow_connections true")
		conn.Close(t.Context())
	}
}
