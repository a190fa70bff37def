package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"postbook.dev/postbook/seal"
)

type witnessCommand struct {
	Addr string   `default:"127.0.0.1:7426" help:"Address to listen at. Put TLS in front of it."`
	Dir  string   `default:"./.postbook-witness" help:"Holds the witness's key, and the newest head of each log."`
	Logs []string `sep:"none" arg:"" name:"log" help:"Public keys of the platforms whose logs it witnesses: what their public.keys hold."`
}

// Run is a witness (C2SP tlog-witness) for other people's logs, best on a machine
// that they do not control.
func (c witnessCommand) Run(ctx context.Context, out output) error {
	if _, err := seal.ParseVerifiers(c.Logs, nil); err != nil { // before a key of its own is made
		return err
	}
	keys, err := seal.OpenKeys(filepath.Join(c.Dir, "witness.key"), time.Now())
	if err != nil {
		return err
	}
	// Two that share a folder could sign two pasts of one log.
	lock, err := seal.LockFile(filepath.Join(c.Dir, ".lock"))
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("a witness runs in %s already: give this one a --dir of its own: %w", c.Dir, err)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	handler, err := seal.NewWitnessServer(c.Dir, keys.Signing(time.Now())[0], c.Logs)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", c.Addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	facts := map[string]string{"url": "http://" + listener.Addr().String(), "key": keys.Public()[0]}
	if printed, err := out.object(facts); err != nil {
		return err
	} else if !printed {
		fmt.Printf("A witness at %s. Its public key, for POSTBOOK_WITNESSES:\n  %s %s\n", facts["url"], facts["url"], facts["key"])
	}
	srv := &http.Server{Handler: handler, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(ending) // whoever asked will ask again
	})
	if err := srv.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
