package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"postbook.dev/postbook/seal"
)

// Checked is what is wrong with a backup; nothing is a whole one.
type Checked struct {
	Manifest Manifest `json:"-"`
	Raw      []byte   `json:"-"` // the manifest's bytes
	Findings []string `json:"findings"`
}

// Check holds the files of a backup against its manifest, and the manifest
// against its signature. Keys are those that are trusted; without any they are the
// backup's own, which whoever could change it could change too.
func Check(dir string, keys []string, progress func(done, total uint64)) (Checked, error) {
	m, raw, err := read(dir)
	if err != nil {
		return Checked{}, err
	}
	c := Checked{Manifest: m, Raw: raw}
	found := func(format string, args ...any) { c.Findings = append(c.Findings, fmt.Sprintf(format, args...)) }
	if err := checkSignature(dir, keys, raw); err != nil {
		found("%s", err)
	}
	listed := map[string]bool{ManifestFile: true, signatureFile: true}
	var done uint64
	for _, want := range m.Files {
		listed[want.Name] = true
		if !filepath.IsLocal(filepath.FromSlash(want.Name)) {
			found("the manifest lists %q, which lies outside", want.Name)
			continue
		}
		held, err := fileAt(dir, want.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			found("%s is not there", want.Name)
		case err != nil:
			return c, fmt.Errorf("backup: check %s: %w", want.Name, err)
		case held != want:
			found("%s is not the file that was written", want.Name)
		}
		done += uint64(want.Bytes)
		progress(done, uint64(m.Bytes()))
	}
	for _, s := range m.Streams {
		if !listed[s.File] {
			found("the manifest does not list the file of the stream %s", s.Stream)
		}
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err == nil && !listed[filepath.ToSlash(name)] {
			found("%s is not in the manifest", name)
		}
		return err
	})
	if err != nil {
		return c, fmt.Errorf("backup: look for files: %w", err)
	}
	return c, nil
}

func read(dir string) (Manifest, []byte, error) {
	raw, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if errors.Is(err, fs.ErrNotExist) || strings.HasSuffix(filepath.Clean(dir), partial) {
		return Manifest{}, nil, fmt.Errorf("backup: %s is no whole backup", dir)
	}
	if err != nil {
		return Manifest{}, nil, fmt.Errorf("backup: read the manifest: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, nil, fmt.Errorf("backup: read the manifest: %w", err)
	}
	if m.Version != manifestVersion {
		return m, nil, fmt.Errorf("backup: %s is of version %d, and this program reads version %d", dir, m.Version, manifestVersion)
	}
	for _, h := range m.Heads {
		if !plain(h.Log) {
			return m, nil, fmt.Errorf("backup: read the manifest: %q is no name of a log", h.Log)
		}
	}
	for _, s := range m.Streams {
		if !plain(s.Stream) || !filepath.IsLocal(filepath.FromSlash(s.File)) {
			return m, nil, fmt.Errorf("backup: read the manifest: %q in %q is no stream and file of a backup", s.Stream, s.File)
		}
	}
	return m, raw, nil
}

// plain reports whether a name is one of a file, and of nothing above or below.
func plain(name string) bool {
	return name == filepath.Base(name) && filepath.IsLocal(name) && name != "."
}

func checkSignature(dir string, keys []string, raw []byte) error {
	signed, err := os.ReadFile(filepath.Join(dir, signatureFile))
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		public, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(PublicKeys)))
		if err != nil {
			return err
		}
		keys = strings.Fields(string(public))
	}
	trusted, err := seal.ParseVerifiers(keys, nil)
	if err != nil {
		return err
	}
	return trusted.CheckDocument(ManifestFile, raw, signed)
}
