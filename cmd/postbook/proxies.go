package main

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// behindProxies gives each request the remote address of its client and the scheme
// it was asked with, if it came through proxies of these networks. What anybody else
// says in X-Forwarded-For and X-Forwarded-Proto is not believed.
func behindProxies(networks []string, next http.Handler) http.Handler {
	var trusted []netip.Prefix
	for _, n := range networks {
		if p, err := netip.ParsePrefix(n); err == nil { // the configuration was checked
			trusted = append(trusted, p)
		}
	}
	if len(trusted) == 0 {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			if isTrusted(peer.Addr().Unmap(), trusted) && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") {
				r.URL.Scheme = "https"
			}
			client := clientOf(peer.Addr(), r.Header.Values("X-Forwarded-For"), trusted)
			if client != peer.Addr().Unmap() {
				r.RemoteAddr = net.JoinHostPort(client.String(), "0") // the port is not known
			}
		}
		next.ServeHTTP(w, r)
	})
}

// clientOf is the rightmost address that is no trusted proxy: each proxy adds whom
// it was asked by, and what stands to the left of a stranger is the stranger's word.
func clientOf(peer netip.Addr, forwarded []string, trusted []netip.Prefix) netip.Addr {
	client := peer.Unmap()
	hops := strings.Split(strings.Join(forwarded, ","), ",")
	for i := len(hops) - 1; i >= 0 && isTrusted(client, trusted); i-- {
		hop, err := parseHop(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		client = hop
	}
	return client
}

func isTrusted(addr netip.Addr, trusted []netip.Prefix) bool {
	for _, p := range trusted {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// parseHop reads an address. Some proxies add the port.
func parseHop(text string) (netip.Addr, error) {
	if withPort, err := netip.ParseAddrPort(text); err == nil {
		return withPort.Addr().Unmap().WithZone(""), nil
	}
	addr, err := netip.ParseAddr(text)
	return addr.Unmap().WithZone(""), err
}
