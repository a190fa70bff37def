// Postbook is a self-hosted email sending platform that can account for itself.
// One binary runs the server in any mix of roles, and asks it and its log
// questions.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"
)

type commands struct {
	Config

	JSON bool `help:"Print JSON instead of text." name:"json"`

	Serve       serveCommand       `cmd:"" help:"Run the server."`
	Dev         devCommand         `cmd:"" help:"Run the server with an account, keys and a sandbox of its own, and send a first mail."`
	Events      eventsCommand      `cmd:"" help:"Look at the log."`
	Projections projectionsCommand `cmd:"" help:"Look at the read models, and build them again."`
	Partitions  partitionsCommand  `cmd:"" help:"Show over how many partitions emails are spread, or change it."`
	Verify      verifyCommand      `cmd:"" help:"Find what was changed behind the platform's back."`
	Replay      replayCommand      `cmd:"" help:"Show how things were at any point of the log, and what changed between two."`
	Archive     archiveCommand     `cmd:"" help:"Look at the archive of the log's older entries, fill it, and check it."`
	Rotate      rotateCommand      `cmd:"" help:"Change keys."`
	Backup      backupCommand      `cmd:"" help:"Copy everything, while the server runs."`
	Restore     restoreCommand     `cmd:"" help:"Put a backup into an empty data directory, and check it."`
	Witness     witnessCommand     `cmd:"" help:"Be a witness for other platforms' logs."`
	Accounts    accountsCommand    `cmd:"" help:"Tell an account's story; block and unblock."`
	Erase       eraseCommand       `cmd:"" help:"Forget a recipient of an account, or an account: destroy the keys of what is personal."`
	Holds       holdsCommand       `cmd:"" help:"Keep data from being erased: legal holds."`
	Staff       staffCommand       `cmd:"" help:"Say who runs the platform."`
	Bench       benchCommand       `cmd:"" help:"Measure this program, and the limits of this machine in the same run."`
	Catalogue   catalogueCommand   `cmd:"" help:"Write docs/events.md and the events' JSON Schemas."`
	Version     versionCommand     `cmd:"" help:"Print the version."`
}

type versionCommand struct{}

// Run prints the version.
func (versionCommand) Run(out output) error {
	if printed, err := out.object(map[string]string{"version": version()}); printed {
		return err
	}
	fmt.Println(version())
	return nil
}

// version is the release or the commit that this program was built from, as the
// compiler wrote it down.
func version() string {
	built, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return built.Main.Version
}

func main() {
	// A second signal ends the program at once: the first stops listening for it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)

	var cli commands
	parsed := kong.Parse(&cli,
		kong.Name("postbook"),
		kong.Description("A self-hosted email sending platform that can account for itself."),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	err := parsed.Run(cli.Config, output{json: cli.JSON})
	switch {
	case err == nil:
	case errors.Is(err, errUnsound):
		os.Exit(1) // what was found has been printed
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		// What was not done is no success to whoever reads the exit status.
		fmt.Fprintln(os.Stderr, "postbook: interrupted before the end")
		os.Exit(128 + int(syscall.SIGINT))
	default:
		fmt.Fprintln(os.Stderr, "postbook:", err)
		os.Exit(1)
	}
}

// untilStopped is the error of a command that goes on until it is told to stop: to
// have been told is none.
func untilStopped(ctx context.Context, err error) error {
	if !errors.Is(err, context.Canceled) || ctx.Err() == nil {
		return err
	}
	return nil
}

// errUnsound ends a command whose check did not hold.
var errUnsound = errors.New("what was checked does not hold")
