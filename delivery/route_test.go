package delivery

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func hostNames(hosts []host) []string {
	names := make([]string, len(hosts))
	for i, h := range hosts {
		names[i] = h.name
	}
	return names
}

func TestRoutes(t *testing.T) {
	dns := serveDNS(t,
		"mx1.test. 60 IN A 192.0.2.1", "mx2.test. 60 IN A 192.0.2.2", "mx3.test. 60 IN AAAA 2001:db8::3", "bare.test. 60 IN TXT \"x\"",
		"plain.test. 60 IN MX 20 mx2.test.", "plain.test. 60 IN MX 30 mx3.test.", "plain.test. 60 IN MX 10 MX1.test.",
		"alias.test. 60 IN CNAME plain.test.",
		"implicit.test. 60 IN A 192.0.2.9", "implicit6.test. 60 IN AAAA 2001:db8::9", "flaky.test. 60 IN TXT \"x\"",
		"null.test. 60 IN MX 0 .",
		"null.test. 60 IN A 192.0.2.9", // an address does not matter (RFC 7505)
		"some.test. 60 IN MX 0 .", "some.test. 60 IN MX 10 mx1.test.",
		"nowhere.test. 60 IN MX 10 gone.test.", "nowhere.test. 60 IN MX 20 bare.test.", "nowhere.test. 60 IN A 192.0.2.9",
		"half.test. 60 IN MX 10 gone.test.", "half.test. 60 IN MX 20 mx2.test.",
		"unsure.test. 60 IN MX 10 gone.test.", "unsure.test. 60 IN MX 20 failing.test.",
		"loop.test. 60 IN MX 10 sender.test.", "loop.test. 60 IN MX 20 mx2.test.",
		"backup.test. 60 IN MX 10 mx1.test.", "backup.test. 60 IN MX 20 SENDER.test.", "backup.test. 60 IN MX 30 mx2.test.",
		"level.test. 60 IN MX 5 mx3.test.", "level.test. 60 IN MX 10 mx1.test.", "level.test. 60 IN MX 10 sender.test.", "level.test. 60 IN MX 10 mx2.test.",
		"sender.test. 60 IN A 192.0.2.7",
	)
	dns.fail("failing.test.")
	for _, hostname := range []string{"sender.test", "Sender.Test"} {
		s := newSender(t, Config{Hostname: hostname, Resolver: NewResolver(dns.addr)})
		for _, c := range []struct {
			domain   string
			hosts    string
			outcome  Outcome
			enhanced string
		}{
			{"plain.test", "mx1.test mx2.test mx3.test", "", ""},
			{"PLAIN.test", "mx1.test mx2.test mx3.test", "", ""},
			{"alias.test", "mx1.test mx2.test mx3.test", "", ""},
			{"implicit.test", "implicit.test", "", ""},
			{"implicit6.test", "implicit6.test", "", ""},
			{"some.test", "mx1.test", "", ""},
			{"half.test", "mx2.test", "", ""},
			{"unsure.test", "failing.test", "", ""}, // what fails may come back
			{"backup.test", "mx1.test", "", ""},
			{"null.test", "", Bounced, "5.1.10"},
			{"gone.test", "", Bounced, "5.1.2"},
			{"bare.test", "", Bounced, "5.1.2"},
			{"failing.test", "", Deferred, "4.4.3"},
			{"nowhere.test", "", Bounced, "5.4.4"},
			{"loop.test", "", Bounced, "5.4.6"},
			{"sender.test", "", Bounced, "5.4.6"}, // by its own address
		} {
			hosts, result := s.route(t.Context(), c.domain)
			if got := strings.Join(hostNames(hosts), " "); got != c.hosts {
				t.Errorf("%s leads to %q and not %q", c.domain, got, c.hosts)
			}
			switch {
			case c.outcome == "" && result != nil, c.outcome != "" && result == nil:
				t.Errorf("%s: %+v", c.domain, result)
			case result != nil && (result.Outcome != c.outcome || result.Enhanced != c.enhanced || result.Phase != PhaseRoute || result.Text == "" || result.Bounce.Type == ""):
				t.Errorf("%s: %+v", c.domain, result)
			}
		}
		// This host among equals: in whatever order they come, none of them is tried.
		for range 20 {
			if hosts, _ := s.route(t.Context(), "level.test"); !slices.Equal(hostNames(hosts), []string{"mx3.test"}) {
				t.Fatalf("%s: beside this host %v are tried", hostname, hostNames(hosts))
			}
		}
	}
}

func TestRoutesAreBounded(t *testing.T) {
	var records []string
	for i := range 30 {
		records = append(records, fmt.Sprintf("many.test. 60 IN MX 10 m%d.test.", i), fmt.Sprintf("m%d.test. 60 IN A 192.0.2.1", i))
	}
	s := newSender(t, Config{Hostname: "sender.test", Resolver: NewResolver(serveDNS(t, records...).addr)})
	if hosts, result := s.route(t.Context(), "many.test"); result != nil || len(hosts) != maxHosts {
		t.Errorf("%d hosts, %v", len(hosts), result)
	}
}

// Anybody can publish an MX that names a host inside this network.
func TestPrivateAddressesAreRefused(t *testing.T) {
	private := []string{
		"127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255",
		"192.0.2.1", "198.18.0.1", "240.0.0.1",
	}
	private6 := []string{"::1", "::", "fe80::1", "fc00::1", "fd12::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "64:ff9b:1::1"}
	public := []string{"8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8"}
	for _, text := range append(private, private6...) {
		if isPublic(netip.MustParseAddr(text).Unmap()) {
			t.Errorf("%s is taken for a public address", text)
		}
	}
	for _, text := range public {
		if !isPublic(netip.MustParseAddr(text).Unmap()) {
			t.Errorf("%s is not taken for a public address", text)
		}
	}

	inside := serve(t, "", manners{}.speak)
	var records []string
	for i, text := range private {
		records = append(records, fmt.Sprintf("d%d.test. 60 IN MX 10 m%d.test.", i, i), fmt.Sprintf("m%d.test. 60 IN A %s", i, text))
	}
	records = append(records,
		"six.test. 60 IN AAAA ::1", "mapped.test. 60 IN AAAA ::ffff:127.0.0.1", "literal.test. 60 IN MX 10 127.0.0.1.", "local.test. 60 IN MX 10 localhost.",
		"implicit.test. 60 IN A 127.0.0.1", "mixed.test. 60 IN A 127.0.0.1", "mixed.test. 60 IN A 8.8.8.8",
	)
	dns := serveDNS(t, records...)
	s := newSender(t, Config{Hostname: "sender.test", Port: inside.port(), Resolver: NewResolver(dns.addr)})
	domains := []string{"six.test", "mapped.test", "literal.test", "local.test", "implicit.test"}
	for i := range private {
		domains = append(domains, fmt.Sprintf("d%d.test", i))
	}
	for _, domain := range domains {
		got := sendTo(t, s, Envelope{From: "a@acme.test", To: "b@" + domain})
		if got.Outcome != Deferred && got.Outcome != Bounced || got.Code != 0 {
			t.Errorf("%s: %+v", domain, got)
		}
		if strings.HasPrefix(domain, "d") && !strings.Contains(got.Text, errPrivate.Error()) {
			t.Errorf("%s: %+v", domain, got)
		}
	}
	if n := inside.connections(); n != 0 {
		t.Errorf("%d connections were made to a host inside", n)
	}
	if addrs, err := s.addrs(t.Context(), host{name: "mixed.test"}); err != nil || !slices.Equal(addrs, []netip.Addr{netip.MustParseAddr("8.8.8.8")}) {
		t.Errorf("of public and private addresses %v are used, %v", addrs, err)
	}
	s = newSender(t, Config{Hostname: "sender.test", Port: inside.port(), Resolver: NewResolver(dns.addr), AllowPrivate: true})
	if got := sendTo(t, s, Envelope{From: "a@acme.test", To: "b@implicit.test"}); got.Outcome != Delivered || got.Host != "implicit.test" || got.IP != "127.0.0.1" {
		t.Errorf("with AllowPrivate: %+v", got)
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for _, c := range []Config{
		{},
		{Hostname: "not a host"},
		{Hostname: "a..b"},
		{Hostname: "x\r\nMAIL"},
		relay(t, "http", "", "127.0.0.1:25"), relay(t, "smtp", "", ""),
	} {
		if _, err := NewSender(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
	s := newSender(t, relay(t, "smtps", "", "relay.test"))
	if hosts, _ := s.route(t.Context(), "x.test"); len(hosts) != 1 || hosts[0].port != 465 || !hosts[0].implicit {
		t.Errorf("smtps: %+v", hosts)
	}
	s = newSender(t, relay(t, "smtp", "", "relay.test"))
	if hosts, _ := s.route(t.Context(), "x.test"); len(hosts) != 1 || hosts[0].port != 587 || hosts[0].implicit {
		t.Errorf("smtp: %+v", hosts)
	}
}
