package eventstore

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"postbook.dev/postbook/domain"
)

// serve answers on a subject until the test ends.
func serve(t *testing.T, s *Store, subject string, answer func(context.Context, []byte) ([]byte, error)) func() {
	t.Helper()
	stop, err := s.Serve(t.Context(), subject, answer)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(stop)
	t.Cleanup(stop)
	return stop
}

func TestDesk(t *testing.T) {
	t.Parallel()
	host := open(t)
	elsewhere := open(t, func(c *Config) { c.URL = host.URL() })
	stop := serve(t, host, "postbook.desk.1", func(_ context.Context, q []byte) ([]byte, error) {
		switch string(q) {
		case "refuse":
			return nil, domain.RefuseField(domain.WrongState, "scheduled_at", "Only a scheduled email can be %s.", "canceled")
		case "fail":
			return []byte(`"half an answer"`), errors.New("the owner was fenced")
		case "nothing":
			return nil, nil
		}
		return []byte(`{"seq":7}`), nil
	})
	for _, s := range []*Store{host, elsewhere} {
		ctx := t.Context()
		if got, err := s.Ask(ctx, "postbook.desk.1", []byte("cancel")); err != nil || string(got) != `{"seq":7}` {
			t.Errorf("answered %q, %v", got, err)
		}
		_, err := s.Ask(ctx, "postbook.desk.1", []byte("refuse"))
		if r := domain.Refused(err); r == nil || *r != (domain.Refusal{Code: domain.WrongState, Field: "scheduled_at", Message: "Only a scheduled email can be canceled."}) {
			t.Errorf("the refusal arrives as %#v", err)
		}
		got, err := s.Ask(ctx, "postbook.desk.1", []byte("fail"))
		if err == nil || got != nil || domain.Refused(err) != nil || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "the owner was fenced") {
			t.Errorf("a fault arrives as %q, %v", got, err)
		}
		if got, err := s.Ask(ctx, "postbook.desk.1", []byte("nothing")); err != nil || len(got) != 0 {
			t.Errorf("nothing arrives as %q, %v", got, err)
		}
		// Nobody is there: that is known at once, and not at the deadline.
		began := time.Now()
		if _, err := s.Ask(ctx, "postbook.desk.2", nil); !errors.Is(err, ErrUnavailable) || time.Since(began) > ackTimeout/2 {
			t.Errorf("nobody serves it: %v after %s; want ErrUnavailable at once", err, time.Since(began))
		}
	}
	stop()
	if _, err := elsewhere.Ask(t.Context(), "postbook.desk.1", []byte("cancel")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("after the desk has closed: %v, want ErrUnavailable", err)
	}
}

// Everybody is asked, those in other processes as well; whom nobody answers learns
// it at once.
func TestAllDesksAreAsked(t *testing.T) {
	t.Parallel()
	s := open(t)
	elsewhere := open(t, func(c *Config) { c.URL = s.URL() })
	began := time.Now()
	if answers, err := s.AskAll(t.Context(), "postbook.poll", nil, patience); err != nil || len(answers) > 0 || time.Since(began) > patience/2 {
		t.Errorf("nobody serves it: %q, %v after %s", answers, err, time.Since(began))
	}
	for _, of := range []*Store{s, elsewhere} {
		serve(t, of, "postbook.poll", func(_ context.Context, question []byte) ([]byte, error) { return question, nil })
	}
	if answers, err := s.AskAll(t.Context(), "postbook.poll", []byte("1"), time.Second); err != nil || len(answers) != 2 {
		t.Errorf("two were asked: %q, %v", answers, err)
	}
	serve(t, s, "postbook.poll", func(context.Context, []byte) ([]byte, error) { return nil, errors.New("broken") })
	if answers, err := s.AskAll(t.Context(), "postbook.poll", []byte("1"), time.Second); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("one cannot answer: %q, %v", answers, err)
	}
}

// A slow question holds up neither the others nor, past its deadline, the one
// who asked; and a desk that closes finishes what it has begun.
func TestDeskIsConcurrent(t *testing.T) {
	t.Parallel()
	s := open(t)
	begun, finish := make(chan struct{}), make(chan struct{})
	stop := serve(t, s, "postbook.desk.1", func(_ context.Context, q []byte) ([]byte, error) {
		if string(q) == "slow" {
			close(begun)
			<-finish
		}
		return []byte(`true`), nil
	})
	release := sync.OnceFunc(func() { close(finish) })
	t.Cleanup(release)
	ctx, cancel := context.WithCancel(t.Context())
	slow := make(chan error, 1)
	go func() {
		_, err := s.Ask(ctx, "postbook.desk.1", []byte("slow"))
		slow <- err
	}()
	soon(t, "the slow question", begun)
	if _, err := s.Ask(t.Context(), "postbook.desk.1", []byte("quick")); err != nil {
		t.Errorf("behind a slow question: %v", err)
	}
	cancel()
	if err := soon(t, "the one who asked gives up", slow); !errors.Is(err, ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	eventually(t, "the desk takes no more questions", func() bool {
		short, done := context.WithTimeout(t.Context(), time.Second)
		defer done()
		_, err := s.Ask(short, "postbook.desk.1", []byte("quick"))
		return err != nil
	})
	select {
	case <-stopped:
		t.Error("the desk closed on a question that it was answering")
	default:
	}
	release()
	soon(t, "the desk has closed", stopped)
}
