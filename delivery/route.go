package delivery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// host is a server to try.
type host struct {
	name     string
	port     int
	fixed    bool          // takes everything, and is trusted: this host's own sandbox
	implicit bool          // TLS from the first byte
	user     *url.Userinfo // to authenticate as
}

func (h host) key() string { return h.name + ":" + strconv.Itoa(h.port) }

// fault is the result of what went wrong with this host.
func (h host) fault(c *conn, f *fault) Result {
	result := h.failed(f.phase, f.err)
	if c != nil {
		result.IP, result.TLS = c.ip, c.tls
	}
	if f.reply.code != 0 {
		result.Code, result.Enhanced, result.Text = f.reply.code, f.reply.enhanced, f.reply.text
		switch f.phase {
		case PhaseMail, PhaseRcpt, PhaseData, PhaseDot:
			result.Outcome, result.Bounce = verdict(f.phase, f.reply)
		}
		// A refusal before that is about this host, and may pass: it bounces nothing.
		return result
	}
	if f.phase == PhaseDot {
		result.Outcome, result.Bounce = Unknown, Bounce{"Undetermined", "Undetermined"}
	}
	return result
}

func (h host) failed(phase string, err error) Result {
	r := Result{Outcome: Deferred, Phase: phase, Host: h.name, Bounce: Bounce{"Transient", "General"}}
	if err != nil {
		r.Text = clean(err.Error())
	}
	return r
}

// route finds the servers that take mail for a domain (RFC 5321, 5.1).
func (s *Sender) route(ctx context.Context, domain string) ([]host, *Result) {
	if s.cfg.Fixed != "" {
		name, port, err := net.SplitHostPort(s.cfg.Fixed)
		number, bad := strconv.Atoi(port)
		if err = errors.Join(err, bad); err != nil {
			return nil, &Result{Outcome: Deferred, Phase: PhaseRoute, Text: err.Error(), Bounce: Bounce{"Transient", "General"}}
		}
		return []host{{name: name, port: number, fixed: true}}, nil
	}
	if relay := s.cfg.Relay; relay != nil {
		h := host{name: relay.Hostname(), port: 587, implicit: relay.Scheme == "smtps", user: relay.User}
		if h.implicit {
			h.port = 465
		}
		if relay.Port() != "" {
			h.port, _ = strconv.Atoi(relay.Port()) // url.Parse lets digits through only
		}
		return []host{h}, nil
	}
	return s.mailServers(ctx, domain)
}

func (s *Sender) mailServers(ctx context.Context, domain string) ([]host, *Result) {
	mx, err := s.cfg.Resolver.MX(ctx, domain)
	switch {
	case errors.Is(err, ErrNoAnswer):
		// No MX: the domain itself takes its mail, if it has an address.
		_, err := s.cfg.Resolver.Addrs(ctx, domain)
		if errors.Is(err, ErrNoAnswer) {
			return nil, &Result{Outcome: Bounced, Phase: PhaseRoute, Enhanced: "5.1.2", Text: "The domain " + domain + " does not exist or takes no mail.", Bounce: Bounce{"Permanent", "NoEmail"}}
		}
		if err != nil {
			return nil, dnsFault(err)
		}
		if s.isSelf(domain) {
			return nil, loop(domain)
		}
		return []host{{name: domain, port: s.cfg.Port}}, nil
	case err != nil:
		return nil, dnsFault(err)
	case len(mx) == 1 && mx[0].Host == ".":
		return nil, &Result{Outcome: Bounced, Phase: PhaseRoute, Code: 556, Enhanced: "5.1.10", Text: "The domain " + domain + " says that it takes no mail (RFC 7505).", Bounce: Bounce{"Permanent", "NoEmail"}}
	}
	if i := slices.IndexFunc(mx, func(m *net.MX) bool { return s.isSelf(m.Host) }); i >= 0 {
		// This host and those that are no better would send it back here.
		own := mx[i].Pref
		mx = slices.DeleteFunc(mx, func(m *net.MX) bool { return m.Pref >= own })
	}
	var hosts []host
	nowhere := false
	for _, m := range mx {
		name := strings.ToLower(strings.TrimSuffix(m.Host, "."))
		if name == "" || len(hosts) == maxHosts {
			continue
		}
		if _, err := s.cfg.Resolver.Addrs(ctx, name); errors.Is(err, ErrNoAnswer) {
			nowhere = true
			continue
		}
		hosts = append(hosts, host{name: name, port: s.cfg.Port})
	}
	if len(hosts) == 0 && nowhere {
		return nil, &Result{Outcome: Bounced, Phase: PhaseRoute, Enhanced: "5.4.4", Text: "The mail servers of " + domain + " have no addresses.", Bounce: Bounce{"Permanent", "General"}}
	}
	if len(hosts) == 0 {
		return nil, loop(domain)
	}
	return hosts, nil
}

func (s *Sender) isSelf(name string) bool {
	return strings.EqualFold(strings.TrimSuffix(name, "."), s.cfg.Hostname)
}

func loop(domain string) *Result {
	return &Result{Outcome: Bounced, Phase: PhaseRoute, Enhanced: "5.4.6", Text: "The mail servers of " + domain + " lead back to this one.", Bounce: Bounce{"Permanent", "General"}}
}

func dnsFault(err error) *Result {
	return &Result{Outcome: Deferred, Phase: PhaseRoute, Enhanced: "4.4.3", Text: clean(err.Error()), Bounce: Bounce{"Transient", "General"}}
}

// errPrivate keeps customers from having this host speak to its own network.
var errPrivate = errors.New("the mail server's name leads to an address that is not public")

// addrs are a host's addresses that may be connected to.
func (s *Sender) addrs(ctx context.Context, h host) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(h.name); err == nil {
		if h.fixed || s.cfg.Relay != nil {
			return []netip.Addr{ip}, nil
		}
		return nil, fmt.Errorf("%s: %w", h.name, errPrivate)
	}
	if s.cfg.Relay != nil && h.name == "localhost" {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, nil
	}
	found, err := s.cfg.Resolver.Addrs(ctx, h.name)
	if err != nil {
		return nil, err
	}
	if s.cfg.AllowPrivate || s.cfg.Relay != nil {
		return found, nil
	}
	var public []netip.Addr
	for _, ip := range found {
		if isPublic(ip.Unmap()) {
			public = append(public, ip)
		}
	}
	if len(public) == 0 {
		return nil, fmt.Errorf("%s: %w", h.name, errPrivate)
	}
	return public, nil
}

// notPublic are the ranges of the IANA special-purpose registries that
// netip.Addr has no word for.
var notPublic = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2001:db8::/32"),
}

func isPublic(ip netip.Addr) bool {
	if !ip.IsGlobalUnicast() || ip.IsPrivate() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}
