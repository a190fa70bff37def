package seal

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	tdlog "github.com/transparency-dev/formats/log"
	tdnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A witness keeps the newest head of a log that it saw, and cosigns only heads
// whose tree begins with that one (C2SP tlog-witness). Who keeps a log can then
// not show one past to some and another to others, nor go back.

// Witness is one that is asked.
type Witness struct {
	URL    string // its root
	Key    note.Verifier
	client *http.Client
}

// NewWitness makes the client of a witness from its root URL and public key.
func NewWitness(root, key string, client *http.Client) (Witness, error) {
	u, err := url.Parse(root)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return Witness{}, fmt.Errorf("seal: %q is no witness's address: it begins with http:// or https://", root)
	}
	v, err := tdnote.NewVerifierForCosignatureV1(key)
	if err != nil {
		return Witness{}, fmt.Errorf("seal: %q is no witness's public key: %w", key, err)
	}
	return Witness{URL: strings.TrimSuffix(root, "/"), Key: v, client: client}, nil
}

// ErrRefused says that a witness holds another past, or a later one.
var ErrRefused = errors.New("a witness has seen another past")

// maxAnswer bounds what a witness may answer.
const maxAnswer = 64 << 10

// Cosign asks the witness to cosign a checkpoint of the log whose seal is in a
// folder, and returns it with the cosignature. known is the size that the witness has seen last, as far as the
// asker knows; the size it really has comes back.
func (w Witness) Cosign(ctx context.Context, dir string, c Checkpoint, known int64) ([]byte, int64, error) {
	for range 2 {
		if known > c.Size {
			return nil, known, w.refusal(c, known)
		}
		lines, held, err := w.ask(ctx, dir, c, known)
		switch {
		case err != nil:
			return nil, known, err
		case lines == nil && held == known:
			return nil, held, w.refusal(c, held)
		case lines == nil:
			known = held // it has seen something else than we thought
			continue
		}
		signed := addSignatures(c.Note, lines)
		if (Verifiers{Witnesses: []note.Verifier{w.Key}}).witnesses(signed) == nil {
			return nil, known, fmt.Errorf("seal: the witness %s has answered with a signature that is not its own", w.Key.Name())
		}
		return signed, c.Size, nil
	}
	return nil, known, fmt.Errorf("seal: the witness %s does not agree with itself about what it has seen", w.Key.Name())
}

func (w Witness) refusal(c Checkpoint, held int64) error {
	return fmt.Errorf("seal: the witness %s has seen %s with %d entries, which is not what it is now with %d: %w", w.Key.Name(), c.Origin, held, c.Size, ErrRefused)
}

// ask returns the witness's signatures, or else the size that it has.
func (w Witness) ask(ctx context.Context, dir string, c Checkpoint, known int64) (lines []byte, held int64, err error) {
	path, err := proveTree(dir, c.Size, known)
	if err != nil {
		return nil, 0, err
	}
	var body bytes.Buffer
	fmt.Fprintf(&body, "old %d\n", known)
	for _, h := range path {
		fmt.Fprintf(&body, "%s\n", h)
	}
	body.WriteByte('\n')
	body.Write(c.Note)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.URL+"/add-checkpoint", &body)
	if err != nil {
		return nil, 0, fmt.Errorf("seal: ask a witness: %w", err)
	}
	res, err := w.client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("seal: ask a witness: %w", err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, 0, fmt.Errorf("seal: ask a witness: %w", err)
	}
	switch res.StatusCode {
	case http.StatusOK:
		return answer, 0, nil
	case http.StatusConflict:
		held, err := strconv.ParseInt(strings.TrimSpace(string(answer)), 10, 64)
		if err != nil || held < 0 {
			return nil, 0, errors.New("seal: the witness's answer names no size")
		}
		return nil, held, nil
	case http.StatusUnprocessableEntity:
		return nil, 0, fmt.Errorf("seal: the witness %s finds that %s does not follow from what it has seen: %w", w.Key.Name(), c.Origin, ErrRefused)
	}
	return nil, 0, fmt.Errorf("seal: the witness %s answers %s", w.Key.Name(), res.Status)
}

// WitnessServer is a witness for others. It keeps the head of each log in a
// folder, one file for each.
type WitnessServer struct {
	dir    string
	signer *tdnote.Signer
	logs   map[string][]note.Verifier // by instance, of whose logs it takes heads; several after a rotation

	mu sync.Mutex
}

// NewWitnessServer makes a witness that signs with key for the logs of the
// instances whose public keys are given.
func NewWitnessServer(dir string, key Key, logs []string) (*WitnessServer, error) {
	signer, err := tdnote.NewSignerForCosignatureV1(key.secret)
	if err != nil {
		return nil, errDamaged
	}
	w := &WitnessServer{dir: dir, signer: signer, logs: map[string][]note.Verifier{}}
	keys := once(logs)
	if len(keys) == 0 {
		return nil, errors.New("seal: no public key of a log was given")
	}
	for _, l := range keys {
		v, err := note.NewVerifier(l)
		if err != nil {
			return nil, fmt.Errorf("seal: %q is no public key of a log: %w", l, err)
		}
		w.logs[v.Name()] = append(w.logs[v.Name()], v)
	}
	return w, nil
}

// maxRequest bounds a request to a witness: a proof has at most 63 hashes.
const maxRequest = 64 << 10

func (w *WitnessServer) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != "/add-checkpoint" {
		http.NotFound(rw, r)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxRequest))
	if err != nil {
		http.Error(rw, "the request is too large", http.StatusRequestEntityTooLarge)
		return
	}
	answer, status := w.add(body)
	if status == http.StatusConflict {
		rw.Header().Set("Content-Type", "text/x.tlog.size")
	}
	rw.WriteHeader(status)
	_, _ = rw.Write(answer) // whoever asked will ask again
}

// add answers as C2SP tlog-witness has it.
func (w *WitnessServer) add(body []byte) (answer []byte, status int) {
	old, path, signed, err := parseAdd(body)
	if err != nil {
		return []byte(err.Error() + "\n"), http.StatusBadRequest
	}
	origin, _, _ := strings.Cut(string(signed), "\n")
	log, ok := w.logs[instanceOf(origin)]
	if !ok {
		return []byte("this log is not known\n"), http.StatusNotFound
	}
	c, err := Verifiers{Log: log}.Open(origin, signed)
	switch {
	case errors.Is(err, errUnsigned):
		return []byte("it is not signed by the log\n"), http.StatusForbidden
	case err != nil || old > c.Size:
		return []byte("it is no checkpoint that follows\n"), http.StatusBadRequest
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	held, err := w.held(origin)
	switch {
	case err != nil:
		return nil, http.StatusInternalServerError
	case old != held.Size, c.Size == held.Size && held.Note != nil && c.Root != held.Root:
		return fmt.Appendf(nil, "%d\n", held.Size), http.StatusConflict
	case old > 0 && old < c.Size && tlog.CheckTree(path, c.Size, c.Root, old, held.Root) != nil:
		return nil, http.StatusUnprocessableEntity
	}
	return w.cosign(c)
}

func instanceOf(origin string) string {
	return origin[:max(strings.LastIndexByte(origin, '/'), 0)]
}

// cosign keeps a head, and then signs it.
func (w *WitnessServer) cosign(c Checkpoint) (answer []byte, status int) {
	opened, err := note.Open(c.Note, note.VerifierList(w.logs[instanceOf(c.Origin)]...))
	if err != nil {
		return nil, http.StatusInternalServerError
	}
	if err := WriteFile(w.path(c.Origin), c.Note, 0o600); err != nil {
		return nil, http.StatusInternalServerError
	}
	both, err := note.Sign(&note.Note{Text: opened.Text}, w.signer)
	if err != nil {
		return nil, http.StatusInternalServerError
	}
	_, lines, _ := bytes.Cut(both, []byte("\n\n"))
	return lines, http.StatusOK
}

func (w *WitnessServer) path(origin string) string {
	return filepath.Join(w.dir, tdlog.ID(origin))
}

// held is the head that was seen last, of size 0 if there is none.
func (w *WitnessServer) held(origin string) (Checkpoint, error) {
	signed, err := os.ReadFile(w.path(origin))
	if errors.Is(err, fs.ErrNotExist) {
		return Checkpoint{}, nil
	}
	if err != nil {
		return Checkpoint{}, err
	}
	return Verifiers{Log: w.logs[instanceOf(origin)]}.Open(origin, signed)
}

// parseAdd reads a request: "old" and a size, the hashes of a consistency proof,
// an empty line, and the checkpoint.
func parseAdd(body []byte) (old int64, path tlog.TreeProof, signed []byte, err error) {
	head, signed, ok := bytes.Cut(body, []byte("\n\n"))
	first, rest, _ := strings.Cut(string(head), "\n")
	size, isOld := strings.CutPrefix(first, "old ")
	old, err = strconv.ParseInt(size, 10, 64)
	if !ok || !isOld || err != nil || old < 0 {
		return 0, nil, nil, errors.New("the first line is not \"old\" and a size")
	}
	for line := range strings.Lines(rest) {
		h, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(line, "\n"))
		if err != nil || len(h) != tlog.HashSize || len(path) == 63 {
			return 0, nil, nil, errors.New("the proof is not at most 63 hashes in base64")
		}
		path = append(path, tlog.Hash(h))
	}
	return old, path, signed, nil
}
