package eventstore

// The embedded server: NATS JetStream inside this process, on a directory that
// one process at a time may use, reachable from this machine with a password.

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"golang.org/x/crypto/bcrypt"
)

const (
	serverUser = "postbook"

	// syncInterval is how long the server itself lets a written message wait for
	// the disk, when nobody waits for it. relaxedSync is that of a log whose
	// writers wait, so that the server's own syncs do not slow theirs: what is
	// left to it are records of customers' requests.
	syncInterval = 20 * time.Millisecond
	relaxedSync  = 250 * time.Millisecond

	// maxMessage bounds one message, in bytes: the server's own default.
	maxMessage = 1 << 20
	// maxPending is how much may wait in a connection, in bytes: what is read ahead of
	// a log with more partitions than most have.
	maxPending = 256 << 20

	startTimeout = 2 * time.Minute // a large log that was not closed cleanly is read through
)

type embedded struct {
	dir      string
	password string
	server   *server.Server
	lock     *os.File
}

// startServer runs a server on the directory and waits until it serves.
func startServer(c Config) (*embedded, error) {
	if c.Dir == "" {
		return nil, errors.New("eventstore: give a data directory, or the URL of a NATS server")
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("eventstore: create the data directory: %w", err)
	}
	e := &embedded{dir: c.Dir}
	if err := e.start(c); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

func (e *embedded) start(c Config) (err error) {
	if e.lock, err = lockDir(c.Dir); err != nil {
		return err
	}
	if err = wipeDeleted(c.Dir, Keysets, c.fsync); err != nil {
		return err
	}
	if e.password, err = credentials(filepath.Join(c.Dir, "credentials")); err != nil {
		return err
	}
	// The password has 256 random bits: hashing it slowly would gain nothing.
	hashed, err := bcrypt.GenerateFromPassword([]byte(e.password), bcrypt.MinCost)
	if err != nil {
		return fmt.Errorf("eventstore: hash the server's password: %w", err)
	}
	interval := syncInterval
	if c.Durability == Fsync {
		interval = relaxedSync
	}
	port := c.Port
	if port == 0 {
		port = server.RANDOM_PORT
	}
	e.server, err = server.NewServer(&server.Options{
		ServerName:             "postbook",
		Host:                   "127.0.0.1",
		Port:                   port,
		Username:               serverUser,
		Password:               string(hashed),
		NoSigs:                 true,
		DisableJetStreamBanner: true,
		MaxPayload:             maxMessage,
		MaxPending:             maxPending,
		JetStream:              true,
		StoreDir:               c.Dir,
		JetStreamMaxMemory:     64 << 20,
		JetStreamMaxStore:      1 << 60, // the disk is the limit
		SyncInterval:           interval,
	})
	if err != nil {
		return fmt.Errorf("eventstore: configure the embedded server: %w", err)
	}
	e.server.SetLoggerV2(serverLog{c.Log}, false, false, false)
	e.server.Start()
	if !e.server.ReadyForConnections(startTimeout) {
		return fmt.Errorf("eventstore: the embedded server did not start within %s; its warnings are in the log", startTimeout)
	}
	return nil
}

func (e *embedded) close() error {
	if e.server != nil {
		e.server.Shutdown()
		e.server.WaitForShutdown()
	}
	if e.lock != nil {
		return e.lock.Close() // which gives the lock up
	}
	return nil
}

func (e *embedded) url() string {
	u := url.URL{Scheme: "nats", User: url.UserPassword(serverUser, e.password), Host: e.server.Addr().String()}
	return u.String()
}

// blocks is the directory of a stream's block files.
func (e *embedded) blocks(stream string) string {
	return blocksDir(e.dir, stream)
}

// syncTree syncs the directories, and the files that describe streams. Blocks
// are left to the syncers.
func (e *embedded) syncTree(fsync func(*os.File) error) error {
	return filepath.WalkDir(filepath.Join(e.dir, server.JetStreamStoreDir), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the server has just removed it
		}
		if err != nil {
			return err
		}
		if !d.IsDir() && !strings.HasPrefix(d.Name(), "meta.") {
			return nil
		}
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.Join(fsync(f), f.Close())
	})
}

// lockDir keeps a second process from serving the same files, which would
// destroy them. The kernel gives the lock up when the process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("eventstore: lock the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("eventstore: the log in %s is in use by another process; stop it first, or give this one another data directory: %w", dir, err)
	}
	return f, nil
}

// credentials reads the server's password, or makes one that only the owner of
// the directory can read.
func credentials(path string) (string, error) {
	if held, err := os.ReadFile(path); err == nil && len(strings.TrimSpace(string(held))) >= 32 {
		return strings.TrimSpace(string(held)), nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("eventstore: read the server's credentials: %w", err)
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	password := hex.EncodeToString(secret)
	if err := os.WriteFile(path+".new", []byte(password+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("eventstore: write the server's credentials: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fmt.Errorf("eventstore: write the server's credentials: %w", err)
	}
	return password, nil
}

// serverLog passes on what the server warns of, and keeps its notices at debug
// level.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(format string, v ...any) {
	l.log.Debug("nats: " + fmt.Sprintf(format, v...))
}

func (l serverLog) Warnf(format string, v ...any) { l.log.Warn("nats: " + fmt.Sprintf(format, v...)) }

func (l serverLog) Errorf(format string, v ...any) { l.log.Error("nats: " + fmt.Sprintf(format, v...)) }

func (l serverLog) Fatalf(format string, v ...any) { l.log.Error("nats: " + fmt.Sprintf(format, v...)) }
func (l serverLog) Debugf(string, ...any)          {}
func (l serverLog) Tracef(string, ...any)          {}
