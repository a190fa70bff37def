package eventstore

// The group commit. The server acknowledges a message once its bytes are
// written to the stream's newest block file. A syncer, one for each stream, then
// makes them durable: everybody who enrols before a sync begins shares it.

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
)

var errClosed = errors.New("the log was closed")

// fdatasync brings a file's bytes and size to the disk, and leaves its times.
func fdatasync(f *os.File) error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// syncer syncs one stream's block files. The first failure is final: after a failed
// fsync the kernel may have dropped the bytes, and a later success would prove nothing
// about them.
type syncer struct {
	dir   string // holds 1.blk, 2.blk, …
	fsync func(*os.File) error
	fail  func(error)

	block *os.File // the block that is synced next, owned by run; nil until the first sync
	index int      // its number: until the first sync, the newest that there was at the start

	kick  chan struct{}
	ended chan struct{}

	mu      sync.Mutex
	waiting []chan error
	stop    error // set once: what later enrolments get
}

func newSyncer(dir string, fsync func(*os.File) error, fail func(error)) *syncer {
	y := &syncer{dir: dir, fsync: fsync, fail: fail, kick: make(chan struct{}, 1), ended: make(chan struct{})}
	// What is written from now on lies in the newest block and its successors.
	// Without an answer the first sync begins at the oldest.
	if held, err := blockNumbers(y.dir); err == nil && len(held) > 0 {
		y.index = held[len(held)-1]
	}
	go y.run()
	return y
}

// enrol asks for a sync that begins after this call. The channel gets its outcome,
// once.
func (y *syncer) enrol() <-chan error {
	wait := make(chan error, 1)
	y.mu.Lock()
	if y.stop != nil {
		wait <- y.stop
		y.mu.Unlock()
		return wait
	}
	y.waiting = append(y.waiting, wait)
	y.mu.Unlock()
	y.wake()
	return wait
}

func (y *syncer) wake() {
	select {
	case y.kick <- struct{}{}:
	default:
	}
}

// close ends the goroutine after one last sync for those who wait.
func (y *syncer) close() {
	y.mu.Lock()
	if y.stop == nil {
		y.stop = errClosed
	}
	y.mu.Unlock()
	y.wake()
	<-y.ended
}

func (y *syncer) run() {
	defer close(y.ended)
	for range y.kick {
		y.mu.Lock()
		waiting, stop := y.waiting, y.stop
		y.waiting = nil
		y.mu.Unlock()
		var err error
		if len(waiting) > 0 {
			err = y.sync()
		}
		if err != nil {
			y.mu.Lock()
			y.stop, stop = err, err
			waiting = append(waiting, y.waiting...)
			y.waiting = nil
			y.mu.Unlock()
			y.fail(err)
		}
		for _, w := range waiting {
			w <- err
		}
		if stop != nil {
			if y.block != nil {
				_ = y.block.Close() // read-only: nothing can be lost
			}
			return
		}
	}
}

// sync brings everything that was written before it to the disk. A block that
// is no longer the newest was written to its end before its successor was
// created, so it is synced once more and left.
func (y *syncer) sync() error {
	if y.block == nil || !lies(y.block, y.path(y.index)) {
		if err := y.reopen(); err != nil {
			return err
		}
		if err := y.syncDir(); err != nil {
			return err
		}
	}
	for moved := false; ; moved = true {
		next, err := os.Open(y.path(y.index + 1))
		if err := y.fsync(y.block); err != nil {
			return fmt.Errorf("sync %s: %w", y.block.Name(), err)
		}
		if errors.Is(err, os.ErrNotExist) {
			if moved {
				return y.syncDir()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("open a block to sync: %w", err)
		}
		_ = y.block.Close()
		y.block, y.index = next, y.index+1
	}
}

// reopen opens the block that is synced next: the one of that number, or the
// one after it if the server has removed that. None that was written since may be
// left out, however many there are.
func (y *syncer) reopen() error {
	held, err := blockNumbers(y.dir)
	if err != nil {
		return fmt.Errorf("find the block to sync: %w", err)
	}
	if len(held) == 0 {
		return fmt.Errorf("find the block to sync: there is none in %s", y.dir)
	}
	i, _ := slices.BinarySearch(held, y.index)
	if i == len(held) {
		i = 0 // the server counts anew
	}
	f, err := os.Open(y.path(held[i]))
	if err != nil {
		return fmt.Errorf("open the block to sync: %w", err)
	}
	if y.block != nil {
		_ = y.block.Close()
	}
	y.block, y.index = f, held[i]
	return nil
}

// syncDir makes the names of the blocks durable.
func (y *syncer) syncDir() error {
	d, err := os.Open(y.dir)
	if err != nil {
		return fmt.Errorf("sync the names of blocks: %w", err)
	}
	defer d.Close()
	if err := y.fsync(d); err != nil {
		return fmt.Errorf("sync the names of blocks: %w", err)
	}
	return nil
}

func (y *syncer) path(index int) string {
	return blockPath(y.dir, index)
}
