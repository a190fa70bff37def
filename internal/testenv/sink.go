package testenv

import (
	"bufio"
	"bytes"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// Sink is a mail server that takes everything, and remembers how often it took
// which message for whom. It does as little as it can, so that what is measured
// with it is the sender.
type Sink struct {
	Addr string

	mu       sync.Mutex
	taken    map[string]int // by Message-ID and recipient
	total    int
	begun    int // transactions that got as far as MAIL
	listener net.Listener
	gate     sync.RWMutex // held while nobody is greeted
}

// Hold keeps connections waiting for the greeting until release is called.
func (s *Sink) Hold() (release func()) {
	s.gate.Lock()
	return s.gate.Unlock
}

// StartSink runs a sink on a port of 127.0.0.1.
func StartSink(t testing.TB) *Sink {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Sink{Addr: listener.Addr().String(), taken: map[string]int{}, listener: listener}
	t.Cleanup(func() { listener.Close() })
	go s.Serve()
	return s
}

// Serve takes connections until the listener is closed.
func (s *Sink) Serve() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		go s.session(c)
	}
}

// Taken is how often each message was taken, by Message-ID and recipient.
func (s *Sink) Taken() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]int, len(s.taken))
	for k, n := range s.taken {
		all[k] = n
	}
	return all
}

// Total is how many messages were taken.
func (s *Sink) Total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// Begun is how many transactions began.
func (s *Sink) Begun() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.begun
}

var messageID = regexp.MustCompile(`(?i)\r\nMessage-ID:\s*<([^>]*)>`)

func (s *Sink) session(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
	say := func(line string) { w.WriteString(line + "\r\n") }
	s.gate.RLock()
	s.gate.RUnlock() //nolint:staticcheck // passing the gate is all
	say("220 sink.test ESMTP")
	recipient := ""
	for {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb := strings.ToUpper(strings.TrimRight(line, "\r\n")); {
		case strings.HasPrefix(verb, "EHLO"):
			say("250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 52428800")
		case strings.HasPrefix(verb, "MAIL"):
			s.mu.Lock()
			s.begun++
			s.mu.Unlock()
			say("250 2.1.0 ok")
		case strings.HasPrefix(verb, "RCPT TO:<"):
			recipient = strings.ToLower(verb[len("RCPT TO:<"):strings.IndexByte(verb, '>')])
			say("250 2.1.5 ok")
		case verb == "DATA":
			say("354 go on")
			if w.Flush() != nil {
				return
			}
			if !s.take(r, recipient) {
				return
			}
			say("250 2.0.0 taken")
		case verb == "QUIT":
			say("221 2.0.0 bye")
			w.Flush()
			return
		default:
			say("250 2.0.0 ok")
		}
	}
}

func (s *Sink) take(r *bufio.Reader, recipient string) bool {
	var head bytes.Buffer
	inHead := true
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return false
		}
		if bytes.Equal(line, []byte(".\r\n")) {
			break
		}
		if inHead {
			head.Write(line)
			inHead = len(line) > 2
		}
	}
	key := recipient
	if m := messageID.FindSubmatch(head.Bytes()); m != nil {
		key = string(m[1]) + " " + recipient
	}
	s.mu.Lock()
	s.taken[key]++
	s.total++
	s.mu.Unlock()
	return true
}
