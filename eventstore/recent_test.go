package eventstore

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"postbook.dev/postbook/domain"
)

// What is remembered of a body is what reading it says, in another place too.
func TestRecentBodiesSayWhatReadingThemSays(t *testing.T) {
	s := open(t)
	msg, recorded, err := s.encode("ledger.x", issued(domain.Stream{Account: "acc_1", Kind: "apikey", ID: "key_1"}))
	if err != nil {
		t.Fatal(err)
	}
	s.recent.keep(msg.Data, recorded[0])
	pos := domain.Position{Log: Ledger, Seq: 7}
	read, err := s.decodeBody(pos, msg.Data)
	if err != nil {
		t.Fatal(err)
	}
	if held := s.recent.find(pos, slices.Clone(msg.Data)); !reflect.DeepEqual(held, read) {
		t.Errorf("remembered\n%+v\nread\n%+v", held, read)
	}
	if recorded[0][0].Seq != 0 {
		t.Error("looking a body up moved what its writer holds")
	}
	changed := slices.Clone(msg.Data)
	changed[len(changed)-3] ^= 1
	if s.recent.find(pos, changed) != nil {
		t.Error("a body that was changed on its way is taken for the one that was written")
	}
}

// Text that reads back as something else is not remembered.
func TestRecentLeavesOutWhatIsNotText(t *testing.T) {
	s := open(t)
	c := issued(domain.Stream{Account: "acc_1", Kind: "apikey", ID: "key_1"})
	c.By.Reason = "broken \xff"
	msg, recorded, err := s.encode("ledger.x", c)
	if err != nil {
		t.Fatal(err)
	}
	s.recent.keep(msg.Data, recorded[0])
	if s.recent.find(domain.Position{}, msg.Data) != nil {
		t.Error("it is remembered")
	}
}

func TestRecentIsBounded(t *testing.T) {
	r := newRecent()
	body := func(i int) []byte { return fmt.Appendf(make([]byte, 0, 2<<10), "%2048d", i) }
	for i := range 2 * maxRecent / len(body(0)) {
		r.keep(body(i), make([]domain.Recorded, 1))
		r.keep(body(i), make([]domain.Recorded, 1)) // again, which changes nothing
	}
	total := 0
	for _, w := range r.held {
		total += len(w.body)
	}
	if total != r.bytes || total > maxRecent || total < maxRecent-len(body(0)) || len(r.order) != len(r.held) {
		t.Errorf("%d bodies of %d bytes are held, and %d are counted", len(r.held), total, r.bytes)
	}
	if r.find(domain.Position{}, body(0)) != nil {
		t.Error("the first body is held")
	}
	if r.keep(make([]byte, maxRecent+1), make([]domain.Recorded, 1)); len(r.held) > 0 || r.bytes != 0 {
		t.Errorf("after one that is too large, %d bodies of %d bytes are held", len(r.held), r.bytes)
	}
}
