package main

import "testing"

func TestATestThatWasCutOffCountsAsFailed(t *testing.T) {
	c := counter{output: map[string][]string{}}
	for _, e := range []event{
		{Action: "output", Package: "p", Test: "TestEnded", Output: "fine\n"},
		{Action: "pass", Package: "p", Test: "TestEnded"},
		{Action: "output", Package: "p", Test: "TestHangs", Output: "panic: test timed out\n"},
		{Action: "output", Package: "other", Test: "TestGoesOn", Output: "so far\n"},
		{Action: "fail", Package: "p"},
	} {
		c.take(e)
	}
	if c.passed != 1 || c.failed != 1 || !c.broken {
		t.Fatalf("%d passed, %d failed, broken %v; want 1, 1, true", c.passed, c.failed, c.broken)
	}
	if len(c.output) != 1 {
		t.Fatalf("what is held is %v; want that of the other package alone", c.output)
	}
}
