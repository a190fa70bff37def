package archive

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"postbook.dev/postbook/eventstore"
)

// A claim says which segment of a log is being written, where several hosts may
// archive: another one may come to sign while a segment is under way, and an operator
// can archive on any. Two segments that hold the same entries would be an alarm for
// ever.
//
// A claim takes the place of the one that was read before the segments were listed.
// Whoever is told that it was replaced since has listed too early, and leaves the
// segment alone. One that was claimed and is not listed after a while is written by
// another host, to the same end: then it does not matter whether the first one comes
// back.
type claim struct {
	First uint64    `json:"first"`
	Last  uint64    `json:"last"`
	By    string    `json:"by"` // a host and a file: whoever holds its lock goes on with what was claimed before
	At    time.Time `json:"at"`

	revision uint64 // 0 if there is none yet
}

// abandoned is after how long a segment that was claimed is written by another host.
const abandoned = 5 * time.Minute

// errClaimed says that another host writes the segment.
var errClaimed = errors.New("another host archives this log")

// claimed reads the claim to a log's newest segment.
func (a *Archiver) claimed(ctx context.Context, log string) (c claim, err error) {
	if a.Claims == nil {
		return c, nil
	}
	text, revision, err := a.Claims.Get(ctx, log)
	if errors.Is(err, eventstore.ErrNoEntry) {
		return c, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return c, fmt.Errorf("read who archives it: %w", err)
	}
	c.revision = revision
	return c, nil
}

// others reports whether the next segment is another host's to write.
func (a *Archiver) others(c claim, next uint64) bool {
	return c.First == next && c.By != a.name() && a.Now().Sub(c.At) < abandoned
}

func (a *Archiver) name() string { return host() + ":" + a.Lock }

// host tells hosts apart that write into one archive. Where two are called the same
// they may write one segment at once, to the same end.
func host() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return filepath.Base(name)
}

// claim puts a claim to a segment in the place of c.
func (a *Archiver) claim(ctx context.Context, log string, c *claim, of span) error {
	if a.Claims == nil {
		return nil
	}
	mine := claim{First: of.first, Last: of.last, By: a.name(), At: a.Now().UTC()}
	text, err := json.Marshal(mine)
	if err == nil {
		mine.revision, err = a.Claims.Update(ctx, log, text, c.revision)
	}
	if errors.Is(err, eventstore.ErrConflict) {
		return errClaimed
	}
	if err != nil {
		return fmt.Errorf("claim the segment %s: %w", of.name(), err)
	}
	*c = mine
	return nil
}
