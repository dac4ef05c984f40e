package remote

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/cli"
)

// specs are all commands of this package, in the order in which help lists them.
var specs = []func() *spec{
	productRegister, productList, productShow, productPolicy, productRotateKey, productDelete,
	engineProvision, engineAdmit, engineShow, engineList, engineStart, engineStop, engineRotateKey, engineKeepAwake, engineDestroy,
	auditTail, status, completion,
}

// groups are the commands that only have others below them.
var groups = map[string]string{
	"product":  "Register and change products (for the admin)",
	"engine":   "Make, find and change engines (for a product)",
	"audit":    "Read the audit log",
	"registry": "See how the registry stands, and rebuild it (for the admin)",
	"volume":   "See and forget what destroyed engines left on lost nodes (for the admin)",
}

// Commands are the commands of this package by their names, and others, which the
// groups list too.
func Commands(env *Env, others map[string]cli.CommandFactory) map[string]cli.CommandFactory {
	all := maps.Clone(others)
	if all == nil {
		all = map[string]cli.CommandFactory{}
	}
	for _, build := range specs {
		all[build().name] = func() (cli.Command, error) { return &command{build(), env}, nil }
	}
	for name := range groups {
		all[name] = func() (cli.Command, error) { return &group{name, env, others}, nil }
	}
	return all
}

// group tells which commands are below it.
type group struct {
	name   string
	env    *Env
	others map[string]cli.CommandFactory
}

// Synopsis is what the group is about.
func (g *group) Synopsis() string { return groups[g.name] }

// Help lists the commands of the group.
func (g *group) Help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: orch %s <command> [options]\n\n%s\n\nCommands:\n", g.name, indent(groups[g.name]+"."))
	w := tabwriter.NewWriter(&b, 0, 0, 4, ' ', 0)
	for _, build := range specs {
		s := build()
		if name, ok := strings.CutPrefix(s.name, g.name+" "); ok {
			_, _ = fmt.Fprintf(w, "    %s\t%s\n", name, s.synopsis)
		}
	}
	for _, full := range slices.Sorted(maps.Keys(g.others)) {
		if name, ok := strings.CutPrefix(full, g.name+" "); ok {
			if c, err := g.others[full](); err == nil {
				_, _ = fmt.Fprintf(w, "    %s\t%s\n", name, c.Synopsis())
			}
		}
	}
	_ = w.Flush()
	return b.String() + fmt.Sprintf("\n  orch %s <command> -help tells more.", g.name)
}

// HelpTemplate keeps the library from listing the commands once more.
func (g *group) HelpTemplate() string { return "{{.Help}}" }

// Run is only reached without one of the group's commands.
func (g *group) Run(args []string) int {
	if len(args) > 0 {
		_, _ = fmt.Fprintf(g.env.Err, "orch %s: there is no command %q\n\n", g.name, clean(args[0]))
	}
	_, _ = fmt.Fprintln(g.env.Err, g.Help())
	return exitWrong
}
