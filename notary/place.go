package notary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postbook.dev/postbook/seal"
)

// A Place outside this machine's reach keeps the newest head of each log.
type Place interface {
	// Put leaves a head.
	Put(ctx context.Context, log string, head []byte) error
	// Get returns the head of a log that was left, and nil if there is none.
	Get(ctx context.Context, log string) ([]byte, error)
	// String names the place, without the credentials that its address may hold.
	String() string
}

// ParsePlace reads a path, or an address that begins with http:// or https://.
func ParsePlace(text string) (Place, error) {
	scheme, _, hasScheme := strings.Cut(text, "://")
	switch {
	case scheme == "http" || scheme == "https":
		u, err := url.Parse(text)
		if err != nil || u.Host == "" {
			return nil, errors.New("notary: a place's address is not a URL")
		}
		return address{url: strings.TrimSuffix(text, "/"), client: &http.Client{Timeout: 10 * time.Second}}, nil
	case hasScheme && scheme != "file":
		return nil, fmt.Errorf("notary: %s:// is no place for heads", scheme)
	}
	dir, err := filepath.Abs(strings.TrimPrefix(text, "file://"))
	if err != nil {
		return nil, fmt.Errorf("notary: find the place %q: %w", text, err)
	}
	return folder(dir), nil
}

// HeadName is the name of a log's head in a place that has names.
func HeadName(log string) string { return log + ".checkpoint" }

// folder is one on another machine's disk.
type folder string

func (f folder) String() string { return string(f) }

func (f folder) Put(_ context.Context, log string, head []byte) error {
	return seal.WriteFile(filepath.Join(string(f), HeadName(log)), head, 0o644)
}

func (f folder) Get(_ context.Context, log string) ([]byte, error) {
	head, err := os.ReadFile(filepath.Join(string(f), HeadName(log)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return head, err
}

// address takes an HTTP POST.
type address struct {
	url    string
	client *http.Client
}

func (a address) String() string {
	u, err := url.Parse(a.url)
	if err != nil {
		return "a place"
	}
	return u.Redacted()
}

// Put sends a head in the body, with the log's name at the end of the path.
func (a address) Put(ctx context.Context, log string, head []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.url+"/"+log, bytes.NewReader(head))
	if err != nil {
		return fmt.Errorf("notary: leave a head: %w", err)
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	res, err := a.client.Do(req)
	if err != nil {
		return fmt.Errorf("notary: leave a head: %w", err)
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection can be used again
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("notary: leave a head: the answer is %s", res.Status)
	}
	return nil
}

// Get returns nothing: what an address has got, only its owner can give back.
func (a address) Get(context.Context, string) ([]byte, error) { return nil, nil }
