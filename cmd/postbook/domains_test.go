package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"postbook.dev/postbook/internal/testenv"
)

// A client that goes away while a domain is added or deleted leaves nothing half
// done: the domain is there and holds its name, or neither.
func TestAClientThatGoesAwayLeavesNoDomainHalf(t *testing.T) {
	t.Parallel()
	i := launch(t)
	for n := range 6 {
		domainName := fmt.Sprintf("gone%d.test", n)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n*n)*2*time.Millisecond)
		_, _ = i.try(ctx, "POST", "/domains", map[string]any{"name": domainName})
		cancel()
		var id string
		testenv.Eventually(t, 30*time.Second, func() error {
			id = i.domainNamed(domainName)
			r := i.ask("POST", "/domains", map[string]any{"name": domainName})
			if id == "" && r.status == 201 {
				id = r.id(t)
				return nil
			}
			if id == "" || r.status/100 == 2 {
				return fmt.Errorf("%s: %q is listed, and it is taken with %s", domainName, id, r)
			}
			return nil
		})
		ctx, cancel = context.WithTimeout(t.Context(), time.Duration(n*n)*2*time.Millisecond)
		_, _ = i.try(ctx, "DELETE", "/domains/"+id, nil)
		cancel()
		if i.domainNamed(domainName) != "" {
			if r := i.ask("DELETE", "/domains/"+id, nil); r.status != 200 && r.status != 404 {
				t.Errorf("delete %s: %s", domainName, r)
			}
		}
		testenv.Eventually(t, 30*time.Second, func() error {
			if r := i.ask("POST", "/domains", map[string]any{"name": domainName}); r.status != 201 {
				return fmt.Errorf("%s cannot be added again: %s", domainName, r)
			}
			return nil
		})
	}
}

// domainNamed is the id of a domain that is listed, or empty.
func (i *instance) domainNamed(name string) string {
	i.t.Helper()
	var list struct {
		Data []struct{ ID, Name string }
	}
	i.ask("GET", "/domains", nil).decode(i.t, &list)
	for _, d := range list.Data {
		if strings.EqualFold(d.Name, name) {
			return d.ID
		}
	}
	return ""
}

// Who took a name that is not theirs loses it to an operator's word: at once, with
// the reason on record, and another account can add it.
func TestAnOperatorRemovesADomain(t *testing.T) {
	t.Parallel()
	i := launch(t)
	mine := i.facts.AccountID
	id := i.ask("POST", "/domains", map[string]any{"name": "bank.test"}).id(t)
	for _, args := range [][]string{
		{mine, "other.test", "--reason", "x"},
		{"0190b3f2-0000-7000-8000-000000000000", "bank.test", "--reason", "x"},
		{mine, "no name", "--reason", "x"},
		{mine, "bank.test", "--reason", " "},
	} {
		if said, err := i.postbook(append([]string{"accounts", "remove-domain"}, args...)...); err == nil {
			t.Errorf("%q: %s", args, said)
		}
	}
	if i.domainNamed("bank.test") == "" {
		t.Fatal("a refused command removed the domain")
	}
	if said, err := i.postbook("accounts", "remove-domain", mine, "Bank.test", "--reason", "it is a bank's"); err != nil || !strings.Contains(said, "bank.test is removed") {
		t.Fatalf("%v\n%s", err, said)
	}
	testenv.Eventually(t, 10*time.Second, func() error {
		if i.domainNamed("bank.test") != "" {
			return fmt.Errorf("the domain is still there")
		}
		return nil
	})
	if said, err := i.postbook("events", "show", mine+".sender."+id, "--json"); err != nil || !strings.Contains(said, "it is a bank's") {
		t.Errorf("the log does not tell why: %v\n%s", err, said)
	}
	if r := i.ask("POST", "/domains", map[string]any{"name": "bank.test"}); r.status != 201 {
		t.Errorf("it cannot be added again: %s", r)
	}
}
