package testenv

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// NATSCluster is three NATS servers with JetStream. Between any two of them, and
// before each of them for its clients, stands a wire that can be cut.
type NATSCluster struct {
	t       testing.TB
	dir     string
	nodes   [clusterSize]*server.Server
	clients [clusterSize]*wire
	routes  [clusterSize][clusterSize]*wire // from, to
}

const clusterSize = 3

// StartNATSCluster starts a cluster and waits until it has a leader. It ends with
// the test.
func StartNATSCluster(t testing.TB) *NATSCluster {
	t.Helper()
	c := &NATSCluster{t: t, dir: t.TempDir()}
	for n := range c.nodes {
		c.clients[n] = newWire(t)
	}
	for from := range c.nodes {
		for to := range c.nodes {
			if from != to {
				c.routes[from][to] = newWire(t)
			}
		}
	}
	for n := range c.nodes {
		c.Start(n)
	}
	t.Cleanup(func() {
		for n := range c.nodes {
			c.Heal(n)
			c.Kill(n)
		}
	})
	Eventually(t, 30*time.Second, func() error {
		for n := range c.nodes {
			if !c.nodes[n].JetStreamIsCurrent() {
				return fmt.Errorf("node %d is not current", n)
			}
		}
		return nil
	})
	return c
}

// Start starts a node, on what it had before. It takes any ports, each time: one that
// was found free before may be somebody else's by now. The wires lead there.
func (c *NATSCluster) Start(n int) {
	c.t.Helper()
	var routes []*url.URL
	for to := range c.nodes {
		if to != n {
			routes = append(routes, &url.URL{Scheme: "nats", Host: c.routes[n][to].addr()})
		}
	}
	s, err := server.NewServer(&server.Options{
		ServerName: fmt.Sprintf("node-%d", n), Host: "127.0.0.1", Port: server.RANDOM_PORT, ClientAdvertise: c.clients[n].addr(),
		// What servers tell each other of leads nowhere: they know each other by the wires alone.
		Cluster: server.ClusterOpts{Name: "postbook", Host: "127.0.0.1", Port: server.RANDOM_PORT, Advertise: "127.0.0.1:1", PoolSize: -1},
		Routes:  routes, JetStream: true, StoreDir: filepath.Join(c.dir, fmt.Sprint(n)), SyncAlways: true,
		NoSigs: true, NoLog: true, DisableJetStreamBanner: true,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[n] = s
	s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		c.t.Fatalf("node %d does not start", n)
	}
	c.clients[n].lead(s.Addr().String())
	for from := range c.nodes {
		if from != n {
			c.routes[from][n].lead(s.ClusterAddr().String())
		}
	}
}

// Kill ends a node. Nobody is told, and nothing is handed over: its wires are cut
// first.
func (c *NATSCluster) Kill(n int) {
	c.Cut(n)
	c.nodes[n].Shutdown()
	c.nodes[n].WaitForShutdown()
	c.Heal(n)
}

// Cut takes a node off the network, from its clients too. What is on its way
// arrives when Heal is called, if at all, as with TCP.
func (c *NATSCluster) Cut(n int) {
	for _, w := range c.wiresOf(n) {
		w.cut(true)
	}
	c.clients[n].cut(true)
}

// CutOff takes a node off the other nodes, and leaves it its clients.
func (c *NATSCluster) CutOff(n int) {
	for _, w := range c.wiresOf(n) {
		w.cut(true)
	}
}

// Heal brings a node back.
func (c *NATSCluster) Heal(n int) {
	for _, w := range c.wiresOf(n) {
		w.cut(false)
	}
	c.clients[n].cut(false)
}

func (c *NATSCluster) wiresOf(n int) []*wire {
	var all []*wire
	for other := range c.nodes {
		if other != n {
			all = append(all, c.routes[n][other], c.routes[other][n])
		}
	}
	return all
}

// URL is where clients find the nodes.
func (c *NATSCluster) URL() string {
	urls := make([]string, clusterSize)
	for n := range c.nodes {
		urls[n] = c.NodeURL(n)
	}
	return strings.Join(urls, ",")
}

// NodeURL is where clients find one node.
func (c *NATSCluster) NodeURL(n int) string { return "nats://" + c.clients[n].addr() }

// Leader is the node that leads a stream, or -1.
func (c *NATSCluster) Leader(stream string) int {
	for n, s := range c.nodes {
		if s.Running() && s.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
			return n
		}
	}
	return -1
}

// wire carries connections to an address, until it is cut: then it holds what it is
// given.
type wire struct {
	listener net.Listener

	mu    sync.Mutex
	to    string        // empty until it leads somewhere: then whoever connects is sent away
	whole chan struct{} // closed unless the wire is cut
}

func newWire(t testing.TB) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, whole: make(chan struct{})}
	close(w.whole)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go w.carry(conn)
		}
	}()
	return w
}

func (w *wire) addr() string { return w.listener.Addr().String() }

// lead says where the wire leads from now on.
func (w *wire) lead(to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to = to
}

func (w *wire) cut(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.whole:
		if cut {
			w.whole = make(chan struct{})
		}
	default:
		if !cut {
			close(w.whole)
		}
	}
}

// untilWhole waits while the wire is cut.
func (w *wire) untilWhole() {
	w.mu.Lock()
	whole := w.whole
	w.mu.Unlock()
	<-whole
}

func (w *wire) carry(near net.Conn) {
	defer near.Close()
	w.untilWhole()
	w.mu.Lock()
	to := w.to
	w.mu.Unlock()
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		go func() {
			defer func() { ended <- struct{}{} }()
			buf := make([]byte, 64<<10)
			for {
				n, err := way[0].Read(buf)
				if n > 0 {
					w.untilWhole()
					if _, err := way[1].Write(buf[:n]); err != nil {
						return
					}
				}
				if err != nil {
					if err != io.EOF {
						return
					}
					w.untilWhole()
					return
				}
			}
		}()
	}
	<-ended
}
