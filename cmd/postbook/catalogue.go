package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/google/uuid"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/catalogue"
)

type catalogueCommand struct {
	Dir   string `default:"docs" help:"Directory of the documentation."`
	Check bool   `help:"Write nothing; fail if a file would change."`
}

// Run writes docs/events.md and one JSON Schema for each version of each event.
// A schema that was published is never written again: if it would differ, the
// event has changed its meaning and needs a new version.
func (c catalogueCommand) Run() error {
	facts := catalogue.Registry().Facts()
	page, err := catalogueFiles(facts)
	if err != nil {
		return err
	}
	for name, want := range page {
		path := filepath.Join(c.Dir, name)
		have, err := os.ReadFile(path)
		if err == nil && bytes.Equal(have, want) {
			continue
		}
		if err == nil && strings.HasSuffix(name, ".json") {
			return fmt.Errorf("%s was published and would change: give the event a new version, with a step up from the old one", path)
		}
		if c.Check {
			return fmt.Errorf("%s is not up to date: run `make generate`", path)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, want, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func catalogueFiles(facts []domain.Fact) (map[string][]byte, error) {
	files := map[string][]byte{}
	var md strings.Builder
	md.WriteString("# Events\n\nEvery fact that the log can hold. Made from the catalogue by `make generate`; CI holds it to what was published.\n\n" +
		"Fields marked *sealed* are ciphertext. Each event is a CloudEvent; `data` is what is described here.\n")
	kind := ""
	for _, f := range facts {
		if k, _, _ := strings.Cut(f.Type, "."); k != kind {
			kind = k
			fmt.Fprintf(&md, "\n## %s\n", kind)
		}
		fmt.Fprintf(&md, "\n### %s, version %d\n%s\n", f.Type, f.Version, f.Doc)
		if rows := fieldRows(f.Go, ""); len(rows) > 0 {
			md.WriteString("\n| field | type |\n|---|---|\n")
			for _, r := range rows {
				fmt.Fprintf(&md, "| `%s` | %s |\n", r[0], r[1])
			}
		}
		schema, err := jsonschema.ForType(f.Go, &jsonschema.ForOptions{TypeSchemas: map[reflect.Type]*jsonschema.Schema{
			reflect.TypeFor[domain.Sealed](): {Type: "string", ContentEncoding: "base64", Description: "sealed"},
			reflect.TypeFor[[]byte]():        {Type: "string", ContentEncoding: "base64"},
			reflect.TypeFor[uuid.UUID]():     {Type: "string", Format: "uuid"},
			reflect.TypeFor[time.Time]():     {Type: "string", Format: "date-time"},
		}})
		if err != nil {
			return nil, fmt.Errorf("schema of %s: %w", f.Type, err)
		}
		schema.ID = fmt.Sprintf("https://postbook.dev/schemas/%s/v%d", f.Type, f.Version)
		schema.Title, schema.Description = f.Type, f.Doc
		data, err := json.MarshalIndent(schema, "", "  ")
		if err != nil {
			return nil, err
		}
		files[fmt.Sprintf("schemas/%s/v%d.json", f.Type, f.Version)] = append(data, '\n')
	}
	files["events.md"] = []byte(md.String())
	return files, nil
}

// fieldRows lists the fields of an event as its JSON has them.
func fieldRows(t reflect.Type, prefix string) [][2]string {
	var rows [][2]string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" {
			rows = append(rows, fieldRows(f.Type, prefix)...)
			continue
		}
		if name == "-" || !f.IsExported() {
			continue
		}
		ft := f.Type
		list := ""
		if ft.Kind() == reflect.Slice && ft != reflect.TypeFor[domain.Sealed]() && ft.Elem().Kind() != reflect.Uint8 {
			ft, list = ft.Elem(), "[]"
		}
		if ft.Kind() == reflect.Struct && ft.PkgPath() != "time" {
			rows = append(rows, fieldRows(ft, prefix+name+list+".")...)
			continue
		}
		rows = append(rows, [2]string{prefix + name + list, typeWord(ft)})
	}
	return rows
}

func typeWord(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[domain.Sealed]():
		return "*sealed*"
	case reflect.TypeFor[time.Time]():
		return "time"
	case reflect.TypeFor[time.Duration]():
		return "nanoseconds"
	case reflect.TypeFor[uuid.UUID]():
		return "UUID"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "bytes, base64"
	default:
		return "number"
	}
}
