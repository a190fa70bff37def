package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
	"postbook.dev/postbook/seal"
)

// metricsToken is the file with the secret that reads GET /metrics. A proxy on the
// same machine makes every caller look local, so that where a request comes from
// says nothing about who asks.
const metricsToken = "metrics.token"

// metrics is what this process counts. No label names an account, a key or an
// address: metrics are kept where the log's rules do not reach.
type metrics struct {
	registry *prometheus.Registry
	appends  *prometheus.HistogramVec
	failed   *prometheus.CounterVec
	events   *prometheus.CounterVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		appends: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "postbook_append_seconds", Help: "How long appends took until they had their answer: on disk, with the default durability.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}, []string{"log"}),
		failed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postbook_append_failures_total", Help: "Appends that were not recorded, or of which that is not known.",
		}, []string{"log", "reason"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "postbook_events_total", Help: "Events that this process has recorded, by type. What became of mails is in the types email.*.",
		}, []string{"type"}),
	}
	m.registry.MustRegister(m.appends, m.failed, m.events, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// appended counts an append to the log.
func (m *metrics) appended(log string, took time.Duration, recorded []domain.Recorded, err error) {
	if err != nil {
		reason := "unavailable"
		if errors.Is(err, eventstore.ErrConflict) || errors.Is(err, eventstore.ErrFenced) {
			reason = "conflict"
		}
		m.failed.WithLabelValues(log, reason).Inc()
		return
	}
	m.appends.WithLabelValues(log).Observe(took.Seconds())
	for _, rec := range recorded {
		m.events.WithLabelValues(rec.Type).Inc()
	}
}

// serveMetrics answers whoever has the token of this data directory.
func (s *server) serveMetrics(mux *http.ServeMux) error {
	token, err := openMetricsToken(s.cfg)
	if err != nil {
		return err
	}
	s.metrics.registry.MustRegister(&stateOf{s})
	pages := promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn)})
	want := []byte("Bearer " + token)
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "The token in "+metricsToken+" of the data directory reads the metrics.", http.StatusUnauthorized)
			return
		}
		pages.ServeHTTP(w, r)
	})
	return nil
}

// openMetricsToken reads the token, or makes one.
func openMetricsToken(cfg Config) (string, error) {
	path := cfg.path(metricsToken)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		text = []byte(rand.Text() + "\n")
		err = seal.WriteFile(path, text, 0o600)
	}
	token := strings.TrimSpace(string(text))
	if err != nil {
		return "", fmt.Errorf("open the token of the metrics: %w", err)
	}
	if len(token) < 16 {
		return "", fmt.Errorf("%s holds no token of 16 characters or more: remove it, and a new one is made", path)
	}
	return token, nil
}

// stateOf is what is looked up when somebody asks for metrics.
type stateOf struct{ *server }

func gauge(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("postbook_"+name, help, labels, nil)
}

var (
	logEntries  = gauge("log_entries", "Sequence of a log's last entry.", "log")
	lagEntries  = gauge("projection_lag_entries", "Entries of a log that a read model has not applied.", "model", "log")
	lagSeconds  = gauge("projection_lag_seconds", "Time since the first of those was recorded.", "model", "log")
	stopped     = gauge("projection_stopped", "1 if a read model was stopped by an entry that it cannot apply.", "model", "log")
	databaseUp  = gauge("database_up", "1 if the read models can be asked.")
	sealEntries = gauge("seal_entries", "Entries that the newest signed head covers.", "log")
	sealAge     = gauge("seal_age_seconds", "Time since the newest head was signed: above two minutes, nothing seals.", "log")
	sealWitness = gauge("seal_witnessed_entries", "Entries that enough witnesses have seen.", "log")
	sealBroken  = gauge("seal_broken", "1 if a log is not as it was sealed.", "log")
	mailOpen    = gauge("emails_open", "Emails without a final state, scheduled ones too, in a partition that this process works on.", "log")
	mailDue     = gauge("emails_due", "Of these, those that could go out now.", "log")
	mailHeld    = gauge("emails_held", "Of these, those that are due and whose account may not send.", "log")
	mailWait    = gauge("email_wait_seconds", "How long the first of those that could go out has been due.", "log")
	archiveAge  = gauge("archive_age_seconds", "Time since everything that was due was archived.")
	allOfState  = []*prometheus.Desc{
		logEntries, lagEntries, lagSeconds, stopped, databaseUp, sealEntries, sealAge, sealWitness, sealBroken,
		mailOpen, mailDue, mailHeld, mailWait, archiveAge,
	}
	stateTimeout = 5 * time.Second
)

// Describe is part of a prometheus.Collector.
func (s *stateOf) Describe(to chan<- *prometheus.Desc) {
	for _, d := range allOfState {
		to <- d
	}
}

// Collect is part of a prometheus.Collector.
func (s *stateOf) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), stateTimeout)
	defer cancel()
	tell := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	truth := map[bool]float64{true: 1}
	now := time.Now()
	for _, log := range s.store.Logs() {
		if head, err := s.store.Head(ctx, log); err == nil {
			tell(logEntries, float64(head), log)
		}
	}
	states, err := projections.Status(ctx, s.reader, s.store, now)
	tell(databaseUp, truth[err == nil])
	for _, st := range states {
		tell(lagEntries, float64(st.Lag), st.Model, st.Log)
		tell(lagSeconds, st.Behind.Seconds(), st.Model, st.Log)
		tell(stopped, truth[st.State == projections.Stopped], st.Model, st.Log)
	}
	if s.dispatcher != nil {
		for _, b := range s.dispatcher.Backlog() {
			tell(mailOpen, float64(b.Open), b.Log)
			tell(mailDue, float64(b.Due), b.Log)
			tell(mailHeld, float64(b.Held), b.Log)
			tell(mailWait, b.Wait.Seconds(), b.Log)
		}
	}
	if s.archiver != nil {
		tell(archiveAge, now.Sub(s.archiver.Done()).Seconds())
	}
	if s.notary == nil {
		return
	}
	for _, st := range s.notary.Status() {
		tell(sealEntries, float64(st.Size), st.Log)
		tell(sealWitness, float64(st.Witnessed), st.Log)
		tell(sealBroken, truth[st.Broken], st.Log)
		if !st.At.IsZero() {
			tell(sealAge, now.Sub(st.At).Seconds(), st.Log)
		}
	}
}
