// Package arch holds the program to its structure: who may import whom, and where
// the types of other people's packages may appear.
package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "postbook.dev/postbook/"

// mayImport says which rooms each room may import, by the first folder of the
// path. Everything below internal is for the commands and for tests.
var mayImport = map[string][]string{
	"domain":      {},
	"delivery":    {},
	"migrations":  {},
	"keyring":     {"domain"},
	"eventstore":  {"domain"},
	"seal":        {},
	"notary":      {"domain", "eventstore", "seal"},
	"archive":     {"domain", "eventstore", "notary", "seal"},
	"backup":      {"eventstore", "seal"},
	"projections": {"domain", "eventstore"},
	"forensics":   {"domain", "eventstore", "projections", "seal"},
	"workers":     {"domain", "eventstore", "projections", "delivery", "keyring"},
	"api":         {"domain", "eventstore", "projections"},
	"web":         {"domain", "eventstore", "projections"},
	"internal":    {"internal", "domain"},
	"cmd":         {"backup", "domain", "eventstore", "projections", "workers", "api", "web", "delivery", "keyring", "migrations", "internal", "notary", "seal", "forensics", "archive"},
}

// onlyIn says which rooms may import a package of somebody else, by the start of
// its path.
var onlyIn = map[string][]string{
	"github.com/nats-io/":               {"eventstore"},
	"github.com/jackc/pgx":              {"projections", "migrations", "cmd", "internal"},
	"github.com/pressly/goose":          {"migrations"},
	"github.com/emersion/go-msgauth":    {"delivery"},
	"github.com/emersion/go-message":    {"delivery", "internal", "api"},
	"github.com/emersion/go-smtp":       {"delivery", "internal", "api", "cmd"},
	"github.com/ThreeDotsLabs/":         {"eventstore", "workers"},
	"github.com/alecthomas/kong":        {"cmd"},
	"github.com/resend/resend-go":       {"cmd"},
	"golang.org/x/mod/":                 {"seal"},
	"github.com/transparency-dev/":      {"seal"},
	"github.com/minio/highwayhash":      {"eventstore"},
	"github.com/minio/minio-go":         {"archive"},
	"github.com/klauspost/compress":     {"archive", "eventstore"},
	"net/smtp":                          {},
	"net/mail":                          {"delivery"},
	"golang.org/x/net/idna":             {"delivery"},
	"golang.org/x/net/html":             {"delivery"},
	"github.com/pquerna/otp":            {"api", "cmd"},
	"github.com/getkin/kin-openapi":     {},
	"github.com/santhosh-tekuri":        {"cmd"},
	"github.com/google/jsonschema-go":   {"cmd"},
	"github.com/prometheus/client":      {"cmd"},
	"github.com/rogpeppe/go-internal":   {},
	"github.com/chromedp/":              {},
	"github.com/miekg/dns":              {},
	"pgregory.net/rapid":                {},
	"golang.org/x/crypto/argon2":        {"api"},
	"github.com/nats-io/nats-server/v2": {"eventstore"},
}

type source struct {
	path string
	room string
	file *ast.File
	set  *token.FileSet
}

func sources(t *testing.T) []source {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	var all []source
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "tools" || name == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		room, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
		all = append(all, source{filepath.ToSlash(rel), room, file, set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 50 {
		t.Fatalf("found %d files only: the test looks in the wrong place", len(all))
	}
	return all
}

func isTest(path string) bool { return strings.HasSuffix(path, "_test.go") }

// Imports between rooms point one way. Tests may import more, to start real
// parts.
func TestImportsPointOneWay(t *testing.T) {
	for _, s := range sources(t) {
		if isTest(s.path) || strings.HasPrefix(s.path, "internal/testenv/") {
			continue
		}
		allowed, known := mayImport[s.room]
		if !known {
			t.Errorf("%s lies in a room that the table does not know", s.path)
			continue
		}
		for _, i := range s.file.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			ours, ok := strings.CutPrefix(imported, module)
			if !ok {
				continue
			}
			room, _, _ := strings.Cut(ours, "/")
			if room != s.room && !contains(allowed, room) {
				t.Errorf("%s imports %s: %s may import %v", s.path, imported, s.room, allowed)
			}
		}
	}
}

func TestOthersTypesStayInTheirRooms(t *testing.T) {
	for _, s := range sources(t) {
		if isTest(s.path) || strings.HasPrefix(s.path, "internal/testenv/") {
			continue
		}
		for _, i := range s.file.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			for prefix, rooms := range onlyIn {
				if strings.HasPrefix(imported, prefix) && !contains(rooms, s.room) {
					t.Errorf("%s imports %s, which belongs in %v", s.path, imported, rooms)
				}
			}
		}
	}
}

// What every aggregate decides is told in stories: given, when, then.
func TestEveryDeciderHasStories(t *testing.T) {
	decides, told := map[string]bool{}, map[string]bool{}
	for _, s := range sources(t) {
		if s.room != "domain" {
			continue
		}
		in := path.Dir(s.path)
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				decides[in] = decides[in] || !isTest(s.path) && n.Names[0].Name == "Decider"
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				told[in] = told[in] || isTest(s.path) && ok && x.Name == "domaintest" && n.Sel.Name == "Tell"
			}
			return true
		})
	}
	for in, ok := range decides {
		if ok && !told[in] {
			t.Errorf("no story is told of what %s decides", in)
		}
	}
}

// The domain is pure: no input or output, no clock, no randomness.
func TestDomainIsPure(t *testing.T) {
	forbidden := map[string]bool{"os": true, "net": true, "net/http": true, "math/rand": true, "math/rand/v2": true, "crypto/rand": true, "io/fs": true, "log": true, "log/slog": true, "database/sql": true}
	for _, s := range sources(t) {
		if s.room != "domain" || isTest(s.path) {
			continue
		}
		for _, i := range s.file.Imports {
			if path, _ := strconv.Unquote(i.Path.Value); forbidden[path] {
				t.Errorf("%s imports %s", s.path, path)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			call, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			pkg, ok := call.X.(*ast.Ident)
			if !ok {
				return true
			}
			switch pkg.Name + "." + call.Sel.Name {
			case "time.Now", "time.Since", "time.Until", "time.Sleep", "time.After", "uuid.New", "uuid.NewV7", "uuid.NewRandom", "uuid.NewString":
				t.Errorf("%s calls %s.%s", s.set.Position(n.Pos()), pkg.Name, call.Sel.Name)
			}
			return true
		})
	}
}

// Each package says once what it is for.
func TestEachPackageHasOneDocComment(t *testing.T) {
	docs := map[string]int{}
	for _, s := range sources(t) {
		if isTest(s.path) && s.room != "internal" {
			continue
		}
		dir := filepath.Dir(s.path)
		docs[dir] += 0
		if s.file.Doc != nil && !strings.HasSuffix(s.file.Name.Name, "_test") {
			docs[dir]++
		}
	}
	for dir, n := range docs {
		if n != 1 {
			t.Errorf("%s has %d package comments; it needs one", dir, n)
		}
	}
}

// Nothing in the tree names the machine that it was written on.
func TestFilesNameNoMachine(t *testing.T) {
	for _, s := range sources(t) {
		data, err := os.ReadFile(filepath.Join("../..", s.path))
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"/wor" + "k/", "/roo" + "t/"} {
			if strings.Contains(string(data), word) {
				t.Errorf("%s names %s", s.path, word)
			}
		}
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
