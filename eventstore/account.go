package eventstore

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"postbook.dev/postbook/domain"
)

// AccountSubject is the filter for everything of an account in a log: all its
// aggregates in the ledger, all its emails in a partition.
func AccountSubject(log, account string) string {
	if partition, ok := strings.CutPrefix(log, "MAIL_"); ok {
		return "mail." + partition + "." + account
	}
	if log == Ledger {
		return "ledger." + account + ".>"
	}
	return strings.ToLower(log) + "." + account
}

// AccountKindSubject is the filter for an account's aggregates of a kind in the
// ledger.
func AccountKindSubject(account, kind string) string {
	return "ledger." + account + "." + kind + ".*"
}

// AccountHistory is every event in the ledger of an account's aggregates, in order:
// of itself, its keys, domains and members, of holds and erasures.
func (s *Store) AccountHistory(ctx context.Context, account string) ([]domain.Recorded, error) {
	if err := checkName(domain.Stream{Account: account, Kind: "account", ID: account}); err != nil {
		return nil, err
	}
	subject := AccountSubject(Ledger, account)
	last, err := s.Last(ctx, Ledger, subject)
	if err != nil || last == 0 {
		return nil, err
	}
	var history []domain.Recorded
	f := Following{Log: Ledger, Subjects: []string{subject}, StopAt: last}
	err = s.Follow(ctx, f, func(_ context.Context, entries []Entry) error {
		for _, e := range entries {
			if e.Err != nil {
				return e.Err
			}
			history = append(history, e.Events...)
		}
		return nil
	})
	return history, err
}

// Before is the sequence of the last entry that a log took before t, 0 if there
// is none. It reads a few entries, however long the log is.
func (s *Store) Before(ctx context.Context, log string, t time.Time) (uint64, error) {
	stats, err := s.Stats(ctx, log)
	if err != nil || stats.Entries == 0 {
		return 0, err
	}
	var failed error
	n := int(stats.Last - stats.First + 1)
	after := sort.Search(n, func(i int) bool {
		if failed != nil {
			return true
		}
		e, err := s.Read(ctx, log, stats.First+uint64(i))
		if errors.Is(err, ErrNoEntry) {
			return false // it has expired, so it is older than what is still there
		}
		failed = err
		return err != nil || !e.Time.Before(t)
	})
	return stats.First + uint64(after) - 1, failed
}

// Stats says how much a log holds, in its stream and in the archive.
type Stats struct {
	Log     string    `json:"log"`
	Entries uint64    `json:"entries"`
	Bytes   uint64    `json:"bytes"` // in the stream
	First   uint64    `json:"first"`
	Hot     uint64    `json:"hot"` // the first that is in the stream
	Last    uint64    `json:"last"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
}

// Stats of a log.
func (s *Store) Stats(ctx context.Context, log string) (Stats, error) {
	st, err := s.state(ctx, log)
	if err != nil {
		return Stats{}, err
	}
	stats := Stats{log, st.Msgs, st.Bytes, st.FirstSeq, st.FirstSeq, st.LastSeq, st.FirstTime, st.LastTime}
	if s.cfg.Archive == nil || !Archived(log) || st.FirstSeq <= 1 {
		return stats, nil
	}
	first, _, err := s.cfg.Archive.Extent(ctx, log)
	if err != nil {
		return Stats{}, fmt.Errorf("eventstore: look for %s in the archive: %w", log, err)
	}
	if first == 0 || first >= stats.First {
		return stats, nil
	}
	e, err := s.cfg.Archive.Entry(ctx, log, first)
	if err != nil {
		return Stats{}, fmt.Errorf("eventstore: read %s %d from the archive: %w", log, first, err)
	}
	stats.Entries += stats.First - first
	stats.First, stats.From = first, e.Time
	return stats, nil
}

// Logs names every log that events are in.
func (s *Store) Logs() []string { return append([]string{Ledger, Asked, Access}, s.MailLogs()...) }
