package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
)

// Config is what an operator can set, by environment or by the flag of the same
// name.
type Config struct {
	DataDir      string        `default:"./.postbook" env:"POSTBOOK_DATA_DIR" help:"All local state." name:"data-dir"`
	HTTPAddr     string        `default:"127.0.0.1:7425" env:"POSTBOOK_HTTP_ADDR" help:"Address of the API, and of the console under /console." name:"http-addr"`
	SMTPAddr     string        `default:"127.0.0.1:7587" env:"POSTBOOK_SMTP_ADDR" help:"Address of SMTP submission." name:"smtp-addr"`
	Proxies      []string      `env:"POSTBOOK_TRUSTED_PROXIES" help:"Networks of the proxies in front, such as 10.0.0.0/8. From them alone X-Forwarded-For says who the client is." name:"trusted-proxies"`
	NATSURL      string        `env:"POSTBOOK_NATS_URL" help:"Servers of a NATS cluster, several by commas. Empty runs an embedded server." name:"nats-url"`
	NATSReplicas int           `default:"0" env:"POSTBOOK_NATS_REPLICAS" help:"How many servers of a cluster keep each entry. 0 is 3; what has more keeps them." name:"nats-replicas"`
	DatabaseURL  string        `env:"POSTBOOK_DATABASE_URL" help:"PostgreSQL. Empty runs a private cluster in the data directory." name:"database-url"`
	Durability   string        `default:"fsync" enum:"fsync,interval" env:"POSTBOOK_DURABILITY" help:"fsync: on disk before it is acknowledged. interval: fsync every 20 ms." name:"durability"`
	Delivery     string        `default:"" enum:",sandbox,mx,relay" env:"POSTBOOK_DELIVERY" help:"Where mail goes: sandbox (dev), mx (serve) or relay." name:"delivery"`
	RelayURL     string        `env:"POSTBOOK_RELAY_URL" help:"smtp://user:pass@host:port, for relay." name:"relay-url"`
	DNSAddr      string        `env:"POSTBOOK_DNS_ADDR" help:"Resolver host:port. Empty uses the system's." name:"dns-addr"`
	MXPort       int           `default:"25" env:"POSTBOOK_MX_PORT" help:"Port that delivery dials." name:"mx-port"`
	MXPrivate    bool          `env:"POSTBOOK_MX_PRIVATE" help:"Let delivery connect to loopback and private addresses." name:"mx-private"`
	RateLimit    int           `default:"-1" env:"POSTBOOK_RATE_LIMIT" help:"Requests a second for an account that has no limit of its own. 0 is none; the default is 10 in serve and none in dev." name:"rate-limit"`
	Roles        []string      `default:"all" env:"POSTBOOK_ROLES" help:"What this process runs: all, or some of api, workers, projections, console." name:"roles"`
	Hostname     string        `env:"POSTBOOK_HOSTNAME" help:"Name in EHLO and in the records that customers publish. Empty uses the machine's." name:"hostname"`
	RootKey      string        `env:"POSTBOOK_ROOT_KEY" help:"Where the root key is: a file (mode 0600), or a KMS URL. Empty is root.key in the data directory." name:"root-key"`
	Witnesses    []string      `env:"POSTBOOK_WITNESSES" help:"Witnesses that cosign the seal: for each its URL, a space, and its public key." name:"witnesses"`
	SealCopies   []string      `env:"POSTBOOK_SEAL_COPIES" help:"Where the heads of the seal are left: folders on other machines' disks, s3://bucket/prefix, or addresses that take a POST." name:"seal-copies"`
	Archive      string        `env:"POSTBOOK_ARCHIVE" help:"Where older entries of the log are archived: a directory, or s3://bucket?endpoint=HOST. Empty archives nothing." name:"archive"`
	HotAge       time.Duration `env:"POSTBOOK_HOT_AGE" help:"Archived entries leave the log's stream when they are so old, such as 720h. 0 keeps them." name:"hot-age"`
	HotBytes     int64         `env:"POSTBOOK_HOT_BYTES" help:"Archived entries leave the stream of each log that is larger, in bytes. 0 keeps them." name:"hot-bytes"`
	HotSpare     uint64        `default:"10000" env:"POSTBOOK_HOT_SPARE" help:"Archived entries that stay in each stream in any case." name:"hot-spare"`
	Partitions   int           `default:"0" env:"POSTBOOK_PARTITIONS" help:"Partitions of the mail log, when it is created: 0 is 4. The command partitions changes their number." name:"partitions"`
	LogLevel     string        `default:"info" enum:"debug,info,warn,error" env:"POSTBOOK_LOG_LEVEL" help:"Least level that is logged." name:"log-level"`
}

// roles of a process.
const (
	roleAPI         = "api"
	roleWorkers     = "workers"
	roleProjections = "projections"
	roleConsole     = "console"
)

// modes of delivery.
const (
	modeSandbox = "sandbox"
	modeMX      = "mx"
	modeRelay   = "relay"
)

// settle fills what depends on the command and the machine, and checks the rest.
func (c *Config) settle(dev bool) error {
	if c.Delivery == "" {
		c.Delivery = modeMX
		if dev {
			c.Delivery = modeSandbox
		}
	}
	if c.RateLimit < 0 {
		c.RateLimit = 10
		if dev {
			c.RateLimit = 0
		}
	}
	if c.Hostname == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the machine's name (set POSTBOOK_HOSTNAME): %w", err)
		}
		c.Hostname = name
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return fmt.Errorf("find the data directory: %w", err)
	}
	c.DataDir = dir
	if c.RootKey == "" {
		c.RootKey = filepath.Join(dir, "root.key")
	}
	if slices.Contains(c.Roles, "all") {
		c.Roles = []string{roleAPI, roleWorkers, roleProjections, roleConsole}
	}
	return c.check()
}

func (c *Config) check() error {
	var problems []error
	for _, role := range c.Roles {
		if !slices.Contains([]string{roleAPI, roleWorkers, roleProjections, roleConsole}, role) {
			problems = append(problems, fmt.Errorf("POSTBOOK_ROLES: %q is not one of all, api, workers, projections, console", role))
		}
	}
	for name, addr := range map[string]string{"POSTBOOK_HTTP_ADDR": c.HTTPAddr, "POSTBOOK_SMTP_ADDR": c.SMTPAddr, "POSTBOOK_DNS_ADDR": c.DNSAddr} {
		if _, _, err := net.SplitHostPort(addr); addr != "" && err != nil {
			problems = append(problems, fmt.Errorf("%s: %q is not host:port", name, addr))
		}
	}
	if c.HTTPAddr == "" {
		problems = append(problems, errors.New("POSTBOOK_HTTP_ADDR: it is empty; give host:port, such as 127.0.0.1:7425"))
	}
	for _, network := range c.Proxies {
		if _, err := netip.ParsePrefix(network); err != nil {
			problems = append(problems, fmt.Errorf("POSTBOOK_TRUSTED_PROXIES: %q is not a network such as 10.0.0.0/8, or 192.0.2.1/32 for one address", network))
		}
	}
	if c.Delivery == modeRelay {
		u, err := url.Parse(c.RelayURL)
		if err != nil || u.Host == "" || u.Scheme != "smtp" && u.Scheme != "smtps" {
			problems = append(problems, errors.New("POSTBOOK_RELAY_URL: relay needs smtp://user:pass@host:port or smtps://…"))
		}
	} else if c.RelayURL != "" {
		problems = append(problems, fmt.Errorf("POSTBOOK_RELAY_URL: delivery is %s, and would pass the relay by: set POSTBOOK_DELIVERY=relay, or leave this out", c.Delivery))
	}
	if c.HotAge < 0 || c.HotBytes < 0 {
		problems = append(problems, errors.New("POSTBOOK_HOT_AGE and POSTBOOK_HOT_BYTES cannot be negative"))
	}
	if c.MXPort < 1 || c.MXPort > 65535 {
		problems = append(problems, fmt.Errorf("POSTBOOK_MX_PORT: %d is not a port", c.MXPort))
	}
	if c.NATSReplicas < 0 || c.NATSReplicas > 5 {
		problems = append(problems, fmt.Errorf("POSTBOOK_NATS_REPLICAS: %d is not 0 to 5", c.NATSReplicas))
	}
	return errors.Join(problems...)
}

func (c *Config) runs(role string) bool { return slices.Contains(c.Roles, role) }

func (c *Config) path(name string) string { return filepath.Join(c.DataDir, name) }

// expected is what customers are asked to publish for their domains.
func (c *Config) expected() sender.Expected {
	host := strings.TrimSuffix(c.Hostname, ".")
	return sender.Expected{SPF: fmt.Sprintf("v=spf1 include:spf.%s ~all", host), MX: "feedback." + host}
}

func (c *Config) logger() *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

func (c *Config) durability() eventstore.Durability {
	if c.Durability == string(eventstore.Interval) {
		return eventstore.Interval
	}
	return eventstore.Fsync
}
