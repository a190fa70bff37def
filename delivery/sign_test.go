package delivery

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-msgauth/dkim"
)

var signingKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// record is what a customer publishes.
func record(t testing.TB, key *rsa.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return "p=" + base64.StdEncoding.EncodeToString(der)
}

func verify(t testing.TB, message []byte) error {
	t.Helper()
	verifications, err := dkim.VerifyWithOptions(bytes.NewReader(message), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		if name != "resend._domainkey.acme.test" {
			t.Errorf("the key is looked for at %s", name)
		}
		return []string{record(t, signingKey())}, nil
	}})
	if err != nil {
		return err
	}
	if len(verifications) != 1 || verifications[0].Domain != "acme.test" {
		t.Fatalf("there are the signatures %v", verifications)
	}
	return verifications[0].Err
}

func signedMessage(t testing.TB) (unsigned, message []byte) {
	t.Helper()
	m := plain()
	m.Subject, m.HTML = "Grüße, a subject that is long enough for two lines of a header, or so", "<p>é\n.\n trailing  \n\n\n"
	m.Cc, m.ReplyTo = []Address{{"", "carl", "rcpt.test"}}, []Address{{"", "desk", "acme.test"}}
	m.Headers = []Header{{"List-Unsubscribe", "<https://acme.test/u>"}, {"X-Own", "1"}}
	raw, _ := build(t, m)
	message, err := NewSigner("acme.test", "resend", signingKey()).Sign(raw)
	if err != nil {
		t.Fatal(err)
	}
	return raw, message
}

func TestSignaturesVerify(t *testing.T) {
	raw, message := signedMessage(t)
	if !bytes.HasPrefix(message, []byte("DKIM-Signature:")) || !bytes.HasSuffix(message, raw) {
		t.Fatal("it is not the message with a signature in front")
	}
	if err := onWire(message); err != nil {
		t.Fatal(err)
	}
	if err := verify(t, message); err != nil {
		t.Fatal(err)
	}
	e, err := read(message)
	if err != nil {
		t.Fatal(err)
	}
	signature := e.header.Get("Dkim-Signature")
	for _, tag := range []string{"a=rsa-sha256", "c=relaxed/relaxed", "d=acme.test", "s=resend"} {
		if !strings.Contains(signature, tag+";") {
			t.Errorf("%s is not in %s", tag, signature)
		}
	}
	if strings.Contains(signature, " l=") {
		t.Error("the signature leaves the end of the body open")
	}
}

func TestWhatRelaysDoToAMessageLeavesTheSignatureWhole(t *testing.T) {
	_, message := signedMessage(t)
	for name, changed := range map[string][]byte{
		"a trace on top":      append([]byte("Received: by relay.test; Wed, 04 Mar 2026 12:00:06 +0100\r\nReturn-Path: <b@c.test>\r\n"), message...),
		"a header of its own": bytes.Replace(message, []byte("X-Own: 1"), []byte("X-Spam-Score: 0\r\nX-Own: 1"), 1),
		"other folding":       bytes.Replace(message, []byte("MIME-Version: 1.0"), []byte("MIME-Version:\r\n  1.0"), 1),
		"blank lines at end":  append(bytes.Clone(message), "\r\n\r\n"...),
	} {
		if err := verify(t, changed); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A header that is added, though there was none, changes what a reader sees:
// signing each of these once more than it occurs makes that visible.
func TestAddedAndChangedHeadersBreakTheSignature(t *testing.T) {
	_, message := signedMessage(t)
	for _, h := range []string{
		"From: evil@other.test", "To: other@other.test", "Cc: other@other.test", "Subject: evil", "Date: Wed, 04 Mar 2026 12:00:05 +0100", "Reply-To: evil@other.test",
		"Message-ID: <evil>", "MIME-Version: 1.0", "Content-Type: text/html", "Content-Transfer-Encoding: base64",
		"List-Unsubscribe: <https://evil.test>", "List-Unsubscribe-Post: List-Unsubscribe=One-Click", "In-Reply-To: <x@y>", "References: <x@y>",
	} {
		if verify(t, append([]byte(h+"\r\n"), message...)) == nil {
			t.Errorf("%s can be added on top", h)
		}
		if below := bytes.Replace(message, []byte("X-Own: 1"), []byte("X-Own: 1\r\n"+h), 1); verify(t, below) == nil {
			t.Errorf("%s can be added below", h)
		}
	}
	for name, changed := range map[string][]byte{
		"the body":    bytes.Replace(message, []byte("Hi Jane"), []byte("Hi Joan"), 1),
		"the subject": bytes.Replace(message, []byte("subject"), []byte("Subject"), 1),
		"the end":     append(bytes.Clone(message), "more\r\n"...),
	} {
		if verify(t, changed) == nil {
			t.Errorf("%s can be changed", name)
		}
	}
}

func TestSignersAreReadFromStoredKeys(t *testing.T) {
	der, err := x509.MarshalPKCS8PrivateKey(signingKey())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSigner("acme.test", "resend", der)
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := build(t, plain())
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if message, err := s.Sign(raw); err != nil || verify(t, message) != nil {
				t.Errorf("signing at the same time: %v", err)
			}
		})
	}
	all.Wait()
	for _, bad := range [][]byte{nil, []byte("no key"), der[:100]} {
		if _, err := ParseSigner("acme.test", "resend", bad); err == nil || !strings.Contains(err.Error(), "acme.test") {
			t.Errorf("a broken key gives %v", err)
		}
	}
	if _, err := s.Sign([]byte("no header at all")); err == nil {
		t.Error("what is no message is signed")
	}
}

func TestKeyRecord(t *testing.T) {
	for _, c := range []struct {
		txt, key string
		ok       bool
	}{
		{"p=QUJD", "QUJD", true},
		{"v=DKIM1; k=rsa; p=QUJD", "QUJD", true},
		{"v=DKIM1;k=rsa;t=s;p=QUJD;", "QUJD", true},
		{" v = DKIM1 ; p = QU JD\tQUJD ", "QUJDQUJD", true}, // pasted with blanks
		{"v=DKIM1; p=", "", true},                           // revoked
		{"p=QUI=", "QUI=", true},
		{"", "", false},
		{"v=DKIM1; k=rsa", "", false},
		{"v=spf1 include:x ~all", "", false},
		{"v=DKIM2; p=QUJD", "", false},
		{"v=DKIM1; k=ed25519; p=QUJD", "", false},
		{"v=DKIM1; p=QUJ", "", false},
		{"v=DKIM1; p=no key!", "", false},
		{"google-site-verification=abc", "", false},
	} {
		if key, ok := KeyRecord(c.txt); key != c.key || ok != c.ok {
			t.Errorf("%q is read as %q, %v", c.txt, key, ok)
		}
	}
	_, want, _ := strings.Cut(record(t, signingKey()), "=")
	if key, ok := KeyRecord("v=DKIM1; " + record(t, signingKey())); !ok || key != want {
		t.Error("a real key is not read back")
	}
}

func FuzzKeyRecord(f *testing.F) {
	f.Add("v=DKIM1; k=rsa; p=QUJD")
	f.Add("p=QU I=;p=")
	f.Add(";;=;v")
	f.Fuzz(func(t *testing.T, txt string) {
		key, ok := KeyRecord(txt)
		if !ok && key != "" {
			t.Fatalf("%q gives the key %q and no ok", txt, key)
		}
		if !ok {
			return
		}
		if _, err := base64.StdEncoding.DecodeString(key); err != nil {
			t.Fatalf("%q gives %q: %v", txt, key, err)
		}
		if again, ok := KeyRecord("v=DKIM1; p=" + key); !ok || again != key {
			t.Fatalf("%q gives %q, and that %q", txt, key, again)
		}
	})
}
