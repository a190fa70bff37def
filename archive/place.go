package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"postbook.dev/postbook/seal"
)

// Place is where segments lie: a directory, or a bucket. Names are paths with
// slashes.
type Place interface {
	// Put keeps an object, whole and durably when it returns. It replaces one of
	// the same name.
	Put(ctx context.Context, name string, data []byte) error
	// Get reads n bytes of an object from an offset on, or as many as there are. It
	// is fs.ErrNotExist if there is no such object.
	Get(ctx context.Context, name string, off, n int64) ([]byte, error)
	// List lists the objects whose names begin with a prefix that ends with a
	// slash, or all, in the order of their names.
	List(ctx context.Context, prefix string) ([]Object, error)
	// String names the place, without secrets.
	String() string
}

// Object is one that a place has.
type Object struct {
	Name string
	Size int64
}

// Open finds a place by its name: a path, file:///path, or
// s3://bucket/prefix?endpoint=HOST:PORT&region=…&insecure=true. The credentials of a
// bucket come from the environment, as AWS's own programs take them.
func Open(text string) (Place, error) {
	if strings.HasPrefix(text, "s3://") {
		return openBucket(text)
	}
	if scheme, _, ok := strings.Cut(text, "://"); ok && scheme != "file" {
		return nil, fmt.Errorf("archive: %q is neither a path, nor file:///…, nor s3://…", text)
	}
	dir, err := filepath.Abs(strings.TrimPrefix(text, "file://"))
	if err != nil {
		return nil, fmt.Errorf("archive: find the place %q: %w", text, err)
	}
	return directory(dir), nil
}

// directory is a place on a file system.
type directory string

// unfinished is the name of a file that is being written, in each folder. One
// process of a host writes at a time.
func unfinished() string { return ".unfinished-" + host() }

func (d directory) String() string { return string(d) }

func (d directory) path(name string) string {
	return filepath.Join(string(d), filepath.FromSlash(name))
}

func (d directory) Put(_ context.Context, name string, data []byte) error {
	if err := d.put(name, data); err != nil {
		return fmt.Errorf("archive: write %s: %w", name, err)
	}
	return nil
}

// put writes beside, syncs, renames, and syncs the names.
func (d directory) put(name string, data []byte) error {
	folder := filepath.Dir(d.path(name))
	if err := d.make(path.Dir(name)); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(folder, unfinished()), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), d.path(name)); err != nil {
		return err
	}
	return seal.SyncDir(folder)
}

// make makes a folder and those above it, each durable before the next.
func (d directory) make(folder string) error {
	if _, err := os.Stat(d.path(folder)); err == nil {
		return nil
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	at := string(d)
	for _, step := range strings.Split(folder, "/") {
		if err := os.Mkdir(filepath.Join(at, step), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := seal.SyncDir(at); err != nil {
			return err
		}
		at = filepath.Join(at, step)
	}
	return nil
}

func (d directory) Get(_ context.Context, name string, off, n int64) ([]byte, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, fmt.Errorf("archive: read %s: %w", name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("archive: read %s: %w", name, err)
	}
	data := make([]byte, max(0, min(n, info.Size()-off)))
	if _, err := io.ReadFull(io.NewSectionReader(f, off, n), data); err != nil {
		return nil, fmt.Errorf("archive: read %s: %w", name, err)
	}
	return data, nil
}

func (d directory) List(ctx context.Context, prefix string) ([]Object, error) {
	var all []Object
	err := filepath.WalkDir(d.path(prefix), func(file string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // nothing was written yet
		}
		if err != nil || e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(string(d), file)
		all = append(all, Object{filepath.ToSlash(name), info.Size()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("archive: list %s: %w", d, err)
	}
	slices.SortFunc(all, func(a, b Object) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}
