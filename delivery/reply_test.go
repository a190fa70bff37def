package delivery

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

func replyReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, maxReplyLine+2) }

func TestReadReply(t *testing.T) {
	for _, c := range []struct {
		in   string
		want reply
	}{
		{"250 Ok\r\n", reply{250, "", "Ok"}},
		{"250 2.0.0 Ok\r\n", reply{250, "2.0.0", "2.0.0 Ok"}},
		{"250\r\n", reply{250, "", ""}},
		{"250 \r\n", reply{250, "", ""}},
		{"250 Ok\n", reply{250, "", "Ok"}}, // seen from home-made servers
		{"250-a\r\n250-b c\r\n250 d\r\n", reply{250, "", "a\nb c\nd"}},
		{"550-5.1.1 No such\r\n550 5.1.1 user\r\n", reply{550, "5.1.1", "5.1.1 No such\n5.1.1 user"}},
		{"550 5.7.515 Access denied\r\n", reply{550, "5.7.515", "5.7.515 Access denied"}},
		{"550 4.1.1 the code wins\r\n", reply{550, "", "4.1.1 the code wins"}},
		{"550 5.1 short\r\n", reply{550, "", "5.1 short"}},
		{"550 5.1.x odd\r\n", reply{550, "", "5.1.x odd"}},
		{"550 gr\xfc\xdfe\x07\r\n", reply{550, "", "gr\uFFFDe"}},
		{"550 Zürich\r\n", reply{550, "", "Zürich"}},
	} {
		got, err := readReply(replyReader(iotest.OneByteReader(strings.NewReader(c.in))))
		if err != nil || got != c.want {
			t.Errorf("%q is read as %+v, %v", c.in, got, err)
		}
	}
	for _, in := range []string{
		"hello\r\n", "\r\n", "25 Ok\r\n", "2500 Ok\r\n", "250_Ok\r\n", "150 Ok\r\n", "600 Ok\r\n", "-50 Ok\r\n", "HTTP/1.1 400 Bad Request\r\n",
		"250-a\r\n550 b\r\n", "250-a\r\nb\r\n", "250 " + strings.Repeat("x", 3000) + "\r\n", strings.Repeat("250-x\r\n", 1000) + "250 x\r\n",
	} {
		if got, err := readReply(replyReader(strings.NewReader(in))); !errors.Is(err, errReply) {
			t.Errorf("%.40q is read as %+v, %v", in, got, err)
		}
	}
	// Half a reply is none: nobody knows what the other half says.
	for _, in := range []string{"", "250", "250 Ok", "250-Ok\r\n", "250-Ok\r\n250 O"} {
		if got, err := readReply(replyReader(strings.NewReader(in))); !errors.Is(err, io.EOF) {
			t.Errorf("%q is read as %+v, %v", in, got, err)
		}
	}
}

func TestRepliesAreReadOneByOne(t *testing.T) {
	r := replyReader(strings.NewReader("250 a\r\n250-b\r\n250 b\r\n354 c\r\n"))
	for _, want := range []string{"a", "b\nb", "c"} {
		if got, err := readReply(r); err != nil || got.text != want {
			t.Errorf("%+v, %v and not %q", got, err, want)
		}
	}
}

// endless says the same for ever, and how much of it was taken.
type endless struct {
	text  string
	taken int
}

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.text[(e.taken+i)%len(e.text)]
	}
	e.taken += len(p)
	return len(p), nil
}

func TestEndlessRepliesAreCutShort(t *testing.T) {
	for _, text := range []string{"250-more\r\n", "2", "250-" + strings.Repeat("x", 2000) + "\r\n", "\r\n"} {
		e := &endless{text: text}
		if got, err := readReply(replyReader(e)); !errors.Is(err, errReply) {
			t.Errorf("%.20q without end is read as %+v, %v", text, got, err)
		}
		if e.taken > (maxReplyLines+2)*(maxReplyLine+2) {
			t.Errorf("%.20q without end: %d bytes were read", text, e.taken)
		}
	}
}

// The server's words go to logs, pages and the event log: whatever it says they
// are bounded UTF-8 without control characters.
func FuzzReadReply(f *testing.F) {
	for _, s := range []string{"250 2.0.0 Ok\r\n", "250-a\r\n250 b\r\n", "550-5.1.1 x\r\n550 5.1.1 \xff\x1b[31m\r\n", "250", "\r\n", "999 x\r\n", "250-\r\n250-\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := readReply(replyReader(strings.NewReader(string(in))))
		if err != nil {
			if got != (reply{}) {
				t.Fatalf("%q gives %+v beside %v", in, got, err)
			}
			return
		}
		if got.code < 200 || got.code > 599 || len(got.text) > 3*len(in) || !utf8.ValidString(got.text) {
			t.Fatalf("%q is read as %+v", in, got)
		}
		if strings.ContainsFunc(got.text, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }) {
			t.Fatalf("%q keeps control characters: %q", in, got.text)
		}
		if got.enhanced != "" && (int(got.enhanced[0]-'0') != got.code/100 || strings.Count(got.enhanced, ".") != 2) {
			t.Fatalf("%q has the enhanced code %q", in, got.enhanced)
		}
		for _, phase := range []string{PhaseMail, PhaseRcpt, PhaseData, PhaseDot} {
			outcome, bounce := verdict(phase, got)
			if outcome == Unknown || outcome == Delivered && (got.code/100 != 2 || phase != PhaseDot) || outcome == Bounced && got.code/100 != 5 {
				t.Fatalf("%q in %s is %s %+v", in, phase, outcome, bounce)
			}
			if (bounce == Bounce{}) != (outcome == Delivered) {
				t.Fatalf("%q in %s is %s with %+v", in, phase, outcome, bounce)
			}
		}
	})
}
