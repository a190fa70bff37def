// Package pgcluster runs a private PostgreSQL cluster in a directory, from the
// system's own binaries, reachable on a Unix socket alone.
package pgcluster

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Options say where a cluster is and how it is kept.
type Options struct {
	Dir            string
	Fsync          bool // off only where the data may be lost, such as in tests
	MaxConnections int  // 0 is 40
	Log            *slog.Logger
}

// Cluster is a running postmaster.
type Cluster struct {
	dir    string
	socket string // directory of the Unix socket
	bin    string
	as     *account // whom the server runs as, if we are root
	cmd    *exec.Cmd
	done   chan struct{}
	waited error
	log    *slog.Logger
}

const (
	superuser    = "postgres"
	owner        = "postbook"
	projector    = "postbook_projector"
	reader       = "postbook_reader"
	startTimeout = time.Minute
)

// Start makes the cluster if there is none, and runs it. A postmaster that an
// earlier process left behind on this directory is stopped first.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	if o.MaxConnections == 0 {
		o.MaxConnections = 40
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("pgcluster: %w", err)
	}
	c := &Cluster{dir: dir, done: make(chan struct{}), log: o.Log}
	all, err := installed()
	if err != nil {
		return nil, err
	}
	if c.bin, err = choose(all, c.data()); err != nil {
		return nil, err
	}
	if c.as, err = serverAccount(); err != nil {
		return nil, err
	}
	if err := c.directories(); err != nil {
		return nil, err
	}
	if err := c.stopLeftover(ctx); err != nil {
		return nil, err
	}
	if err := c.create(ctx); err != nil {
		return nil, err
	}
	if err := c.run(o); err != nil {
		return nil, err
	}
	if err := c.ready(ctx); err != nil {
		return nil, errors.Join(err, c.Stop(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// server is an installed PostgreSQL.
type server struct {
	major int // version
	bin   string
}

// installed lists the servers on this machine.
func installed() ([]server, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return nil, fmt.Errorf("pgcluster: %w", err)
	}
	var all []server
	for _, path := range found {
		bin := filepath.Dir(path)
		if major, err := strconv.Atoi(filepath.Base(filepath.Dir(bin))); err == nil {
			all = append(all, server{major, bin})
		}
	}
	if len(all) > 0 {
		return all, nil
	}
	path, err := exec.LookPath("postgres")
	if err != nil {
		out, err := exec.Command("pg_config", "--bindir").Output()
		if err != nil {
			return nil, nil //nolint:nilerr // there is none
		}
		path = filepath.Join(strings.TrimSpace(string(out)), "postgres")
	}
	out, err := exec.Command(path, "--version").Output() // postgres (PostgreSQL) 15.14
	if err != nil {
		return nil, nil //nolint:nilerr // it is none
	}
	version := strings.TrimPrefix(string(out), "postgres (PostgreSQL) ")
	major, err := strconv.Atoi(version[:len(version)-len(strings.TrimLeft(version, "0123456789"))])
	if err != nil {
		return nil, fmt.Errorf("pgcluster: %s says that it is %q", path, strings.TrimSpace(string(out)))
	}
	return []server{{major, filepath.Dir(path)}}, nil
}

// choose finds the programs for a cluster: those of the version that made it, which no
// other can read, or for a new one the newest.
func choose(all []server, data string) (bin string, err error) {
	if len(all) == 0 {
		return "", errors.New("PostgreSQL's server is not installed: on Debian, `apt-get install postgresql`; or set POSTBOOK_DATABASE_URL to a server elsewhere")
	}
	newest := slices.MaxFunc(all, func(a, b server) int { return a.major - b.major })
	version, err := os.ReadFile(filepath.Join(data, versionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return newest.bin, nil
	}
	if err != nil {
		return "", fmt.Errorf("pgcluster: which version made the cluster: %w", err)
	}
	made := strings.TrimSpace(string(version))
	for _, s := range all {
		if strconv.Itoa(s.major) == made {
			return s.bin, nil
		}
	}
	return "", fmt.Errorf("%s was made by PostgreSQL %s, and installed is %d: install version %s beside it, or remove the folder, and it is made again from the log", data, made, newest.major, made)
}

// versionFile says which version of PostgreSQL made a cluster.
const versionFile = "PG_VERSION"

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

// directories makes the cluster's directory, and a place for its socket. The
// path of a socket is limited to 107 bytes (unix(7)), and stands in lists, so a deep
// directory, or one with a comma or a quote in its name, gets one among the temporary
// files, which only its owner may enter.
func (c *Cluster) directories() error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("pgcluster: make the directory: %w", err)
	}
	c.socket = c.dir
	if len(c.dir)+len("/.s.PGSQL.5432") > 100 || strings.ContainsAny(c.dir, `,"`) {
		sum := sha256.Sum256([]byte(c.dir))
		c.socket = filepath.Join(os.TempDir(), "postbook-"+hex.EncodeToString(sum[:8]))
		if err := os.Mkdir(c.socket, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("pgcluster: make the socket's directory: %w", err)
		}
		info, err := os.Lstat(c.socket)
		if err != nil {
			return fmt.Errorf("pgcluster: %w", err)
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !c.as.owns(int(stat.Uid)) {
			return fmt.Errorf("pgcluster: %s is not ours alone: remove it", c.socket)
		}
	}
	if err := c.as.own(c.dir, c.socket); err != nil {
		return err
	}
	return c.as.reach(c.dir)
}

// create makes a new cluster, complete or not at all.
func (c *Cluster) create(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(c.data(), versionFile)); err == nil {
		return nil
	}
	fresh := filepath.Join(c.dir, "new")
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("pgcluster: remove an unfinished cluster: %w", err)
	}
	password, err := c.password(superuser)
	if err != nil {
		return err
	}
	pwfile := filepath.Join(c.dir, "initdb.password")
	if err := os.WriteFile(pwfile, []byte(password+"\n"), 0o600); err != nil {
		return fmt.Errorf("pgcluster: %w", err)
	}
	defer os.Remove(pwfile)
	if err := c.as.own(pwfile); err != nil {
		return err
	}
	cmd := c.command(ctx, "initdb", "-D", fresh, "-U", superuser, "--pwfile="+pwfile, "--auth=scram-sha-256",
		"--encoding=UTF8", "--locale=C", "--no-instructions")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pgcluster: initdb: %w: %s", err, tail(out))
	}
	return os.Rename(fresh, c.data())
}

// password is a user's, kept in a file that only we may read.
func (c *Cluster) password(user string) (string, error) {
	path := filepath.Join(c.dir, user+".password")
	if data, err := os.ReadFile(path); err == nil && len(data) > 0 {
		return string(data), nil
	}
	password := rand.Text()
	if err := os.WriteFile(path, []byte(password), 0o600); err != nil {
		return "", fmt.Errorf("pgcluster: keep a password: %w", err)
	}
	return password, nil
}

func (c *Cluster) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, name), args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	c.as.apply(cmd.SysProcAttr)
	return cmd
}

// run starts the postmaster. The kernel interrupts it when we die: Pdeathsig is
// tied to the thread that started the child, so that thread stays for it.
func (c *Cluster) run(o Options) error {
	logfile, err := os.OpenFile(filepath.Join(c.dir, "server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("pgcluster: open the server's log: %w", err)
	}
	defer logfile.Close()
	on := map[bool]string{true: "on", false: "off"}
	settings := []string{
		"listen_addresses=", "unix_socket_directories=" + c.socket, "unix_socket_permissions=0700",
		"max_connections=" + strconv.Itoa(o.MaxConnections), "shared_buffers=64MB", "jit=off",
		"wal_level=minimal", "max_wal_senders=0", "max_wal_size=512MB", "timezone=UTC", "log_timezone=UTC",
		"fsync=" + on[o.Fsync], "synchronous_commit=" + on[o.Fsync], "full_page_writes=" + on[o.Fsync],
		"password_encryption=scram-sha-256",
	}
	args := []string{"-D", c.data()}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	c.cmd = c.command(context.Background(), "postgres", args...)
	c.cmd.Stdout, c.cmd.Stderr = logfile, logfile
	c.cmd.SysProcAttr.Pdeathsig = syscall.SIGINT // fast shutdown
	c.cmd.SysProcAttr.Setpgid = true             // Ctrl-C is for us; we stop it in our own order
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := c.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		c.waited = c.cmd.Wait()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("pgcluster: start the server: %w", err)
	}
	return nil
}

func (c *Cluster) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		conn, err := pgx.Connect(ctx, c.URL("postgres", superuser))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-c.done:
			return fmt.Errorf("pgcluster: the server ended as it started: %w; its log is %s", c.waited, filepath.Join(c.dir, "server.log"))
		case <-ctx.Done():
			return fmt.Errorf("pgcluster: the server does not answer: %w", err)
		case <-time.After(wait):
		}
	}
}

// stopLeftover ends a postmaster of this directory that outlived its parent.
func (c *Cluster) stopLeftover(ctx context.Context) error {
	data, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		return nil //nolint:nilerr // none was left
	}
	first, _, _ := strings.Cut(string(data), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 || !c.isOurs(pid) {
		return nil //nolint:nilerr // the file is stale, and the server knows how to deal with it
	}
	c.log.Info("stopping a database server that an earlier process left behind", "pid", pid)
	deadline := time.Now().Add(startTimeout)
	for signal := syscall.SIGINT; ; {
		if err := syscall.Kill(pid, signal); errors.Is(err, syscall.ESRCH) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("pgcluster: an earlier server (process %d) does not stop", pid)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		signal = 0 // ask once, then only look
	}
}

// isOurs reports whether a process is a postmaster of this directory: a number
// from a file may have been given to another process since.
func (c *Cluster) isOurs(pid int) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(cmdline), "postgres\x00-D\x00"+c.data()+"\x00")
}

// URL is where a user reaches a database. It holds the user's password.
func (c *Cluster) URL(database, user string) string {
	password, err := c.password(user)
	if err != nil {
		password = "" // connecting says so
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password), Path: "/" + database,
		// pgx takes a plus sign for itself, and not for a space.
		RawQuery: "sslmode=disable&host=" + strings.ReplaceAll(url.QueryEscape(c.socket), "+", "%20"),
	}
	return u.String()
}

// Provision makes a database, its owner, and the two narrower roles that the
// program itself uses. What these may do is granted with the tables. It may be
// called for several databases at once.
func (c *Cluster) Provision(ctx context.Context, database string) error {
	conn, err := pgx.Connect(ctx, c.URL("postgres", superuser))
	if err != nil {
		return fmt.Errorf("pgcluster: connect: %w", err)
	}
	defer conn.Close(ctx)
	// Roles are the whole cluster's: two calls that make or alter one at once would
	// fail. The lock ends with the connection.
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(hashtext('postbook roles'))`); err != nil {
		return fmt.Errorf("pgcluster: wait for another that makes roles: %w", err)
	}
	for _, role := range []string{owner, projector, reader} {
		password, err := c.password(role)
		if err != nil {
			return err
		}
		var exists bool
		if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, role).Scan(&exists); err != nil {
			return fmt.Errorf("pgcluster: look for role %s: %w", role, err)
		}
		verb := "CREATE"
		if exists {
			verb = "ALTER"
		}
		// A password is no parameter of DDL. This one is letters and digits.
		if _, err := conn.Exec(ctx, fmt.Sprintf(`%s ROLE %s LOGIN PASSWORD '%s'`, verb, role, password)); err != nil {
			return fmt.Errorf("pgcluster: make role %s: %w", role, err)
		}
	}
	if _, err := conn.Exec(ctx, `GRANT `+projector+`, `+reader+` TO `+owner); err != nil {
		return fmt.Errorf("pgcluster: grant the narrower roles to the owner: %w", err)
	}
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, database).Scan(&exists); err != nil {
		return fmt.Errorf("pgcluster: look for database %s: %w", database, err)
	}
	if exists {
		return nil
	}
	name := pgx.Identifier{database}.Sanitize()
	for _, statement := range []string{
		`CREATE DATABASE ` + name + ` OWNER ` + owner,
		`REVOKE ALL ON DATABASE ` + name + ` FROM PUBLIC`,
		`GRANT CONNECT ON DATABASE ` + name + ` TO ` + projector + `, ` + reader,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("pgcluster: make database %s: %w", database, err)
		}
	}
	return nil
}

// Done is closed when the server has ended.
func (c *Cluster) Done() <-chan struct{} { return c.done }

// Stop ends the server. What was committed stays.
func (c *Cluster) Stop(ctx context.Context) error {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} {
		if err := c.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("pgcluster: stop the server: %w", err)
		}
		select {
		case <-c.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("pgcluster: stop the server: %w", ctx.Err())
		case <-time.After(20 * time.Second):
		}
	}
	return errors.New("pgcluster: the server does not stop")
}

func tail(out []byte) string {
	const most = 500
	return strings.TrimSpace(string(out[max(0, len(out)-most):]))
}
