package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// DNS is a Knot server that is authoritative for some zones.
type DNS struct {
	Addr  string // host:port, UDP and TCP
	t     testing.TB
	dir   string
	zones []string
}

// StartDNS runs the server for zones that hold no more than their own SOA.
func StartDNS(t testing.TB, zones ...string) *DNS {
	t.Helper()
	knotd := program(t, "knotd", "knot")
	d := &DNS{Addr: fmt.Sprintf("127.0.0.1:%d", freePort(t)), t: t, dir: t.TempDir(), zones: zones}
	var conf strings.Builder
	fmt.Fprintf(&conf, "server:\n  listen: %s\n  rundir: %s\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n", strings.Replace(d.Addr, ":", "@", 1), d.dir)
	fmt.Fprintf(&conf, "database:\n  storage: %s\n  journal-db-max-size: 20M\n  kasp-db-max-size: 20M\n  timer-db-max-size: 20M\n", d.dir)
	fmt.Fprintf(&conf, "log:\n  - target: stderr\n    any: warning\nacl:\n  - id: test\n    address: 127.0.0.1\n    action: update\n")
	fmt.Fprintf(&conf, "template:\n  - id: default\n    storage: %s\n    acl: test\n    zonefile-sync: -1\n    journal-content: none\n    zonefile-load: whole\nzone:\n", d.dir)
	for _, z := range zones {
		fmt.Fprintf(&conf, "  - domain: %s\n", z)
		zone := fmt.Sprintf("$ORIGIN %s.\n$TTL 60\n@ SOA ns hostmaster 1 3600 600 86400 1\n@ NS ns\nns A 127.0.0.1\n", z)
		write(t, filepath.Join(d.dir, z+".zone"), zone)
	}
	write(t, filepath.Join(d.dir, "knot.conf"), conf.String())
	output := &strings.Builder{}
	cmd := exec.Command(knotd, "-c", filepath.Join(d.dir, "knot.conf"))
	cmd.Stdout, cmd.Stderr = output, output
	run(t, cmd)
	Eventually(t, 20*time.Second, func() error {
		for _, z := range zones {
			m := new(dns.Msg)
			m.SetQuestion(z+".", dns.TypeSOA)
			reply, _, err := new(dns.Client).Exchange(m, d.Addr)
			if err != nil || reply.Rcode != dns.RcodeSuccess {
				return fmt.Errorf("knot does not answer for %s: %v", z, err)
			}
		}
		return nil
	})
	return d
}

// Add adds records, such as "mx1.rcpt.test. 60 A 127.0.0.1", by dynamic update.
func (d *DNS) Add(records ...string) {
	d.t.Helper()
	for _, text := range records {
		record, err := dns.NewRR(text)
		if err != nil {
			d.t.Fatal(err)
		}
		d.update(record, func(m *dns.Msg) { m.Insert([]dns.RR{record}) })
	}
}

// Remove removes all records of a name and type.
func (d *DNS) Remove(text string) {
	d.t.Helper()
	record, err := dns.NewRR(text)
	if err != nil {
		d.t.Fatal(err)
	}
	d.update(record, func(m *dns.Msg) { m.RemoveRRset([]dns.RR{record}) })
}

func (d *DNS) update(record dns.RR, change func(*dns.Msg)) {
	d.t.Helper()
	for _, z := range d.zones {
		if !dns.IsSubDomain(z+".", record.Header().Name) {
			continue
		}
		m := new(dns.Msg)
		m.SetUpdate(z + ".")
		change(m)
		reply, _, err := (&dns.Client{Net: "tcp"}).Exchange(m, d.Addr)
		if err != nil || reply.Rcode != dns.RcodeSuccess {
			d.t.Fatalf("update %s: %v %v", record, err, reply)
		}
		return
	}
	d.t.Fatalf("%s is in none of the zones %v", record, d.zones)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// run starts a program, and ends it with the test.
func run(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		done := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-done
		}
	})
}
