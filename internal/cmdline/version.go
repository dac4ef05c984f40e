package cmdline

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
)

// Set by the linker (-X, see the Makefile). If they are not set, the values that Go
// recorded are used; it records none in a checkout without .git.
var version, commit, date string

// BuildInfo identifies the source of an executable.
type BuildInfo struct {
	Version string // a tag, and the distance from it; "dev" if unknown
	Commit  string // hash of the commit; "unknown" if unknown
	Date    string // date of the commit, RFC 3339; "unknown" if unknown
}

// Build returns the source of this executable.
func Build() BuildInfo {
	info, _ := debug.ReadBuildInfo()
	return buildInfo(BuildInfo{version, commit, date}, info)
}

// buildInfo completes the linker's values with what Go recorded; info may be nil.
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

// versionCommand returns the command that prints the version.
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
