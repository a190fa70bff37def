// Postbook-proof checks that an event is in a platform's log, from the proof that
// "postbook events show LOG/SEQUENCE --proof FILE" writes and the platform's
// public key. It needs no network, and nothing else of the platform.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"postbook.dev/postbook/seal"
)

type arguments struct {
	Key         []string `sep:"none" required:"" help:"Public key that signs the platform's seal."`
	WitnessKeys []string `sep:"none" name:"witness-key" help:"Public key of a witness whose cosignature has to be there."`
	File        *os.File `arg:"" help:"The proof."`
}

func main() {
	var args arguments
	kong.Parse(&args, kong.Name("postbook-proof"), kong.Description("Check that an event is in a platform's log."))
	if err := args.check(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "postbook-proof:", err)
		os.Exit(1)
	}
}

// maxProof bounds a proof: the entry in it is at most one message of the log.
const maxProof = 16 << 20

func (a arguments) check(out io.Writer) error {
	text, err := io.ReadAll(io.LimitReader(a.File, maxProof))
	if err != nil {
		return fmt.Errorf("read the proof: %w", err)
	}
	trusted, err := seal.ParseVerifiers(a.Key, a.WitnessKeys)
	if err != nil {
		return err
	}
	e, c, err := seal.CheckProof(text, trusted.Log[0].Name(), trusted)
	if err != nil {
		return err
	}
	if len(c.Witnesses) < len(trusted.Witnesses) {
		return fmt.Errorf("the checkpoint is cosigned by %d of the %d witnesses", len(c.Witnesses), len(trusted.Witnesses))
	}
	witnessed := "not witnessed"
	if len(c.Witnesses) > 0 {
		witnessed = "witnessed by " + strings.Join(c.Witnesses, ", ")
	}
	_, err = fmt.Fprintf(out, "%s %d was recorded at %s and is in the log that %s signed with %d entries at %s; %s.\n%s\n",
		e.Log, e.Seq, e.Time.UTC().Format(time.RFC3339Nano), c.Origin, c.Size, c.At.Format(time.RFC3339), witnessed, e.Body)
	return err
}
