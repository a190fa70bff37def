package archive_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postbook.dev/postbook/archive"
	"postbook.dev/postbook/notary"
)

// halting is a place at which whoever uses it first stops for a moment.
type halting struct {
	archive.Place
	at func(step string)
}

func (h halting) Put(ctx context.Context, name string, data []byte) error {
	h.at(filepath.Ext(name))
	return h.Place.Put(ctx, name, data)
}

func (h halting) List(ctx context.Context, prefix string) ([]archive.Object, error) {
	all, err := h.Place.List(ctx, prefix)
	if strings.Contains(prefix, mail) {
		h.at("list")
	}
	return all, err
}

// Two hosts that archive a log at once, as when another one comes to sign while a
// segment is under way, make one archive of it.
func TestTwoHostsMakeOneArchive(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		halt string        // where the first one stops
		late time.Duration // how much later the second one comes
		says string        // what the second one says, while the first has stopped
	}{
		"another has listed":               {"list", 0, ""},
		"another writes a segment":         {".json", 0, "another host"},
		"another has stopped in a segment": {".json", time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := start(t)
			i.fill(t, 70)
			claims := must(i.store.Bucket(t.Context(), "claims"))(t)
			reached, goOn := make(chan struct{}), make(chan struct{})
			halted := false
			stop := func(step string) {
				if step == c.halt && !halted {
					halted = true
					close(reached)
					<-goOn
				}
			}
			first := i.archiver(t, func(conf *archive.Config) {
				conf.Claims, conf.SegmentAge = claims, time.Nanosecond
				conf.Mine = func(log string) bool { return log == mail }
				conf.Archive = archive.New(halting{must(archive.Open(i.place))(t), stop}, i.keys.Instance)
			})
			second := i.archiver(t, func(conf *archive.Config) {
				conf.Claims, conf.SegmentEntries = claims, 1000
				conf.Mine = func(log string) bool { return log == mail }
				conf.Lock, conf.Record = conf.Lock+".second", conf.Record+".second"
				conf.Archive = archive.New(must(archive.Open(i.place))(t), i.keys.Instance)
				conf.Now = func() time.Time { return time.Now().Add(c.late) }
			})
			ended := make(chan error, 1)
			go func() { ended <- first.Pass(t.Context(), false) }()
			<-reached
			i.fill(t, 30)
			if err := second.Pass(t.Context(), true); c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("the second one says %v; want %q", err, c.says)
			}
			close(goOn)
			if err := <-ended; err != nil {
				t.Errorf("the first one says %v", err)
			}
			i.fill(t, 70)
			if err := second.Pass(t.Context(), true); err != nil {
				t.Errorf("at last the second one says %v", err)
			}
			if findings := i.verify(t, mail, notary.Live(i.store, mail, i.mark)).Findings; len(findings) > 0 {
				t.Errorf("the archive that both made: %v", findings)
			}
		})
	}
}
