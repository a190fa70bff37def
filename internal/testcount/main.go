// Testcount reads the output of `go test -json`, shows each package as it ends and
// each failure in full, and ends with how many tests passed, failed and were
// skipped.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
)

// event is one line of test2json, or of a build that go test ran.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64
	Output     string
}

type counter struct {
	passed, failed, skipped int
	broken                  bool                // a package failed outside its tests
	output                  map[string][]string // by package and test, until it passes
}

func main() {
	c := counter{output: map[string][]string{}}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			fmt.Println(lines.Text())
			continue
		}
		c.take(e)
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "read the tests' output:", err)
		os.Exit(1)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", c.passed, c.failed, c.skipped)
	if c.failed > 0 || c.broken || c.passed == 0 {
		os.Exit(1)
	}
}

func (c *counter) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if e.Action == "build-output" {
			fmt.Print(e.Output)
			return
		}
		c.output[key] = append(c.output[key], e.Output)
	case "build-fail":
		c.broken = true
	case "pass", "fail", "skip":
		c.end(e, key)
	}
}

func (c *counter) end(e event, key string) {
	defer delete(c.output, key)
	if e.Test == "" {
		switch {
		case e.Action == "fail":
			c.broken = true
			fmt.Printf("FAIL  %6.1fs  %s\n%s", e.Elapsed, e.Package, strings.Join(c.output[key], ""))
			c.cutOff(e.Package)
		case e.Action == "pass":
			fmt.Printf("ok    %6.1fs  %s\n", e.Elapsed, e.Package)
		}
		return
	}
	switch e.Action {
	case "pass":
		c.passed++
	case "skip":
		c.skipped++
		fmt.Printf("skip  %s %s\n%s", e.Package, e.Test, strings.Join(c.output[key], ""))
	case "fail":
		c.failed++
		fmt.Printf("--- FAIL: %s %s\n%s", e.Package, e.Test, strings.Join(c.output[key], ""))
	}
}

// cutOff shows the tests of a package that had not ended when its process did,
// as after a panic or at the time limit, whose stacks are part of their output.
func (c *counter) cutOff(pkg string) {
	var keys []string
	for key := range c.output {
		if of, test, _ := strings.Cut(key, " "); of == pkg && test != "" {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		c.failed++
		fmt.Printf("--- CUT OFF: %s\n%s", key, strings.Join(c.output[key], ""))
		delete(c.output, key)
	}
}
