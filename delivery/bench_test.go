package delivery

import (
	"bufio"
	"bytes"
	"net"
	"strings"
	"testing"
)

// twoKilobytes is a usual email: some text, some HTML, 2 kB in all.
func twoKilobytes(b *testing.B) Message {
	b.Helper()
	m := plain()
	m.Text = strings.Repeat("A line of plain text, as receipts have it.\n", 14)
	m.HTML = "<html><body>" + strings.Repeat("<p>A line of text, as receipts have it.</p>\n", 14) + "</body></html>"
	raw, _ := build(b, m)
	if len(raw) < 1800 || len(raw) > 2200 {
		b.Fatalf("it has %d bytes", len(raw))
	}
	return m
}

func BenchmarkBuild(b *testing.B) {
	m := twoKilobytes(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Build(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	raw, _ := build(b, twoKilobytes(b))
	s := NewSigner("acme.test", "resend", signingKey())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Sign(raw); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSend includes the sink's own work: it answers by fixed bytes.
func BenchmarkSend(b *testing.B) {
	s, message := sinkSender(b)
	b.ReportAllocs()
	for b.Loop() {
		if got := s.Send(b.Context(), envelope, message, nil); got.Outcome != Delivered {
			b.Fatalf("%+v", got)
		}
	}
}

// BenchmarkSendParallel shares the sink between as many senders as there are
// processors: what one core delivers is this figure times their number.
func BenchmarkSendParallel(b *testing.B) {
	s, message := sinkSender(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if got := s.Send(b.Context(), envelope, message, nil); got.Outcome != Delivered {
				b.Errorf("%+v", got)
			}
		}
	})
}

func sinkSender(b *testing.B) (*Sender, []byte) {
	b.Helper()
	raw, _ := build(b, twoKilobytes(b))
	srv := serve(b, "", func(p *peer) { sink(p.Conn) })
	c := relay(b, "smtp", "", srv.addr)
	c.MaxMessagesPerConn = 1 << 40
	s := newSender(b, c)
	if got := s.Send(b.Context(), envelope, raw, nil); got.Outcome != Delivered { // opens the connection
		b.Fatalf("%+v", got)
	}
	return s, raw
}

func sink(c net.Conn) {
	r := bufio.NewReaderSize(c, 64<<10)
	say := func(text string) bool {
		_, err := c.Write([]byte(text))
		return err == nil
	}
	if !say("220 sink\r\n") {
		return
	}
	inData := false
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch {
		case inData:
			if len(line) != 3 || line[0] != '.' {
				continue
			}
			inData = false
			say("250 2.0.0 Taken\r\n")
		case bytes.HasPrefix(line, []byte("DATA")):
			inData = true
			say("250 Ok\r\n250 Ok\r\n354 Go on\r\n")
		case bytes.HasPrefix(line, []byte("EHLO")):
			say("250-sink\r\n250 PIPELINING\r\n")
		}
	}
}
