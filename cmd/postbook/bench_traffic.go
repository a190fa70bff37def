package main

// The two ends of what bench measures: those who send mail, and where it arrives.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type benchClient struct {
	base, key string
	http      *http.Client
}

type sent struct {
	rate     float64
	p50, p99 time.Duration
}

// send sends mails from some clients, several in each request.
func (c *benchClient) send(ctx context.Context, mails, clients, each int) (sent, error) {
	var next atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	errs := make(chan error, clients)
	begun := time.Now()
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for {
				n := next.Add(int64(each))
				if n > int64(mails) {
					return
				}
				asked := time.Now()
				if err := c.post(ctx, int(n), each); err != nil {
					errs <- err
					return
				}
				mu.Lock()
				took = append(took, time.Since(asked))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	total := time.Since(begun)
	select {
	case err := <-errs:
		return sent{}, err
	default:
	}
	slices.Sort(took)
	return sent{float64(len(took)*each) / total.Seconds(), took[len(took)/2], took[len(took)*99/100]}, nil
}

// benchText is about as long as a receipt.
var benchText = strings.Repeat("Thank you for your order. It is on its way, and you can follow it. ", 15)

func (c *benchClient) post(ctx context.Context, n, each int) error {
	path, body := "/emails", []byte(benchMail(n))
	if each > 1 {
		path = "/emails/batch"
		list := make([]string, each)
		for i := range list {
			list[i] = benchMail(n + i)
		}
		body = []byte("[" + strings.Join(list, ",") + "]")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	req.Header.Set("Content-Type", "application/json")
	res, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %w", answer, errors.Join(err, errors.New(res.Status)))
	}
	return nil
}

func benchMail(n int) string {
	return fmt.Sprintf(`{"from":"Shop <shop@%s>","to":"customer%d@rcpt.test","subject":"Order %d","text":%q}`, devDomain, n, n, benchText)
}

// benchSink takes mail and counts it, with as little work as possible.
type benchSink struct {
	listener net.Listener
	gate     sync.RWMutex
	taken    atomic.Int64
}

func startSink() (*benchSink, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &benchSink{listener: listener}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go s.session(c)
		}
	}()
	return s, nil
}

func (s *benchSink) addr() string { return s.listener.Addr().String() }
func (s *benchSink) close()       { _ = s.listener.Close() }
func (s *benchSink) hold()        { s.gate.Lock() }

// measure lets the mail in, and says how much came in a second once the first
// tenth has.
func (s *benchSink) measure(ctx context.Context, mails int) (float64, error) {
	s.gate.Unlock()
	wait := func(n int64) error {
		for s.taken.Load() < n {
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	first := int64(mails / 10)
	if err := wait(first); err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := wait(int64(mails)); err != nil {
		return 0, err
	}
	return float64(int64(mails)-first) / time.Since(begun).Seconds(), nil
}

func (s *benchSink) session(c net.Conn) {
	defer c.Close()
	s.gate.RLock()
	s.gate.RUnlock() //nolint:staticcheck // passing the gate is all
	buf := make([]byte, 64<<10)
	say := func(text string) bool { _, err := c.Write([]byte(text)); return err == nil }
	if !say("220 sink\r\n") {
		return
	}
	var have []byte
	data := false
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		have = append(have, buf[:n]...)
		var answer []byte
		for {
			if data {
				end := bytes.Index(have, []byte("\r\n.\r\n"))
				if end < 0 {
					break
				}
				have, data = have[end+5:], false
				s.taken.Add(1)
				answer = append(answer, "250 2.0.0 taken\r\n"...)
				continue
			}
			end := bytes.IndexByte(have, '\n')
			if end < 0 {
				break
			}
			verb := strings.ToUpper(string(have[:min(end, 4)]))
			have = have[end+1:]
			switch verb {
			case "EHLO":
				answer = append(answer, "250-sink\r\n250 PIPELINING\r\n"...)
			case "DATA":
				data = true
				answer = append(answer, "354 go on\r\n"...)
			case "QUIT":
				say("221 bye\r\n")
				return
			default:
				answer = append(answer, "250 2.0.0 ok\r\n"...)
			}
		}
		if len(answer) > 0 && !say(string(answer)) {
			return
		}
	}
}
