package eventstore

// What this package takes for granted about the server. If one of these fails
// after an upgrade, the package's reasoning has to be gone through again.

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func code(err error) jetstream.ErrorCode {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return api.ErrorCode
	}
	return 0
}

func TestFactConflictCodes(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	must(s.js.Publish(ctx, "ledger.a.b.c", nil))(t)
	if _, err := s.js.Publish(ctx, "ledger.a.b.c", nil, jetstream.WithExpectLastSequencePerSubject(0)); code(err) != 10071 {
		t.Errorf("a wrong expectation is answered with %v, want code 10071", err)
	}
	// The second code, of a write under way, comes from clusters, and from a batch
	// that expects something of a subject which it has written itself.
	must(s.js.CreateStream(ctx, jetstream.StreamConfig{Name: "BATCH", Subjects: []string{"batch.>"}, AllowAtomicPublish: true}))(t)
	for i := range 2 {
		m := &nats.Msg{Subject: "batch.a", Reply: s.nc.NewRespInbox(), Header: nats.Header{
			"Nats-Batch-Id": {"one"}, "Nats-Batch-Sequence": {strconv.Itoa(i + 1)}, jetstream.ExpectedLastSubjSeqHeader: {"0"},
		}}
		if i == 0 {
			must(s.nc.RequestMsg(m, ackTimeout))(t)
			continue
		}
		m.Header.Set("Nats-Batch-Commit", "1")
		reply := must(s.nc.RequestMsg(m, ackTimeout))(t)
		if !bytes.Contains(reply.Data, []byte(`"err_code":10164`)) {
			t.Errorf("a write under way is answered with %s, want code 10164", reply.Data)
		}
	}
	for _, c := range []jetstream.ErrorCode{10071, 10164} {
		if p := answer(nil, &jetstream.APIError{ErrorCode: c}); !errors.Is(p.err, ErrConflict) {
			t.Errorf("code %d is taken for %v, want ErrConflict", c, p.err)
		}
	}
}

// The owner's fence: an expectation about one subject guards a write to another.
func TestFactExpectationOfAnotherSubject(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	claim := must(s.js.Publish(ctx, "mail.00.owner", nil))(t).Sequence
	on := func(seq uint64) error {
		_, err := s.js.Publish(ctx, "mail.00.acme", nil, jetstream.WithExpectLastSequenceForSubject(seq, "mail.00.owner"))
		return err
	}
	for range 3 { // writes to the guarded subject leave the expectation as it is
		if err := on(claim); err != nil {
			t.Fatal(err)
		}
	}
	must(s.js.Publish(ctx, "mail.00.owner", nil))(t)
	if err := on(claim); code(err) != 10071 {
		t.Errorf("an old claim is answered with %v, want code 10071", err)
	}
}

// A known id is answered with the earlier sequence, and an expectation is
// checked before the id.
func TestFactDuplicates(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, in(dir))
	ctx := t.Context()
	first := must(s.js.Publish(ctx, "ledger.a.b.c", nil, jetstream.WithMsgID("one")))(t)
	must(s.js.Publish(ctx, "ledger.a.b.c", nil))(t)
	again := must(s.js.Publish(ctx, "ledger.x.y.z", nil, jetstream.WithMsgID("one")))(t)
	if !again.Duplicate || again.Sequence != first.Sequence || again.Stream != Ledger {
		t.Errorf("a known id is answered with %+v, want a duplicate of %d", again, first.Sequence)
	}
	_, err := s.js.Publish(ctx, "ledger.a.b.c", nil, jetstream.WithMsgID("one"), jetstream.WithExpectLastSequencePerSubject(0))
	if code(err) != 10071 {
		t.Errorf("a known id with a wrong expectation is answered with %v, want code 10071", err)
	}
	// The ids outlive a restart.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, in(dir))
	if again := must(s.js.Publish(ctx, "ledger.a.b.c", nil, jetstream.WithMsgID("one")))(t); !again.Duplicate {
		t.Errorf("after a restart a known id is answered with %+v", again)
	}
}

// The group commit rests on this: when the acknowledgement is there, the bytes
// are in the newest block file.
func TestFactAckComesAfterTheWrite(t *testing.T) {
	t.Parallel()
	s := open(t, func(c *Config) { c.Durability = Interval }) // nothing of ours helps
	for i := range 300 {
		id := "marker-" + strconv.Itoa(i) + "-" + newKey().ID
		must(s.js.Publish(t.Context(), "ledger.a.b.c", []byte(id)))(t)
		held := blocks(t, s, Ledger)
		if data := must(os.ReadFile(held[len(held)-1]))(t); !bytes.Contains(data, []byte(id)) {
			t.Fatalf("message %d was acknowledged before it was in its file", i)
		}
	}
}

func TestFactLayout(t *testing.T) {
	t.Parallel()
	s := open(t)
	appendKeys(t, s, 1)
	for _, name := range []string{
		"credentials", "lock", "jetstream/$G/streams/LEDGER/meta.inf", "jetstream/$G/streams/LEDGER/meta.sum",
		"jetstream/$G/streams/LEDGER/msgs/1.blk", "jetstream/$G/streams/MAIL_00/msgs",
	} {
		if _, err := os.Stat(filepath.Join(s.cfg.Dir, name)); err != nil {
			t.Errorf("the server's files lie elsewhere: %v", err)
		}
	}
	if b := onFile(t, s, Ledger); !bytes.Contains(b, []byte(`"specversion":"1.0"`)) {
		t.Error("bodies are not in the clear in their files: compression would rewrite blocks that were synced")
	}
}

func TestFactDenials(t *testing.T) {
	t.Parallel()
	s := open(t)
	appendKeys(t, s, 1)
	stream := must(s.stream(t.Context(), Ledger))(t)
	if err := stream.Purge(t.Context()); code(err) != 10110 {
		t.Errorf("a purge is answered with %v, want code 10110", err)
	}
	if err := stream.DeleteMsg(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "10057") {
		t.Errorf("a deletion is answered with %v, want code 10057", err)
	}
}

// Why TIMERS is a stream of its own that may be purged and throws away what is
// old: schedules are not to be had otherwise.
func TestFactSchedules(t *testing.T) {
	t.Parallel()
	s := open(t)
	ctx := t.Context()
	c := jetstream.StreamConfig{Name: "TRY", Subjects: []string{"try.>"}, AllowMsgSchedules: true, DenyPurge: true, Discard: jetstream.DiscardOld}
	stream, err := s.js.CreateStream(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().Config; got.DenyPurge || !got.AllowRollup {
		t.Errorf("with schedules, deny_purge is %v and allow_rollup_hdrs %v; want them to be cleared and set", got.DenyPurge, got.AllowRollup)
	}
	c.Name, c.Subjects, c.Discard = "FULL", []string{"full.>"}, jetstream.DiscardNew
	if _, err := s.js.CreateStream(ctx, c); err != nil {
		return // refused at once: that is as good a reason
	}
	_, err = s.js.PublishMsg(ctx, &nats.Msg{Subject: "full.a", Header: nats.Header{
		jetstream.ScheduleHeader: {"@at 2100-01-01T00:00:00Z"}, jetstream.ScheduleTargetHeader: {"full.b"},
	}})
	if err == nil || !strings.Contains(err.Error(), "schedul") {
		t.Errorf("a stream that refuses what is new takes a schedule: %v; TIMERS could refuse, too", err)
	}
}

// Sequences go on where they were after a restart, without a hole.
func TestFactSequencesGoOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for want := uint64(1); want <= 3; want++ {
		s := open(t, in(dir))
		if got := appendKeys(t, s, 1)[0]; got != want {
			t.Errorf("the next sequence is %d, want %d", got, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Trimming rests on this: a stream that denies deletion and purging can be bounded
// for a moment, which drops what is beyond the bound before the answer comes; its
// denials stay, its sequences go on, and the bound outlives neither the second
// change nor a restart.
func TestFactBounding(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, in(dir), func(c *Config) { c.Partitions, c.Durability = 1, Interval })
	ctx := t.Context()
	body := bytes.Repeat([]byte("x"), 64<<10)
	for range 300 { // over more than one block file
		must(s.js.Publish(ctx, "mail.00.acme", body))(t)
	}
	if n := len(blocks(t, s, MailLog(0))); n < 2 {
		t.Fatalf("the log lies in %d block file", n)
	}
	bound := func(s *Store, discard jetstream.DiscardPolicy, most int64) jetstream.StreamState {
		t.Helper()
		c := must(s.js.Stream(ctx, MailLog(0)))(t).CachedInfo().Config
		c.Discard, c.MaxMsgs = discard, most
		return must(s.js.UpdateStream(ctx, c))(t).CachedInfo().State
	}
	if st := bound(s, jetstream.DiscardOld, 60); st.FirstSeq != 241 || st.LastSeq != 300 || st.Msgs != 60 {
		t.Errorf("bounded to 60 of 300 entries, the stream is %+v", st)
	}
	bound(s, jetstream.DiscardNew, -1)
	must(s.js.Publish(ctx, "mail.00.acme", nil))(t)
	if st := must(s.state(ctx, MailLog(0)))(t); st.FirstSeq != 241 || st.LastSeq != 301 {
		t.Errorf("when the bound is taken away, the stream is %+v", st)
	}
	bound(s, jetstream.DiscardOld, 50) // and the process ends before it takes that away
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, in(dir))
	for range 10 {
		must(s.js.Publish(ctx, "mail.00.acme", nil))(t)
	}
	// What shared a block file with entries that stay may come back.
	if st := must(s.state(ctx, MailLog(0)))(t); st.FirstSeq > 252 || st.LastSeq != 311 {
		t.Errorf("after a restart the stream is %+v", st)
	}
	c := must(s.js.Stream(ctx, MailLog(0)))(t).CachedInfo().Config
	if c.Discard != jetstream.DiscardNew || c.MaxMsgs != -1 || !c.DenyDelete || !c.DenyPurge {
		t.Errorf("after a restart the stream is configured as %+v", c)
	}
}

// A tool that repeats nothing has the log forget ids sooner; the server that opens it
// next recognises what comes again for as long as ever.
func TestALogThatATimeWasSetForIsAsEverAfterwards(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct{ set, want time.Duration }{{time.Second, time.Second}, {0, 30 * time.Second}} {
		s := open(t, in(dir), func(conf *Config) { conf.Recognise = c.set })
		if got := must(s.js.Stream(t.Context(), MailLog(0)))(t).CachedInfo().Config.Duplicates; got != c.want {
			t.Errorf("a log opened with %v recognises for %v; want %v", c.set, got, c.want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
