package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The client is whom the proxies in front were asked by. Nobody can say that they
// are somebody else.
func TestTheClientBehindProxies(t *testing.T) {
	proxies := []string{"10.0.0.0/8", "fd00::/8"}
	for _, c := range []struct {
		name    string
		trusted []string
		peer    string
		headers []string
		want    string
	}{
		{"no proxy is known", nil, "10.0.0.1:5000", []string{"203.0.113.7"}, "10.0.0.1:5000"},
		{"a stranger who names somebody", proxies, "198.51.100.1:5000", []string{"203.0.113.7"}, "198.51.100.1:5000"},
		{"a stranger who names a proxy", proxies, "198.51.100.1:5000", []string{"203.0.113.7, 10.0.0.1"}, "198.51.100.1:5000"},
		{"one proxy", proxies, "10.0.0.1:5000", []string{"203.0.113.7"}, "203.0.113.7:0"},
		{"what the client has said before the proxy", proxies, "10.0.0.1:5000", []string{"192.0.2.1, 203.0.113.7"}, "203.0.113.7:0"},
		{"the same in two headers", proxies, "10.0.0.1:5000", []string{"192.0.2.1", "203.0.113.7"}, "203.0.113.7:0"},
		{"two proxies", proxies, "10.0.0.1:5000", []string{"192.0.2.1, 203.0.113.7, 10.2.2.2"}, "203.0.113.7:0"},
		{"a client who claims to be a proxy", proxies, "10.0.0.1:5000", []string{"10.9.9.9, 203.0.113.7"}, "203.0.113.7:0"},
		{"a client within the networks", proxies, "10.0.0.1:5000", []string{"10.3.3.3"}, "10.3.3.3:0"},
		{"a proxy that says nothing", proxies, "10.0.0.1:5000", nil, "10.0.0.1:5000"},
		{"what is no address", proxies, "10.0.0.1:5000", []string{"203.0.113.7, unknown"}, "10.0.0.1:5000"},
		{"with a port", proxies, "10.0.0.1:5000", []string{"203.0.113.7:61000"}, "203.0.113.7:0"},
		{"of IPv6", proxies, "[fd00::1]:5000", []string{"2001:db8::7"}, "[2001:db8::7]:0"},
		{"of IPv6 with a port", proxies, "[fd00::1]:5000", []string{"[2001:db8::7]:61000"}, "[2001:db8::7]:0"},
		{"a proxy of IPv4 on a socket of both", proxies, "[::ffff:10.0.0.1]:5000", []string{"203.0.113.7"}, "203.0.113.7:0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got string
			h := behindProxies(c.trusted, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.RemoteAddr }))
			r := httptest.NewRequestWithContext(t.Context(), "GET", "/health", nil)
			r.RemoteAddr = c.peer
			r.Header["X-Forwarded-For"] = c.headers
			h.ServeHTTP(httptest.NewRecorder(), r)
			if got != c.want {
				t.Errorf("the client is %s, not %s", got, c.want)
			}
		})
	}
}

// A mistake in the networks is told at the start.
func TestNetworksOfProxiesAreChecked(t *testing.T) {
	for _, network := range []string{"10.0.0.1", "proxy.acme.com", "10.0.0.0/33", ""} {
		c := Config{Proxies: []string{network}, MXPort: 25}
		if err := c.check(); err == nil || !strings.Contains(err.Error(), "POSTBOOK_TRUSTED_PROXIES") {
			t.Errorf("%q: %v", network, err)
		}
	}
}

// The scheme that a client used is a trusted proxy's to say.
func TestSchemeBehindProxies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ peer, says, want string }{
		{"10.0.0.1:5000", "https", "https"},
		{"[::ffff:10.0.0.1]:5000", "HTTPS", "https"},
		{"10.0.0.1:5000", "http", ""},
		{"10.0.0.1:5000", "", ""},
		{"198.51.100.1:5000", "https", ""},
	} {
		got := "not asked"
		h := behindProxies([]string{"10.0.0.0/8"}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.URL.Scheme }))
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/console/", nil)
		r.RemoteAddr = c.peer
		r.Header.Set("X-Forwarded-Proto", c.says)
		h.ServeHTTP(httptest.NewRecorder(), r)
		if got != c.want {
			t.Errorf("%s says %q: the scheme is %q, not %q", c.peer, c.says, got, c.want)
		}
	}
}
