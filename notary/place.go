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

// A Place outside this machine's reach keeps the newest head of each log: a
// folder on another machine's disk, or whoever takes an HTTP POST.
type Place struct {
	dir    string
	url    string
	client *http.Client
}

// ParsePlace reads a path, or an address that begins with http:// or https://.
func ParsePlace(text string) (Place, error) {
	if strings.HasPrefix(text, "http://") || strings.HasPrefix(text, "https://") {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" {
			return Place{}, errors.New("notary: a place's address is not a URL")
		}
		return Place{url: strings.TrimSuffix(text, "/"), client: &http.Client{Timeout: 10 * time.Second}}, nil
	}
	dir, err := filepath.Abs(strings.TrimPrefix(text, "file://"))
	if err != nil {
		return Place{}, fmt.Errorf("notary: find the place %q: %w", text, err)
	}
	return Place{dir: dir}, nil
}

// String names the place, without the credentials that its address may hold.
func (p Place) String() string {
	if p.url == "" {
		return p.dir
	}
	u, err := url.Parse(p.url)
	if err != nil {
		return "a place"
	}
	return u.Redacted()
}

// Put leaves a head. An address gets it in the body, with the log's name at the
// end of the path.
func (p Place) Put(ctx context.Context, log string, head []byte) error {
	if p.url == "" {
		return seal.WriteFile(filepath.Join(p.dir, log+".checkpoint"), head, 0o644)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/"+log, bytes.NewReader(head))
	if err != nil {
		return fmt.Errorf("notary: leave a head: %w", err)
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	res, err := p.client.Do(req)
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

// Get returns the head of a log that was left in a folder, and nil if there is
// none. What an address has got, only its owner can give back.
func (p Place) Get(log string) ([]byte, error) {
	if p.url != "" {
		return nil, nil
	}
	head, err := os.ReadFile(filepath.Join(p.dir, log+".checkpoint"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return head, err
}
