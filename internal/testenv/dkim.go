package testenv

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// VerifyDKIM has OpenDKIM verify a message as it was received, with the key that
// the DNS server holds, and returns what is wrong with it, or nothing.
func VerifyDKIM(t testing.TB, message, dnsAddr string) string {
	t.Helper()
	opendkim := program(t, "opendkim", "opendkim opendkim-tools")
	dir := t.TempDir()
	name := signatureName(t, message)
	m := new(dns.Msg)
	m.SetQuestion(name+".", dns.TypeTXT)
	reply, _, err := (&dns.Client{Net: "tcp"}).Exchange(m, dnsAddr)
	if err != nil {
		t.Fatal(err)
	}
	if len(reply.Answer) == 0 {
		return "no key at " + name
	}
	// OpenDKIM cannot be given a DNS server with a port of its own, so it gets what
	// ours has answered.
	txt := strings.Join(reply.Answer[0].(*dns.TXT).Txt, "")
	write(t, filepath.Join(dir, "keys"), name+" "+txt+"\n")
	write(t, filepath.Join(dir, "conf"), "Mode v\nTestPublicKeys "+filepath.Join(dir, "keys")+"\nSyslog no\n")
	write(t, filepath.Join(dir, "message"), message)
	out, _ := exec.Command(opendkim, "-x", filepath.Join(dir, "conf"), "-t", filepath.Join(dir, "message")).CombinedOutput()
	if strings.Contains(string(out), "verification (s="+strings.SplitN(name, ".", 2)[0]) && strings.Contains(string(out), "succeeded") {
		return ""
	}
	return "OpenDKIM says: " + string(out)
}

// signatureName is where the key of a message's signature is published.
func signatureName(t testing.TB, message string) string {
	t.Helper()
	unfolded := strings.NewReplacer("\r\n ", " ", "\r\n\t", " ", "\n ", " ", "\n\t", " ").Replace(message)
	for _, line := range strings.Split(unfolded, "\n") {
		if line == "" || line == "\r" {
			break
		}
		value, ok := strings.CutPrefix(line, "DKIM-Signature:")
		if !ok {
			continue
		}
		tags := map[string]string{}
		for _, tag := range strings.Split(value, ";") {
			name, v, _ := strings.Cut(strings.TrimSpace(tag), "=")
			tags[strings.TrimSpace(name)] = strings.TrimSpace(v)
		}
		return tags["s"] + "._domainkey." + tags["d"]
	}
	t.Fatal("the message has no DKIM signature")
	return ""
}
