// Package backup copies a whole platform while it runs, and checks such copies.
//
// A backup is a folder: the seals of the logs, every stream that the server
// holds, and, last of all, a manifest that lists each file with its SHA-256 and is
// signed with the seal's key. What refers to something is copied before what it
// refers to, so that nothing in a backup points at what is not in it.
package backup

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

// The files of a backup.
const (
	ManifestFile  = "manifest.json"
	signatureFile = "manifest.signed"
	PublicKeys    = "seal/public.keys"
	SealFolder    = "seal"
	streamFolder  = "streams"
	KeyFolder     = "keys"

	manifestVersion = 1
	namePrefix      = "postbook-"
	partial         = ".partial"
	nameTime        = "20060102T150405.000Z"
)

// Manifest lists what a backup holds.
type Manifest struct {
	Version  int       `json:"version"`
	Name     string    `json:"name"`
	Instance string    `json:"instance"` // as it names itself in its seal
	Program  string    `json:"program"`  // version of the program that made it
	At       time.Time `json:"at"`       // when it was begun: what was acknowledged before is in it
	Ended    time.Time `json:"ended"`
	Keys     bool      `json:"keys"` // whether it holds the keys that open it
	Heads    []Head    `json:"heads"`
	Streams  []Stream  `json:"streams"`
	Files    []File    `json:"files"`
	External []File    `json:"external"` // what it needs that lies elsewhere, such as segments of an archive
}

// Head is how far a log is sealed.
type Head struct {
	Log  string    `json:"log"`
	Size int64     `json:"size"`
	Root string    `json:"root"` // base64
	At   time.Time `json:"at"`
}

// Stream is the copy of a stream.
type Stream struct {
	eventstore.StreamCopy
	File string `json:"file"`
}

// File is a file of a backup, by its path in it.
type File struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Entries is how many there are in all streams.
func (m Manifest) Entries() (n uint64) {
	for _, s := range m.Streams {
		n += s.Entries
	}
	return n
}

// Bytes is how large the backup's files are.
func (m Manifest) Bytes() (n int64) {
	for _, f := range m.Files {
		n += f.Bytes
	}
	return n
}

// Source is what is backed up.
type Source struct {
	Store   *eventstore.Store
	SealDir string
	Keys    *seal.Keys
	Secrets map[string]string // name in the backup → path, of the keys that go with it; none leaves them out
	Program string

	// External lists what lies elsewhere and is needed beside the copies of streams:
	// it is asked when these are made, so that what has left a stream is in it.
	External func(ctx context.Context, copied []Stream) ([]File, error)

	// Made is told once everything is copied, before the backup gets its name.
	Made     func(m Manifest, manifest []byte) error
	Progress func(what string) func(done, total uint64)
}

// Make makes a backup in a folder that holds backups, and returns its manifest.
// Until it is whole it has another name, and the next one removes what a process
// that was killed has left.
func Make(ctx context.Context, from Source, folder string) (Manifest, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return Manifest{}, fmt.Errorf("backup: make the folder: %w", err)
	}
	lock, err := lockFolder(folder)
	if err != nil {
		return Manifest{}, err
	}
	defer lock.Close()
	if err := removePartial(folder); err != nil {
		return Manifest{}, err
	}
	now := time.Now().UTC()
	w := writer{Source: from, Manifest: Manifest{
		Version: manifestVersion, Name: namePrefix + now.Format(nameTime), Instance: from.Keys.Instance, Program: from.Program,
		At: now, Keys: len(from.Secrets) > 0, External: []File{},
	}}
	w.dir = filepath.Join(folder, w.Name+partial)
	if err := w.write(ctx); err != nil {
		return Manifest{}, fmt.Errorf("backup: %w", errors.Join(err, os.RemoveAll(w.dir)))
	}
	if err := os.Rename(w.dir, filepath.Join(folder, w.Name)); err != nil {
		return Manifest{}, fmt.Errorf("backup: give it its name: %w", err)
	}
	return w.Manifest, seal.SyncDir(folder)
}

// lockFolder keeps two backups from removing each other's files.
func lockFolder(folder string) (*os.File, error) {
	f, err := seal.LockFile(filepath.Join(folder, ".lock"))
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("backup: another one is being made in %s: %w", folder, err)
	}
	if err != nil {
		return nil, fmt.Errorf("backup: lock the folder: %w", err)
	}
	return f, nil
}

func removePartial(folder string) error {
	left, err := fs.Glob(os.DirFS(folder), namePrefix+"*"+partial)
	if err != nil {
		return fmt.Errorf("backup: look for what was left: %w", err)
	}
	for _, name := range left {
		if err := os.RemoveAll(filepath.Join(folder, name)); err != nil {
			return fmt.Errorf("backup: remove what was left: %w", err)
		}
	}
	return nil
}

// List names the whole backups in a folder, oldest first.
func List(folder string) ([]string, error) {
	found, err := fs.Glob(os.DirFS(folder), namePrefix+"*/"+ManifestFile)
	if err != nil {
		return nil, fmt.Errorf("backup: look for backups: %w", err)
	}
	var names []string
	for _, manifest := range found {
		if name := filepath.Dir(manifest); !strings.HasSuffix(name, partial) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Keep removes all but the newest backups of an instance. What is being removed
// is no backup any more, whenever that is cut off.
func Keep(folder, instance string, newest int) (removed []string, err error) {
	names, err := List(folder)
	if err != nil {
		return nil, err
	}
	var ours []string
	for _, name := range names {
		m, _, err := read(filepath.Join(folder, name))
		if err == nil && m.Instance == instance {
			ours = append(ours, name)
		}
	}
	for _, name := range ours[:max(0, len(ours)-newest)] {
		path := filepath.Join(folder, name)
		if err := os.Rename(path, path+partial); err != nil {
			return removed, fmt.Errorf("backup: remove an old one: %w", err)
		}
		if err := os.RemoveAll(path + partial); err != nil {
			return removed, fmt.Errorf("backup: remove an old one: %w", err)
		}
		removed = append(removed, name)
	}
	return removed, nil
}

// writer is a backup under way.
type writer struct {
	Source
	Manifest
	dir string
}

func (w *writer) write(ctx context.Context) error {
	for _, sub := range []string{"", SealFolder, streamFolder} {
		if err := os.Mkdir(filepath.Join(w.dir, sub), 0o700); err != nil {
			return err
		}
	}
	if err := w.seals(); err != nil {
		return err
	}
	if err := w.streams(ctx); err != nil {
		return err
	}
	external, err := w.Source.External(ctx, w.Manifest.Streams)
	if err != nil {
		return err
	}
	w.Manifest.External = append(w.Manifest.External, external...)
	if err := w.secrets(); err != nil {
		return err
	}
	if err := w.list(); err != nil {
		return err
	}
	w.Ended = time.Now().UTC()
	manifest, err := json.MarshalIndent(w.Manifest, "", "  ")
	if err != nil {
		return err
	}
	signed, err := w.Source.Keys.SignDocument(ManifestFile, manifest, w.Ended)
	if err != nil {
		return err
	}
	if err := w.Made(w.Manifest, manifest); err != nil {
		return err
	}
	if err := seal.WriteFile(filepath.Join(w.dir, signatureFile), signed, 0o600); err != nil {
		return err
	}
	return seal.WriteFile(filepath.Join(w.dir, ManifestFile), manifest, 0o600)
}

// seals come first: entries that came after a head are only not covered yet,
// while a head that covers what is not there would be broken.
func (w *writer) seals() error {
	public := w.Source.Keys.Public()
	trusted, err := seal.ParseVerifiers(public, nil)
	if err != nil {
		return err
	}
	if err := seal.WriteFile(filepath.Join(w.dir, PublicKeys), []byte(strings.Join(public, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	for _, log := range w.Store.Logs() {
		c, err := seal.CopyLog(filepath.Join(w.SealDir, log), filepath.Join(w.dir, SealFolder, log), trusted, seal.Origin(w.Instance, log))
		if err != nil {
			return err
		}
		w.Heads = append(w.Heads, Head{log, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]), c.At})
	}
	return nil
}

// order sorts streams so that what refers comes before what it refers to. Claims
// of requests and notes of what is open point at emails, these at what the ledger
// says, all of it at content and at keys. What is not known here is referred to.
func order(streams []string) {
	rank := func(name string) int {
		switch {
		case name == eventstore.Once || name == eventstore.Timers || name == eventstore.Dead || name == "KV_open-emails":
			return 0
		case name == eventstore.Access || name == eventstore.Asked:
			return 1
		case strings.HasPrefix(name, "MAIL_"):
			return 2
		case name == eventstore.Ledger:
			return 3
		case name == eventstore.Content:
			return 4
		}
		return 5
	}
	slices.SortStableFunc(streams, func(a, b string) int { return rank(a) - rank(b) })
}

func (w *writer) streams(ctx context.Context) error {
	names, err := w.Store.Streams(ctx)
	if err != nil {
		return err
	}
	order(names)
	for _, name := range names {
		if name != filepath.Base(name) {
			return fmt.Errorf("the stream %q has no name for a file", name)
		}
		file := streamFolder + "/" + name + ".s2"
		copied, err := w.stream(ctx, name, file)
		if err != nil {
			return err
		}
		w.Manifest.Streams = append(w.Manifest.Streams, Stream{copied, file})
	}
	return nil
}

func (w *writer) stream(ctx context.Context, name, file string) (eventstore.StreamCopy, error) {
	f, err := os.OpenFile(filepath.Join(w.dir, file), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return eventstore.StreamCopy{}, err
	}
	copied, err := w.Store.CopyStream(ctx, name, f, w.Progress(name))
	return copied, errors.Join(err, f.Sync(), f.Close())
}

func (w *writer) secrets() error {
	for name, path := range w.Secrets {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("copy a key: %w", err)
		}
		if err := seal.WriteFile(filepath.Join(w.dir, KeyFolder, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// list lists the files, and brings their names to the disk.
func (w *writer) list() error {
	return filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return seal.SyncDir(path)
		}
		name, err := filepath.Rel(w.dir, path)
		if err != nil {
			return err
		}
		file, err := fileAt(w.dir, filepath.ToSlash(name))
		w.Files = append(w.Files, file)
		return err
	})
}

func fileAt(dir, name string) (File, error) {
	f, err := os.Open(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	return File{name, n, hex.EncodeToString(h.Sum(nil))}, err
}
