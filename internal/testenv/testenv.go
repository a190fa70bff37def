// Package testenv gives tests real things to talk to: a PostgreSQL database, an
// authoritative DNS server, a mail server that receives, a verifier of
// signatures, and a sink that takes mail as fast as it comes.
package testenv

import (
	"fmt"
	"net"
	"os/exec"
	"testing"
	"time"
)

// Eventually waits until a condition holds, and fails the test with what it says
// if it does not in time. It looks often, so that a test is as fast as what it
// waits for.
func Eventually(t testing.TB, within time.Duration, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %v", within, err)
		}
		time.Sleep(wait)
	}
}

// freePort is a TCP and UDP port of 127.0.0.1 that nobody has at the moment.
func freePort(t testing.TB) int {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port))
		l.Close()
		if err == nil {
			u.Close()
			return port
		}
	}
	t.Fatal("there is no free port")
	return 0
}

// program finds a program, or says how to get it.
func program(t testing.TB, name, debian string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/usr/bin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing: `make test` installs it, or apt-get install %s", name, debian)
	return ""
}
