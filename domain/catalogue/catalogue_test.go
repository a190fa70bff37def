package catalogue_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"postbook.dev/postbook/domain/catalogue"
)

var update = flag.Bool("update", false, "write golden files that are missing")

// What is in the log stays readable: for each version of each event that was ever
// published there is an example, and it is read and written as it was.
func TestPublishedEventsStayReadable(t *testing.T) {
	r := catalogue.Registry()
	current := map[string]bool{}
	for _, f := range r.Facts() {
		path := filepath.Join("testdata", fmt.Sprintf("%s.v%d.json", f.Type, f.Version))
		current[path] = true
		example := reflect.New(f.Go).Elem()
		fill(example, f.Type)
		_, _, data, err := r.Encode(example.Interface())
		if err != nil {
			t.Fatal(err)
		}
		back, err := r.Decode(f.Type, f.Version, data)
		if err != nil || !reflect.DeepEqual(back, example.Interface()) {
			t.Errorf("%s reads back as another event: %+v, %v; it was %+v", f.Type, back, err, example)
		}
		want, err := os.ReadFile(path)
		if os.IsNotExist(err) && *update {
			want = append(data, '\n')
			err = os.WriteFile(path, want, 0o644)
		}
		if err != nil {
			t.Errorf("%s has no published example: run with -update", f.Type)
			continue
		}
		if !bytes.Equal(bytes.TrimSpace(want), data) {
			t.Errorf("%s version %d is written differently than it was published:\n%s\n%s", f.Type, f.Version, want, data)
		}
	}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < len(current) {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, path := range files {
		base := strings.TrimSuffix(filepath.Base(path), ".json")
		cut := max(strings.LastIndex(base, ".v"), 0)
		name := base[:cut]
		n, err := strconv.Atoi(strings.TrimPrefix(base[cut:], ".v"))
		if err != nil {
			t.Errorf("%s is not named after an event", path)
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		event, err := r.Decode(name, n, data)
		if err != nil {
			t.Errorf("%s was published and cannot be read any more: %v", path, err)
			continue
		}
		if again, err := json.Marshal(event); current[path] && (err != nil || !bytes.Equal(again, bytes.TrimSpace(data))) {
			t.Errorf("%s loses something when it is read: %s", path, again)
		}
	}
}

// fill sets every field to something that says where it is.
func fill(v reflect.Value, name string) {
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2026, 11, 23, 12, 34, 56, 789, time.UTC)))
		return
	case uuid.UUID:
		v.Set(reflect.ValueOf(uuid.NewSHA1(uuid.NameSpaceURL, []byte(name))))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), name+"."+v.Type().Field(i).Name)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte(name))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), fmt.Sprint(name, i))
		}
	case reflect.String:
		v.SetString(name)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(len(name)))
	case reflect.Uint64:
		v.SetUint(uint64(len(name)))
	default:
		panic("an event has a field of a kind that no example is made of: " + v.Type().String())
	}
}
