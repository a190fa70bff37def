package eventstore

import (
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
	msg, _, err := s.encode("ledger.x", c)
	if err != nil {
		t.Fatal(err)
	}
	if s.recent.find(domain.Position{}, msg.Data) != nil {
		t.Error("it is remembered")
	}
}

func TestRecentIsBounded(t *testing.T) {
	r := newRecent()
	for i := range 2 * maxRecent {
		r.keep([]byte{byte(i), byte(i >> 8), byte(i >> 16)}, make([]domain.Recorded, 1))
	}
	if len(r.held) != maxRecent {
		t.Errorf("%d bodies are held", len(r.held))
	}
	if r.find(domain.Position{}, []byte{0, 0, 0}) != nil {
		t.Error("the first body is held")
	}
}
