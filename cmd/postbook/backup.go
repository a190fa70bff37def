package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"postbook.dev/postbook/archive"
	"postbook.dev/postbook/backup"
	copied "postbook.dev/postbook/domain/backup"
	"postbook.dev/postbook/domain/kek"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/keyring"
	"postbook.dev/postbook/seal"
)

type backupCommand struct {
	Folder   string `arg:"" type:"path" help:"Folder that holds the backups, each in a folder of its own. Best on another disk."`
	WithKeys bool   `help:"Copy the keys too. Whoever has such a backup can open all of it, and sign in the platform's name."`
	Keep     int    `help:"Remove all but so many of the newest backups of this platform afterwards. 0 keeps all."`
}

// Run makes a backup, beside a running server or without one.
func (c backupCommand) Run(ctx context.Context, cfg Config, out output) error {
	begun := time.Now()
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	if _, err := os.Stat(cfg.sealPath(signingKeys)); err != nil {
		return fmt.Errorf("find the keys of the seal (a backup is made on the host that seals, which is the one with the role workers): %w", err)
	}
	keys, err := seal.OpenKeys(cfg.sealPath(signingKeys), time.Now())
	if err != nil {
		return err
	}
	rotated, err := lastRotation(ctx, store)
	if err != nil {
		return err
	}
	from := backup.Source{
		Store: store, SealDir: cfg.path(sealFolder), Keys: keys, Program: version(), Progress: out.progress,
		Made: func(m backup.Manifest, manifest []byte) error {
			if since, err := lastRotation(ctx, store); err != nil || since != rotated {
				return cmp.Or(err, errRotating)
			}
			return tellMade(ctx, store, m, manifest)
		},
	}
	held, err := openArchive(cfg)
	if err != nil {
		return err
	}
	if held != nil {
		// What has left the streams is nowhere else, and the backup names its segments.
		reached, err := archive.ReadRecord(cfg.path(archiveHeld))
		if err == nil {
			err = held.Holds(ctx, reached)
		}
		if err != nil {
			return fmt.Errorf("find what has left the streams (POSTBOOK_ARCHIVE): %w", err)
		}
	}
	from.External = func(ctx context.Context, copied []backup.Stream) ([]backup.File, error) {
		return segmentsOf(ctx, held, copied)
	}
	if c.WithKeys {
		from.Secrets = cfg.keyFiles()
	}
	m, err := backup.Make(ctx, from, c.Folder)
	if err != nil {
		return err
	}
	var removed []string
	if c.Keep > 0 {
		if removed, err = backup.Keep(c.Folder, m.Instance, c.Keep); err != nil {
			return err
		}
	}
	return out.backup(filepath.Join(c.Folder, m.Name), m, removed, time.Since(begun))
}

func (o output) backup(path string, m backup.Manifest, removed []string, took time.Duration) error {
	result := map[string]any{
		"path": path, "name": m.Name, "at": m.At, "entries": m.Entries(), "bytes": m.Bytes(), "streams": len(m.Streams), "keys": m.Keys,
		"external": len(m.External), "removed": removed, "seconds": took.Seconds(),
	}
	if printed, err := o.object(result); printed {
		return err
	}
	fmt.Printf("%s\n%d entries of %d streams, %.1f MB, in %s\n", path, m.Entries(), len(m.Streams), float64(m.Bytes())/1e6, took.Round(time.Millisecond))
	if len(m.External) > 0 {
		fmt.Printf("It needs the archive beside it: %d segments are there and not in the backup.\n", len(m.External))
	}
	for _, name := range removed {
		fmt.Printf("removed %s\n", name)
	}
	if m.Keys {
		fmt.Println("It holds the keys: whoever has it can open everything.")
	} else {
		fmt.Printf("It holds no keys. Keep copies of root.key, seal/%s and seal/%s, apart from it.\n", signingKeys, markKeyFile)
	}
	return nil
}

// errRotating says that some keysets in a copy are wrapped with a root key that is
// about to be destroyed, or was.
var errRotating = errors.New("the root key is being replaced, and no one key would open the backup: make it again once that is finished (postbook rotate kek finishes it)")

// lastRotation is the last event of the root key's life, or errRotating while it is
// being replaced.
func lastRotation(ctx context.Context, store *eventstore.Store) (uint64, error) {
	state, last, err := eventstore.Load(ctx, store, kek.Decider, kek.Stream())
	if err != nil {
		return 0, fmt.Errorf("look whether the root key is being replaced: %w", err)
	}
	if state.Open != nil {
		return 0, errRotating
	}
	return last, nil
}

// segmentsOf are the segments of an archive that hold what had left the streams
// when they were copied. What was archived since is in the copies as well.
func segmentsOf(ctx context.Context, held *archive.Archive, copied []backup.Stream) ([]backup.File, error) {
	if held == nil {
		return nil, nil
	}
	parts, err := held.Parts(ctx)
	if err != nil {
		return nil, fmt.Errorf("list what is in the archive: %w", err)
	}
	last := map[string]uint64{}
	for _, s := range copied {
		last[s.Stream] = s.Last
	}
	var files []backup.File
	for _, p := range parts {
		if p.Last <= last[p.Log] {
			files = append(files, backup.File{Name: p.Name, Bytes: p.Bytes, SHA256: p.SHA256})
		}
	}
	return files, nil
}

// tellMade puts on record that everything was copied.
func tellMade(ctx context.Context, store *eventstore.Store, m backup.Manifest, manifest []byte) error {
	made := copied.Made{Name: m.Name, Manifest: hexSum(manifest), Entries: m.Entries(), Bytes: uint64(m.Bytes()), Keys: m.Keys}
	for _, h := range m.Heads {
		made.Heads = append(made.Heads, copied.Head{Log: h.Log, Size: h.Size, Root: h.Root})
	}
	_, err := eventstore.Execute(ctx, store, copied.Decider, copied.Stream(), copied.Command(copied.Record{Authority: operator(time.Now()), Made: made}))
	if err != nil {
		return fmt.Errorf("put on record that a backup was made: %w", err)
	}
	return nil
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

const rootKeyFile = "root.key"

// keyFiles are the keys of the platform, by the names that they have in a backup.
// A root key in a KMS is in none.
func (c *Config) keyFiles() map[string]string {
	files := map[string]string{signingKeys: c.sealPath(signingKeys), markKeyFile: c.sealPath(markKeyFile)}
	if path, ok := keyring.RootFile(c.RootKey); ok {
		files[rootKeyFile] = path
	}
	return files
}

// restoringFile is in a data directory from the beginning of a restore to its end.
const restoringFile = "restoring.json"

// whole reports an error if a restore into the data directory has not ended.
func (c *Config) whole() error {
	_, err := os.Stat(c.path(restoringFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a restore that has not ended: %w", err)
	}
	return fmt.Errorf("a restore into %s has not ended: run postbook restore again, with the same backup", c.DataDir)
}
