package main

import (
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"postbook.dev/postbook/internal/testenv"
)

// In a database elsewhere too, what reads may only read, and what projects may make no
// tables: the sessions have given up the owner's rights.
func TestADatabaseElsewhereIsUsedWithNarrowRoles(t *testing.T) {
	t.Parallel()
	database := testenv.Postgres(t)
	i := launch(t, "POSTBOOK_DATABASE_URL="+database.Owner)
	i.lastEvent(i.ask("POST", "/emails", hello("one@rcpt.test")).id(t), "delivered")
	if strings.Contains(i.output.String(), "all rights of its owner") {
		t.Fatalf("the roles are not taken on:\n%s", i.output)
	}
	owner, err := pgx.Connect(t.Context(), database.Owner)
	if err != nil {
		t.Fatal(err)
	}
	defer owner.Close(t.Context())
	for role, refused := range map[string][]string{
		"postbook_reader":    {"update accounts set blocked = true", "delete from emails", "create table x ()"},
		"postbook_projector": {"create table x ()", "drop table emails"},
	} {
		if _, err := owner.Exec(t.Context(), "set role "+role); err != nil {
			t.Fatal(err)
		}
		for _, statement := range refused {
			if _, err := owner.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), "42501") {
				t.Errorf("%s may %s: %v", role, statement, err)
			}
		}
		if _, err := owner.Exec(t.Context(), "reset role"); err != nil {
			t.Fatal(err)
		}
	}
}

// A process answers for its roles alone: a console that people reach from afar is no
// way to the API. Whether it is well, any process says.
func TestAProcessServesItsRolesAlone(t *testing.T) {
	t.Parallel()
	for roles, want := range map[string]map[string]int{
		"workers,projections,console": {"/health": 200, "/console/enter": 200, "/emails": 404, "/staff/accounts/x": 404},
		"workers,projections":         {"/health": 200, "/console/enter": 404, "/emails": 404},
		"api":                         {"/health": 200, "/console/enter": 404, "/logs": 200},
	} {
		i := launch(t, "POSTBOOK_ROLES="+roles)
		for path, status := range want {
			if r := i.ask("GET", path, nil); r.status != status {
				t.Errorf("%s: %s answers %s", roles, path, r)
			}
		}
	}
}
