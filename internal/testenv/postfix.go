package testenv

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Postfix is a mail server that takes mail for some domains, and keeps it.
type Postfix struct {
	Port int
	t    testing.TB
	dir  string
	mail string
}

// StartPostfix runs a mail server on a port of 127.0.0.1. It takes everything for
// the domains, but for some local parts: reject@ is refused with 550 5.1.1 and
// later@ with 450 4.2.0. It has to be started as root, which is how Postfix gives
// rights up.
func StartPostfix(t testing.TB, domains ...string) *Postfix {
	t.Helper()
	postfix := program(t, "postfix", "postfix")
	if os.Geteuid() != 0 {
		t.Skip("Postfix can be started as root only")
	}
	// Its own accounts have to pass through the directory, which t.TempDir closes.
	dir, err := os.MkdirTemp("", "postbook-postfix-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := &Postfix{Port: freePort(t), t: t, dir: dir, mail: filepath.Join(dir, "mail")}
	for _, d := range []string{"conf", "queue", "data", "mail"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.writeConfig(domains)
	own(t, "postfix", filepath.Join(dir, "data"))
	own(t, "nobody", p.mail)
	output, err := exec.Command(postfix, "-c", filepath.Join(dir, "conf"), "start").CombinedOutput()
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		t.Fatalf("start Postfix: %v\n%s\n%s", err, output, log)
	}
	t.Cleanup(func() {
		if output, err := exec.Command(postfix, "-c", filepath.Join(dir, "conf"), "stop").CombinedOutput(); err != nil {
			t.Errorf("stop Postfix: %v\n%s", err, output)
		}
	})
	Eventually(t, 20*time.Second, func() error {
		c, err := net.Dial("tcp", p.Addr())
		if err != nil {
			return err
		}
		defer c.Close()
		banner := make([]byte, 4)
		_, err = c.Read(banner)
		return err
	})
	return p
}

// Addr is where the server listens.
func (p *Postfix) Addr() string { return fmt.Sprintf("127.0.0.1:%d", p.Port) }

func (p *Postfix) writeConfig(domains []string) {
	conf := func(name, text string) { write(p.t, filepath.Join(p.dir, "conf", name), text) }
	conf("main.cf", strings.Join([]string{
		"compatibility_level = 3.6",
		"queue_directory = " + filepath.Join(p.dir, "queue"),
		"data_directory = " + filepath.Join(p.dir, "data"),
		"command_directory = /usr/sbin",
		"daemon_directory = /usr/lib/postfix/sbin",
		"maillog_file = " + filepath.Join(p.dir, "log"),
		"maillog_file_prefixes = " + p.dir,
		"myhostname = mx1.rcpt.test",
		"mydestination =",
		"inet_interfaces = 127.0.0.1",
		"inet_protocols = ipv4",
		"mynetworks = 127.0.0.0/8",
		"smtpd_relay_restrictions = reject_unauth_destination",
		"smtpd_recipient_restrictions = check_recipient_access regexp:" + filepath.Join(p.dir, "conf", "access"),
		"virtual_mailbox_domains = " + strings.Join(domains, " "),
		"virtual_mailbox_base = " + p.mail,
		"virtual_mailbox_maps = regexp:" + filepath.Join(p.dir, "conf", "boxes"),
		"virtual_uid_maps = static:" + idOf(p.t, "-u"),
		"virtual_gid_maps = static:" + idOf(p.t, "-g"),
		"virtual_minimum_uid = 1",
		"message_size_limit = 52428800",
		"virtual_mailbox_limit = 0",
		"smtpd_client_connection_count_limit = 0",
		"smtpd_client_connection_rate_limit = 0",
		"smtpd_client_message_rate_limit = 0",
		"default_process_limit = 100",
		"alias_maps =",
		"alias_database =",
		"",
	}, "\n"))
	conf("access", "/^reject@/ 550 5.1.1 User unknown\n/^later@/ 450 4.2.0 Greylisted, try again later\n")
	conf("boxes", "/./ all/\n")
	conf("master.cf", strings.Join([]string{
		fmt.Sprintf("127.0.0.1:%d inet n - n - - smtpd", p.Port),
		"cleanup unix n - n - 0 cleanup",
		"qmgr unix n - n 300 1 qmgr",
		"rewrite unix - - n - - trivial-rewrite",
		"bounce unix - - n - 0 bounce",
		"defer unix - - n - 0 bounce",
		"trace unix - - n - 0 bounce",
		"verify unix - - n - 1 verify",
		"flush unix n - n 1000? 0 flush",
		"proxymap unix - - n - - proxymap",
		"smtp unix - - n - - smtp",
		"relay unix - - n - - smtp",
		"error unix - - n - - error",
		"retry unix - - n - - error",
		"discard unix - - n - - discard",
		"local unix - n n - - local",
		"virtual unix - n n - - virtual",
		"anvil unix - - n - 1 anvil",
		"postlog unix-dgram n - n - 1 postlogd",
		"",
	}, "\n"))
}

// Received returns the messages that were delivered, whole.
func (p *Postfix) Received() []string {
	p.t.Helper()
	var all []string
	for _, sub := range []string{"new", "cur"} {
		files, err := filepath.Glob(filepath.Join(p.mail, "all", sub, "*"))
		if err != nil {
			p.t.Fatal(err)
		}
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				p.t.Fatal(err)
			}
			all = append(all, string(data))
		}
	}
	return all
}

// Log is what the server has logged.
func (p *Postfix) Log() string {
	data, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	return string(data)
}

func idOf(t testing.TB, flag string) string {
	t.Helper()
	out, err := exec.Command("id", flag, "nobody").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func own(t testing.TB, user, path string) {
	t.Helper()
	if out, err := exec.Command("chown", user, path).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v\n%s", err, out)
	}
}
