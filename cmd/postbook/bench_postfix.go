package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// postfix is how many mails a second Postfix takes in, durably, and hands on to a
// sink: the same mails, from as many clients, on the same machine.
func (b *bench) postfix(ctx context.Context) (float64, error) {
	postfix, err := exec.LookPath("/usr/sbin/postfix")
	if err != nil {
		return 0, errors.New("it is not installed")
	}
	if os.Geteuid() != 0 {
		return 0, errors.New("it can be started as root only")
	}
	sink, err := startSink()
	if err != nil {
		return 0, err
	}
	defer sink.close()
	dir := filepath.Join(b.dir, "postfix")
	for _, d := range []string{"", "conf", "queue", "data"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return 0, err
		}
	}
	_ = os.Chmod(b.dir, 0o755) // its own accounts have to pass
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	addr := listener.Addr().String()
	_ = listener.Close()
	if err := writePostfix(dir, addr, sink.addr()); err != nil {
		return 0, err
	}
	conf := filepath.Join(dir, "conf")
	if out, err := exec.CommandContext(ctx, postfix, "-c", conf, "start").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("start: %w: %s", err, out)
	}
	defer func() { _ = exec.Command(postfix, "-c", conf, "stop").Run() }()
	mails := b.Mails / 4
	begun := time.Now()
	if err := sendSMTP(ctx, addr, mails, b.Clients); err != nil {
		return 0, err
	}
	took := time.Since(begun)
	for sink.taken.Load() < int64(mails) {
		if time.Since(begun) > 5*time.Minute {
			return 0, fmt.Errorf("%d of %d were handed on", sink.taken.Load(), mails)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return float64(mails) / took.Seconds(), nil
}

func writePostfix(dir, addr, sink string) error {
	host, port, _ := net.SplitHostPort(sink)
	files := map[string]string{
		"conf/main.cf": strings.Join([]string{
			"compatibility_level = 3.6", "queue_directory = " + filepath.Join(dir, "queue"), "data_directory = " + filepath.Join(dir, "data"),
			"command_directory = /usr/sbin", "daemon_directory = /usr/lib/postfix/sbin",
			"maillog_file = " + filepath.Join(dir, "log"), "maillog_file_prefixes = " + dir,
			"myhostname = bench.test", "mydestination =", "inet_interfaces = 127.0.0.1", "inet_protocols = ipv4", "mynetworks = 127.0.0.0/8",
			"relayhost = [" + host + "]:" + port, "smtpd_relay_restrictions = permit_mynetworks, reject", "smtpd_recipient_restrictions =",
			"smtpd_client_connection_count_limit = 0", "default_process_limit = 100", "alias_maps =", "alias_database =", "smtp_tls_security_level = none",
			"default_destination_concurrency_limit = 50", "",
		}, "\n"),
		"conf/master.cf": strings.Join([]string{
			addr + " inet n - n - - smtpd", "cleanup unix n - n - 0 cleanup", "qmgr unix n - n 300 1 qmgr", "rewrite unix - - n - - trivial-rewrite",
			"bounce unix - - n - 0 bounce", "defer unix - - n - 0 bounce", "trace unix - - n - 0 bounce", "verify unix - - n - 1 verify",
			"flush unix n - n 1000? 0 flush", "proxymap unix - - n - - proxymap", "smtp unix - - n - - smtp", "relay unix - - n - - smtp",
			"error unix - - n - - error", "retry unix - - n - - error", "anvil unix - - n - 1 anvil", "scache unix - - n - 1 scache",
			"postlog unix-dgram n - n - 1 postlogd", "",
		}, "\n"),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return exec.Command("chown", "postfix", filepath.Join(dir, "data")).Run()
}

// sendSMTP sends mails over SMTP, one transaction each, many on a connection.
func sendSMTP(ctx context.Context, addr string, mails, clients int) error {
	var next atomic.Int64
	errs := make(chan error, clients)
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			if err := smtpClient(ctx, addr, &next, int64(mails)); err != nil {
				errs <- err
			}
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func smtpClient(ctx context.Context, addr string, next *atomic.Int64, mails int64) error {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	ask := func(text string, replies int) error {
		if _, err := c.Write([]byte(text)); err != nil {
			return err
		}
		for replies > 0 {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return err
			}
			if line[0] != '2' && line[0] != '3' {
				return errors.New(string(line))
			}
			if len(line) > 3 && line[3] == ' ' {
				replies--
			}
		}
		return nil
	}
	if err := ask("", 1); err != nil {
		return err
	}
	if err := ask("EHLO client.test\r\n", 1); err != nil {
		return err
	}
	var message bytes.Buffer
	for {
		n := next.Add(1)
		if n > mails {
			return nil
		}
		if err := ask(fmt.Sprintf("MAIL FROM:<shop@%s>\r\nRCPT TO:<customer%d@rcpt.test>\r\nDATA\r\n", devDomain, n), 3); err != nil {
			return err
		}
		message.Reset()
		fmt.Fprintf(&message, "From: Shop <shop@%s>\r\nTo: customer%d@rcpt.test\r\nSubject: Order %d\r\nMessage-ID: <%d@%s>\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\n\r\n", devDomain, n, n, n, devDomain)
		for text := benchText; text != ""; {
			cut := min(72, len(text))
			message.WriteString(text[:cut] + "\r\n")
			text = text[cut:]
		}
		message.WriteString(".\r\n")
		if err := ask(message.String(), 1); err != nil {
			return err
		}
	}
}
