package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Remove removes from a Maildir the messages of some emails, which their Message-ID
// begins with, and returns how many there were. It works beside a running inbox.
func Remove(dir string, emails map[string]bool) (int, error) {
	files, err := os.ReadDir(filepath.Join(dir, "new"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("sandbox: list: %w", err)
	}
	removed := 0
	for _, f := range files {
		path := filepath.Join(dir, "new", f.Name())
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return removed, fmt.Errorf("sandbox: read %s: %w", f.Name(), err)
		}
		id, _, _ := strings.Cut(strings.Trim(parse(raw).MessageID, "<> "), "@")
		if !emails[id] {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, fmt.Errorf("sandbox: remove %s: %w", f.Name(), err)
		}
		removed++
	}
	return removed, nil
}
