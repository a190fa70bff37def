package main

import (
	"os"
	"path/filepath"
	"testing"

	"postbook.dev/postbook/domain/catalogue"
)

// The published catalogue is what the program records: docs/events.md is up to
// date, and no schema of an event version differs from the published one.
func TestPublishedCatalogueIsKept(t *testing.T) {
	if err := (catalogueCommand{Dir: "../../docs", Check: true}).Run(); err != nil {
		t.Error(err)
	}
}

// A schema that was published is never changed or taken away.
func TestAPublishedSchemaCannotChange(t *testing.T) {
	dir := t.TempDir()
	if err := (catalogueCommand{Dir: dir}).Run(); err != nil {
		t.Fatal(err)
	}
	schemas, err := filepath.Glob(filepath.Join(dir, "schemas", "*", "*.json"))
	if err != nil || len(schemas) < len(catalogue.Registry().Facts()) {
		t.Fatalf("%d schemas, %v", len(schemas), err)
	}
	if err := os.WriteFile(schemas[0], []byte(`{"type":"object"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (catalogueCommand{Dir: dir}).Run(); err == nil {
		t.Error("a published schema was overwritten")
	}
}
