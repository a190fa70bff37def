package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"postbook.dev/postbook/archive"
	"postbook.dev/postbook/domain"
	sealed "postbook.dev/postbook/domain/seal"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/notary"
	"postbook.dev/postbook/seal"
)

// What lies in the folder of the seal, beside a folder for each log.
const (
	sealFolder     = "seal"
	signingKeys    = "signing.keys" // secret, and apart from the keys of the data
	publicKeys     = "public.keys"  // for everybody
	markKeyFile    = "mark.key"     // secret: shows that an entry is this platform's own
	markKeyLength  = 32
	witnessTimeout = 10 * time.Second
)

func (c *Config) sealPath(name string) string { return filepath.Join(c.path(sealFolder), name) }

// markKey is what entries are marked with. It is made when there is none.
func markKey(cfg Config) ([]byte, error) {
	path := cfg.sealPath(markKeyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, markKeyLength)
		_, _ = rand.Read(key) // never fails
		text = []byte(hex.EncodeToString(key) + "\n")
		err = seal.WriteFile(path, text, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("open the key that marks entries: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != markKeyLength {
		return nil, fmt.Errorf("%s does not hold %d bytes in hex", path, markKeyLength)
	}
	return key, nil
}

func openSealKeys(cfg Config) (*seal.Keys, error) {
	keys, err := seal.OpenKeys(cfg.sealPath(signingKeys), time.Now())
	if err != nil {
		return nil, err
	}
	public := strings.Join(keys.Public(), "\n") + "\n"
	return keys, seal.WriteFile(cfg.sealPath(publicKeys), []byte(public), 0o644)
}

// openNotary makes the notary, if this process is to seal.
func (s *server) openNotary(ctx context.Context) error {
	if !s.cfg.runs(roleWorkers) {
		return nil
	}
	lock, err := lockSeal(s.cfg)
	if err != nil {
		return err
	}
	s.atEnd(func(context.Context) error { return lock.Close() })
	if !s.store.Alone() {
		// The first process of a cluster may make the keys; the others have them from it.
		if err := s.checkIdentity(ctx, "signing keys", filepath.Base(signingKeys), s.sealInstance); err != nil {
			return err
		}
	}
	keys, err := openSealKeys(s.cfg)
	if err != nil {
		return err
	}
	c := notary.Config{
		Store: s.store, Dir: s.cfg.path(sealFolder), Keys: keys, MarkKey: s.markKey, Now: time.Now, Log: s.log, Found: s.sealBroken,
	}
	if !s.store.Alone() {
		if c.Heads, err = s.store.Bucket(ctx, headsBucket); err != nil {
			return err
		}
	}
	if c.Witnesses, err = s.cfg.witnesses(); err != nil {
		return err
	}
	for _, text := range s.cfg.SealCopies {
		p, err := parsePlace(text)
		if err != nil {
			return fmt.Errorf("POSTBOOK_SEAL_COPIES: %w", err)
		}
		c.Copies = append(c.Copies, p)
	}
	s.notary = notary.New(c)
	return s.notary.Begin()
}

// witnesses are those that are shown the heads of the seal.
func (c *Config) witnesses() ([]seal.Witness, error) {
	var all []seal.Witness
	for _, text := range c.Witnesses {
		address, key, _ := strings.Cut(strings.TrimSpace(text), " ")
		w, err := seal.NewWitness(address, strings.TrimSpace(key), &http.Client{Timeout: witnessTimeout})
		if err != nil {
			return nil, fmt.Errorf("POSTBOOK_WITNESSES: %w", err)
		}
		all = append(all, w)
	}
	return all, nil
}

// parsePlace finds where heads of the seal are left: a folder, an address, or a bucket.
func parsePlace(text string) (notary.Place, error) {
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, "s3://") {
		return notary.ParsePlace(text)
	}
	bucket, err := archive.Open(text)
	if err != nil {
		return nil, err
	}
	return bucketOfHeads{bucket}, nil
}

// bucketOfHeads keeps heads as objects.
type bucketOfHeads struct{ archive.Place }

// maxHead bounds a head with its cosignatures.
const maxHead = 64 << 10

// Put implements notary.Place.
func (b bucketOfHeads) Put(ctx context.Context, log string, head []byte) error {
	return b.Place.Put(ctx, notary.HeadName(log), head)
}

// Get implements notary.Place.
func (b bucketOfHeads) Get(ctx context.Context, log string) ([]byte, error) {
	head, err := b.Place.Get(ctx, notary.HeadName(log), 0, maxHead)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return head, err
}

// headsBucket holds the newest head of each log that several processes seal.
const headsBucket = "seal-heads"

// lockSeal keeps two processes from sealing in one folder.
func lockSeal(cfg Config) (*os.File, error) {
	if err := os.MkdirAll(cfg.path(sealFolder), 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the seal: %w", err)
	}
	f, err := seal.LockFile(cfg.sealPath("lock"))
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("the seal in %s is kept by another process: give each process with the role workers a data directory of its own: %w", cfg.path(sealFolder), err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the seal: %w", err)
	}
	return f, nil
}

func (s *server) sealInstance() (string, error) {
	keys, err := openSealKeys(s.cfg)
	if err != nil {
		return "", err
	}
	return keys.Instance, nil
}

// checkIdentity refuses to start a process of a cluster with another key than the
// others have. The first to come says which key that is.
func (s *server) checkIdentity(ctx context.Context, what, file string, mine func() (string, error)) error {
	bucket, err := s.store.Bucket(ctx, "identity")
	if err != nil {
		return err
	}
	key := strings.ReplaceAll(what, " ", "-")
	held, _, err := bucket.Get(ctx, key)
	if errors.Is(err, eventstore.ErrNoEntry) {
		name, err := mine()
		if err != nil {
			return err
		}
		if _, err = bucket.Update(ctx, key, []byte(name), 0); !errors.Is(err, eventstore.ErrConflict) {
			return err
		}
		if held, _, err = bucket.Get(ctx, key); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if _, err := os.Stat(s.cfg.sealPath(file)); err == nil {
		if name, err := mine(); err != nil || name == string(held) {
			return err
		}
	}
	return fmt.Errorf("the %s in %s are not those of the other processes of this log: copy %s from one of them", what, s.cfg.path(sealFolder), file)
}

func (s *server) startNotary(ctx context.Context, group *errgroup.Group) {
	if s.notary == nil {
		return
	}
	group.Go(func() error {
		// Entries that came before the keys were told of are sealed too.
		if err := s.tellKeys(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("the key that signs the seal is not on record", "error", err)
		}
		if err := tellPartitions(ctx, s.store, s.store.Epochs()); err != nil && ctx.Err() == nil {
			s.log.Error("a change of the number of partitions is not on record", "error", err)
		}
		return s.notary.Run(ctx)
	})
}

// system is the authority of a part of this system.
func system(now time.Time, part string) domain.Authority {
	id := uuid.Must(uuid.NewV7())
	return domain.Authority{
		Actor: domain.Actor{Kind: domain.System, ID: part}, Account: domain.Platform,
		Via: domain.ViaWorker, Auth: domain.Internal, At: now, Command: id, Correlation: id,
	}
}

// tellKeys puts the public halves of the keys on record, oldest first.
func (s *server) tellKeys(ctx context.Context) error {
	public := s.notary.Keys.Public()
	for i := len(public) - 1; i >= 0; i-- {
		by := operator(time.Now())
		_, err := eventstore.Execute(ctx, s.store, sealed.Decider, sealed.Stream(), sealed.Command(sealed.Rotate{Authority: by, Public: public[i]}))
		if err != nil {
			return err
		}
	}
	return nil
}

// sealBroken puts on record what is wrong with a log.
func (s *server) sealBroken(ctx context.Context, f seal.Finding) {
	s.log.Error("a log is not as it was sealed", "log", f.Log, "seq", f.Seq, "kind", f.Kind, "detail", f.Detail)
	found := sealed.Broken{Log: f.Log, Seq: f.Seq, Kind: string(f.Kind), Detail: f.Detail}
	_, err := eventstore.Execute(ctx, s.store, sealed.Decider, sealed.Stream(), sealed.Command(sealed.Report{Authority: system(time.Now(), "notary"), Found: found}))
	if err != nil {
		s.log.Error("a finding about the seal is not on record", "error", err)
	}
}

// witnessed says, for everybody who asks, how far others have seen the logs.
func (s *server) witnessed() string {
	if s.notary == nil {
		return "sealed by another process"
	}
	answer := "witnessed"
	for _, st := range s.notary.Status() {
		switch {
		case st.Broken:
			return "broken: " + st.Log
		case st.Size > 0 && st.Witnessed == 0:
			answer = "not witnessed yet"
		}
	}
	if len(s.notary.Witnesses) == 0 {
		return "not witnessed"
	}
	return answer
}

type rotateCommand struct {
	KEK  rotateKEK  `cmd:"" name:"kek" help:"Replace the root key, beside a running server or without one. Every keyset is wrapped anew, and the older key is destroyed."`
	Seal rotateSeal `cmd:"" help:"Make a new key that signs the seal, while no server runs. The old one goes on signing beside it for 30 days."`
}

type rotateSeal struct{}

// Run makes a new signing key.
func (rotateSeal) Run(ctx context.Context, cfg Config, out output) error {
	return alone(ctx, cfg, func(ctx context.Context, s *server) error {
		keys, err := openSealKeys(s.cfg)
		if err != nil {
			return err
		}
		if err := keys.Rotate(time.Now()); err != nil {
			return err
		}
		if keys, err = openSealKeys(s.cfg); err != nil {
			return err
		}
		public := keys.Public()[0]
		by := operator(time.Now())
		if _, err := eventstore.Execute(ctx, s.store, sealed.Decider, sealed.Stream(), sealed.Command(sealed.Rotate{Authority: by, Public: public})); err != nil {
			return err
		}
		if printed, err := out.object(map[string]string{"public": public}); printed {
			return err
		}
		fmt.Printf("The seal is signed with a new key from now on:\n  %s\n", public)
		return nil
	})
}
