package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/term"

	"postbook.dev/postbook/api"
	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/domain/account"
	"postbook.dev/postbook/domain/apikey"
	"postbook.dev/postbook/domain/directory"
	"postbook.dev/postbook/domain/member"
	"postbook.dev/postbook/domain/name"
	"postbook.dev/postbook/domain/sender"
	"postbook.dev/postbook/eventstore"
)

type accountsCommand struct {
	List           accountsList     `cmd:"" help:"List the accounts, with their domains and whether they may send."`
	Open           accountsOpen     `cmd:"" help:"Open an account and make its first API key, beside a running server or without one. The key is printed once."`
	Show           accountsShow     `cmd:"" help:"Tell everything that was done to an account, its keys, domains and members, from the log."`
	Block          accountsBlock    `cmd:"" help:"Stop the sending of accounts."`
	RequestUnblock accountsRequest  `cmd:"" help:"Ask that accounts may send again. Somebody else has to approve."`
	Withdraw       accountsWithdraw `cmd:"" help:"Take a request back."`
	Unblock        accountsUnblock  `cmd:"" help:"Approve somebody else's request."`
	Members        accountsMembers  `cmd:"" help:"List who may use the console of an account."`
	AddMember      accountsAdd      `cmd:"" help:"Let somebody use the console of an account, beside a running server or without one. Their password is printed once. Whoever has lost theirs is removed and added again."`
	RemoveMember   accountsRemove   `cmd:"" help:"End what a member may do, at once, beside a running server or without one."`
	RemoveDomain   accountsDomain   `cmd:"" help:"Remove a sender domain, so that another account can add it: of somebody who took a name that is not theirs. Beside a running server or without one."`
	RevokeKey      accountsRevoke   `cmd:"" help:"Revoke an API key, at once, beside a running server or without one."`
}

type accountsRemove struct {
	ID     string `arg:"" help:"Id of the account."`
	Email  string `arg:"" help:"Email address of the member."`
	Reason string `required:"" help:"Why."`
}

// Run removes the member.
func (c accountsRemove) Run(ctx context.Context, cfg Config, out output) error {
	return withPerson(ctx, cfg, domain.Member, c.ID, c.Email, func(k keeper, p directory.Person) error {
		leave := member.Command(member.Leave{Authority: because(c.Reason)})
		recorded, err := eventstore.Execute(ctx, k.store, member.Decider, member.Stream(c.ID, p.ID), leave)
		return out.done(recorded, err, c.Email+" is out, and so is every session of theirs.")
	})
}

type accountsRevoke struct {
	ID     string `arg:"" help:"Id of the account."`
	Key    string `arg:"" help:"Id of the API key, as in GET /api-keys or in the log."`
	Reason string `required:"" help:"Why."`
}

// Run revokes the key.
func (c accountsRevoke) Run(ctx context.Context, cfg Config, out output) error {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	revoke := apikey.Command(apikey.Revoke{Authority: because(c.Reason)})
	recorded, err := eventstore.Execute(ctx, store, apikey.Decider, apikey.Stream(c.ID, c.Key), revoke)
	return out.done(recorded, err, "The key is revoked.")
}

type accountsDomain struct {
	ID     string `arg:"" help:"Id of the account."`
	Domain string `arg:"" help:"Name of the domain."`
	Reason string `required:"" help:"Why."`
}

// Run removes the domain, and gives its name back. Interrupted in between, it is
// given again.
func (c accountsDomain) Run(ctx context.Context, cfg Config, out output) error {
	domainName, err := parseDomain(strings.ToLower(c.Domain))
	if err != nil {
		return fmt.Errorf("%q is no domain name", c.Domain)
	}
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	holder, _, err := eventstore.Load(ctx, store, name.Decider, name.Stream(domainName))
	if err != nil {
		return err
	}
	if holder.Sender == "" || holder.Account != c.ID {
		return fmt.Errorf("the account %s has no domain called %s", c.ID, domainName)
	}
	remove := sender.Command(sender.Remove{Authority: because(c.Reason)})
	_, err = eventstore.Execute(ctx, store, sender.Decider, sender.Stream(c.ID, holder.Sender), remove)
	if r := domain.Refused(err); err != nil && (r == nil || r.Code != domain.NotFound) {
		return err
	}
	release := name.Command(name.Release{Authority: because(c.Reason), Sender: holder.Sender})
	recorded, err := eventstore.Execute(ctx, store, name.Decider, name.Stream(domainName), release)
	return out.done(recorded, err, domainName+" is removed, and may be added again.")
}

type accountsOpen struct {
	Name  string `arg:"" help:"What the account is called."`
	Email string `help:"Also make a member who may sign in to the console. Their password is printed once."`
}

// Run opens an account.
func (c accountsOpen) Run(ctx context.Context, cfg Config, out output) error {
	if c.Email != "" {
		if err := checkAddress(c.Email); err != nil {
			return fmt.Errorf("--email: %w", err)
		}
	}
	return operating(ctx, cfg, func(ctx context.Context, o office) error {
		facts := map[string]string{"account_id": uuid.Must(uuid.NewV7()).String()}
		if err := o.open(ctx, operator(time.Now()), facts["account_id"], c.Name); err != nil {
			return err
		}
		err := c.furnish(ctx, o, facts)
		return errors.Join(err, out.facts(facts, "account_id", "api_key", "member", "password")) // what is there is told, also if not all of it is
	})
}

// furnish makes what belongs to a new account.
func (c accountsOpen) furnish(ctx context.Context, o office, facts map[string]string) (err error) {
	id := facts["account_id"]
	_, facts["api_key"], err = o.api.IssueKey(ctx, operator(time.Now()), id, api.IssueKey{Name: "First key", Permission: domain.FullAccess})
	if err != nil || c.Email == "" {
		return err
	}
	password := rand.Text()
	if _, err = o.api.JoinMember(ctx, operator(time.Now()), id, c.Email, password); err == nil {
		facts["member"], facts["password"] = c.Email, password
	}
	return err
}

// facts prints what is told once.
func (o output) facts(facts map[string]string, order ...string) error {
	maps.DeleteFunc(facts, func(_, value string) bool { return value == "" })
	if printed, err := o.object(facts); printed {
		return err
	}
	for _, name := range order {
		if facts[name] != "" {
			fmt.Printf("%-10s  %s\n", name, facts[name])
		}
	}
	fmt.Println("Keys and passwords are shown this once.")
	return nil
}

type accountsList struct {
	Domain string `help:"Only the account that has this domain."`
}

// Run lists the accounts.
func (c accountsList) Run(ctx context.Context, cfg Config, out output) error {
	type row struct {
		ID      string   `json:"id"`
		Name    string   `json:"name"`
		State   string   `json:"state"` // why it may not send, or that it may
		Domains []string `json:"domains"`
	}
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	known, err := everybody(ctx, store)
	if err != nil {
		return err
	}
	domains := map[string][]string{}
	for _, s := range known.Senders() {
		domains[s.Account] = append(domains[s.Account], s.Name)
	}
	all := []row{}
	for _, a := range known.Accounts() {
		state := "may send"
		switch {
		case a.Erased:
			state = "erased"
		case a.Blocked != "":
			state = "blocked for " + a.Blocked
		}
		if c.Domain == "" || slices.Contains(domains[a.ID], strings.ToLower(c.Domain)) {
			all = append(all, row{a.ID, a.Name, state, slices.Sorted(slices.Values(domains[a.ID]))})
		}
	}
	if c.Domain != "" && len(all) == 0 {
		return fmt.Errorf("no account has the domain %s", c.Domain)
	}
	slices.SortFunc(all, func(a, b row) int { return strings.Compare(a.ID, b.ID) }) // as they were opened
	if printed, err := out.object(all); printed {
		return err
	}
	rows := make([][]string, len(all))
	for n, r := range all {
		rows[n] = []string{r.ID, r.Name, r.State, strings.Join(r.Domains, " ")}
	}
	return out.table([]string{"ID", "NAME", "STATE", "DOMAINS"}, rows)
}

type accountsMembers struct {
	ID string `arg:"" help:"Id of the account."`
}

// Run lists an account's members.
func (c accountsMembers) Run(ctx context.Context, cfg Config, out output) error {
	return listPeople(ctx, cfg, out, domain.Member, c.ID)
}

type accountsAdd struct {
	ID    string `arg:"" help:"Id of the account."`
	Email string `arg:"" help:"Email address of the new member."`
}

// Run lets somebody in.
func (c accountsAdd) Run(ctx context.Context, cfg Config, out output) error {
	if err := checkAddress(c.Email); err != nil {
		return err
	}
	return operating(ctx, cfg, func(ctx context.Context, o office) error {
		if err := checkAccount(ctx, o.api.Store, c.ID); err != nil {
			return err
		}
		password := rand.Text()
		if _, err := o.api.JoinMember(ctx, operator(time.Now()), c.ID, c.Email, password); err != nil {
			return err
		}
		return out.facts(map[string]string{"member": c.Email, "password": password}, "member", "password")
	})
}

type accountsShow struct {
	ID string `arg:"" help:"Id of the account."`
}

// Run tells the account's story.
func (c accountsShow) Run(ctx context.Context, cfg Config, out output) error {
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	return tellStory(ctx, store, out, c.ID)
}

// tellStory prints everything that was done to an account.
func tellStory(ctx context.Context, store *eventstore.Store, out output, id string) error {
	history, err := store.AccountHistory(ctx, id)
	if err != nil {
		return err
	}
	if len(history) == 0 {
		return unknownAccount(id)
	}
	for _, rec := range history {
		if err := out.event(rec); err != nil {
			return err
		}
		if out.json {
			continue
		}
		// What is in the others is for programs: keys, hashes, and what is sealed. Events
		// show prints it.
		data, err := json.Marshal(rec.Event)
		if err != nil {
			return fmt.Errorf("print %s/%d: %w", rec.Log, rec.Seq, err)
		}
		if rec.Stream == account.Stream(id) && string(data) != "{}" {
			fmt.Printf("    %s\n", data)
		}
		for _, a := range rec.By.Approvals {
			fmt.Printf("    approved with %s, who asked in %s at %s\n", a.Actor, a.Event, a.At.UTC().Format(clock))
		}
	}
	return nil
}

// asStaff is how a member of staff proves who they are. The password and the
// code come from the environment or from standard input, never from arguments,
// which others on the machine can read.
type asStaff struct {
	IDs    []string `arg:"" name:"id" help:"Ids of the accounts. One code is enough for all of them."`
	Reason string   `required:"" help:"Why."`
	Email  string   `env:"POSTBOOK_STAFF_EMAIL" help:"Who you are. POSTBOOK_STAFF_PASSWORD and POSTBOOK_STAFF_TOTP prove it; without them you are asked."`
}

type accountsBlock struct {
	asStaff
	Policy   string `required:"" help:"The rule that was broken."`
	Evidence string `required:"" help:"What was seen."`
}

// Run blocks the account.
func (c accountsBlock) Run(ctx context.Context, cfg Config, out output) error {
	return c.ask(ctx, cfg, out, http.MethodPost, "block", map[string]string{"policy": c.Policy, "evidence": c.Evidence, "reason": c.Reason})
}

type accountsRequest struct{ asStaff }

// Run asks for unblocking.
func (c accountsRequest) Run(ctx context.Context, cfg Config, out output) error {
	return c.ask(ctx, cfg, out, http.MethodPost, "unblock-requests", map[string]string{"reason": c.Reason})
}

type accountsWithdraw struct{ asStaff }

// Run takes the request back.
func (c accountsWithdraw) Run(ctx context.Context, cfg Config, out output) error {
	return c.ask(ctx, cfg, out, http.MethodDelete, "unblock-requests", map[string]string{"reason": c.Reason})
}

type accountsUnblock struct{ asStaff }

// Run approves the request.
func (c accountsUnblock) Run(ctx context.Context, cfg Config, out output) error {
	return c.ask(ctx, cfg, out, http.MethodPost, "unblock", map[string]string{"reason": c.Reason})
}

// ask has the running server do the same to each account. A code is good once, so what
// can be told without it is looked at before.
func (s asStaff) ask(ctx context.Context, cfg Config, out output, method, what string, body map[string]string) error {
	if strings.TrimSpace(s.Reason) == "" {
		return errors.New("--reason: say why")
	}
	store, err := openLog(ctx, &cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	r, ok := found(cfg)
	if !ok {
		return fmt.Errorf("no server runs on %s: staff decide through it, so that everything is on record", cfg.DataDir)
	}
	for _, id := range s.IDs {
		if err := checkAccount(ctx, store, id); err != nil {
			return err
		}
	}
	token, err := s.signIn(ctx, r)
	if err != nil {
		return err
	}
	var failed []error
	for _, id := range s.IDs {
		var answer map[string]any
		err := call(ctx, method, r.BaseURL+"/staff/accounts/"+id+"/"+what, token, body, &answer)
		if err == nil {
			err = s.tell(ctx, store, out, id, answer)
		}
		if err != nil && len(s.IDs) > 1 {
			err = fmt.Errorf("%s: %w", id, err)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// signIn opens a session of staff.
func (s asStaff) signIn(ctx context.Context, r running) (token string, err error) {
	in := bufio.NewReader(os.Stdin)
	login := map[string]string{"email": s.Email}
	for _, field := range []string{"email", "password", "totp"} {
		if login[field] == "" {
			login[field] = os.Getenv("POSTBOOK_STAFF_" + strings.ToUpper(field))
		}
		if login[field] == "" {
			answer, err := prompt(in, field)
			if err != nil {
				return "", fmt.Errorf("read your %s: %w", field, err)
			}
			login[field] = strings.TrimSpace(answer)
		}
	}
	var session struct{ Token string }
	err = call(ctx, http.MethodPost, r.BaseURL+"/staff/sessions", "", login, &session)
	return session.Token, err
}

// tell says what became of an account.
func (asStaff) tell(ctx context.Context, store *eventstore.Store, out output, id string, answer map[string]any) error {
	if done, err := out.object(answer); done {
		return err
	}
	if settled, told := answer["settled"].(bool); told && settled {
		fmt.Println("Nothing of the account is on the wire any more.")
	} else if told {
		fmt.Println("NOT settled: mail of the account may still be on the wire. Give the command again.")
	}
	return tellStory(ctx, store, out, id)
}

// prompt asks for a field of a sign-in. A terminal does not show a password.
func prompt(in *bufio.Reader, field string) (string, error) {
	fmt.Fprintf(os.Stderr, "Your %s: ", field)
	terminal := int(os.Stdin.Fd())
	if field != "password" || !term.IsTerminal(terminal) {
		return in.ReadString('\n')
	}
	answer, err := term.ReadPassword(terminal)
	fmt.Fprintln(os.Stderr)
	return string(answer), err
}

// call asks the running server.
func call(ctx context.Context, method, url, token string, body, into any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the server: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	if resp.StatusCode >= 300 {
		var told struct{ Message string }
		if json.Unmarshal(answer, &told) == nil && told.Message != "" {
			return errors.New(told.Message)
		}
		if resp.StatusCode == http.StatusNotFound {
			return fmt.Errorf("the server at %s does not serve the API: ask on a host that has the role api", req.URL.Host)
		}
		return fmt.Errorf("the server answered %s", resp.Status)
	}
	return json.Unmarshal(answer, into)
}
