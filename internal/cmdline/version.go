package cmdline

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
)

// Set by the linker (-X, see the Makefile); what it did not set is what Go itself
// recorded, which is nothing in a checkout without .git.
var version, commit, date string

// BuildInfo is of which source an executable is.
type BuildInfo struct {
	Version string // a tag, with what came after it; "dev" when unknown
	Commit  string // its hash; "unknown" when it is
	Date    string // of the commit, RFC 3339; "unknown" when it is
}

// Build is of which source this executable is.
func Build() BuildInfo {
	info, _ := debug.ReadBuildInfo()
	return buildInfo(BuildInfo{version, commit, date}, info)
}

// buildInfo is what the linker was told, completed from what Go recorded; info
// may be nil.
func buildInfo(linked BuildInfo, info *debug.BuildInfo) BuildInfo {
	var recorded BuildInfo
	if info != nil {
		if info.Main.Version != "(devel)" {
			recorded.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				recorded.Commit = s.Value
			case "vcs.time":
				recorded.Date = s.Value
			}
		}
	}
	return BuildInfo{
		Version: cmp.Or(linked.Version, recorded.Version, "dev"),
		Commit:  cmp.Or(linked.Commit, recorded.Commit, "unknown"),
		Date:    cmp.Or(linked.Date, recorded.Date, "unknown"),
	}
}

func (b BuildInfo) String() string {
	return fmt.Sprintf("%s, commit %s, date %s", b.Version, b.Commit, b.Date)
}

// versionCommand prints the version of the executable with this name.
func versionCommand(name string) *Command {
	return &Command{
		Name: "version", Synopsis: "Print version, commit and date",
		About:    "Print the version, the commit that it was built from, and the commit's date.",
		Examples: []string{name + " version"},
		Run: func(_ context.Context, c *Call) error {
			_, err := fmt.Fprintln(c.Env.Out, name+" "+Build().String())
			return err
		},
	}
}
