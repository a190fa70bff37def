package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"syscall"
	"time"

	"postbook.dev/postbook/api"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/catalogue"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/seal"
)

// running is how a command finds the server of a data directory.
type running struct {
	PID         int    `json:"pid"`
	BaseURL     string `json:"base_url"`
	NATSURL     string `json:"nats_url"`
	DatabaseURL string `json:"database_url"`
	External    bool   `json:"external"` // whether the log is a cluster's, and not this process's own
}

const runningFile = "server.json"

// announce says where this process can be asked, to whoever may read the data
// directory.
func (s *server) announce() error {
	data, err := json.Marshal(running{os.Getpid(), s.baseURL(), s.store.URL(), s.owner, !s.store.Alone()})
	if err != nil {
		return err
	}
	path := s.cfg.path(runningFile)
	if err := seal.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	// The lock is what tells that this process runs: the kernel gives it up however the
	// process ends, while its number can be another's by then.
	lock, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	s.atEnd(func(context.Context) error { return errors.Join(os.Remove(path), lock.Close()) })
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil { // commands that look have it for a moment
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}

// found returns the server that runs on the data directory, if there is one.
func found(cfg Config) (running, bool) {
	var r running
	f, err := os.Open(cfg.path(runningFile))
	if err != nil {
		return r, false
	}
	defer f.Close()
	if json.NewDecoder(f).Decode(&r) != nil {
		return r, false
	}
	// A server that was killed leaves its file behind, without the lock.
	return r, errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// openLog opens the log for a command: beside a running server, or by itself.
func openLog(ctx context.Context, cfg *Config) (*eventstore.Store, error) {
	if err := cfg.settle(false); err != nil {
		return nil, err
	}
	if err := cfg.whole(); err != nil {
		return nil, err
	}
	var store *eventstore.Store
	c := eventstore.Config{Registry: catalogue.Registry(), Log: slog.New(slog.DiscardHandler), URL: cfg.NATSURL}
	c.Refused = func(ctx context.Context, of domain.Stream, command domain.Command, r *domain.Refusal) {
		api.RecordRefusal(ctx, store, of, command, r, func(err error) {
			fmt.Fprintln(os.Stderr, "The refusal is not on record:", err)
		})
	}
	if r, ok := found(*cfg); ok {
		c.URL = r.NATSURL
	}
	if _, err := os.Stat(cfg.sealPath(markKeyFile)); err == nil {
		if c.MarkKey, err = markKey(*cfg); err != nil {
			return nil, err
		}
	}
	older, err := openArchive(*cfg)
	if err != nil {
		return nil, err
	}
	if older != nil {
		c.Archive = older
	}
	if c.URL == "" {
		if _, err := os.Stat(cfg.path("log")); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("there is no log in %s: start the server first, or set POSTBOOK_DATA_DIR", cfg.DataDir)
		}
		c.Dir = cfg.path("log")
	}
	if c.Dir != "" {
		tune(ctx, toolShare)
		store, err = eventstore.Open(ctx, c) // which may have to read a large log through
		return store, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	store, err = eventstore.Open(ctx, c)
	return store, err
}
