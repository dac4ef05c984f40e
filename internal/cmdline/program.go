package cmdline

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/cli"
)

// Program is an executable with its groups of commands and its commands. It also has the
// command "version".
type Program struct {
	Name     string
	Groups   []Group
	Commands []func(*Env) *Command // in the order of the help
}

// Group is a command that only contains other commands.
type Group struct{ Name, Synopsis string }

// all returns the commands, in order.
func (p *Program) all(env *Env) []*command {
	all := make([]*command, 0, len(p.Commands)+1)
	for _, build := range p.Commands {
		all = append(all, &command{build(env), p.Name, env})
	}
	return append(all, &command{versionCommand(p.Name), p.Name, env})
}

// Run runs the command that args name and returns the exit code: 0 done, 1 failed, 2
// invalid arguments, or one of the command's own.
func (p *Program) Run(env *Env, args []string) int {
	c := cli.NewCLI(p.Name, Build().Version)
	c.Args = args
	c.HelpFunc = cli.BasicHelpFunc(p.Name)
	c.HelpWriter, c.ErrorWriter = env.Out, env.Err // requested help can be piped
	c.Commands = map[string]cli.CommandFactory{}
	for _, command := range p.all(env) {
		c.Commands[command.Name] = func() (cli.Command, error) { return command, nil }
	}
	for _, g := range p.Groups {
		c.Commands[g.Name] = func() (cli.Command, error) { return &group{g, p, env}, nil }
	}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") && !has(c.Commands, args[0]) {
		_, _ = fmt.Fprintf(env.Err, "%s: there is no command %q\n\n", p.Name, Clean(args[0]))
	}
	code, err := c.Run()
	if err != nil {
		_, _ = fmt.Fprintln(env.Err, err)
		return exitFailed
	}
	if code == 127 || code == 1 && len(args) > 0 && strings.HasPrefix(args[0], "-") {
		return exitWrong // the library's codes for an unknown command, and for flags before a command
	}
	return code
}

// has reports whether a command or a group has this name.
func has(commands map[string]cli.CommandFactory, name string) bool {
	for full := range commands {
		if first, _, _ := strings.Cut(full, " "); first == name {
			return true
		}
	}
	return false
}

// group adapts a Group to hashicorp/cli.
type group struct {
	Group
	program *Program
	env     *Env
}

// Synopsis describes the group in one line.
func (g *group) Synopsis() string { return g.Group.Synopsis }

// Help lists the commands of the group.
func (g *group) Help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s %s <command> [options]\n\n%s\n\nCommands:\n", g.program.Name, g.Name, indent(g.Group.Synopsis+"."))
	w := tabwriter.NewWriter(&b, 0, 0, 4, ' ', 0)
	for _, c := range g.program.all(g.env) {
		if name, ok := strings.CutPrefix(c.Name, g.Name+" "); ok {
			_, _ = fmt.Fprintf(w, "    %s\t%s\n", name, c.Synopsis())
		}
	}
	_ = w.Flush()
	return b.String() + fmt.Sprintf("\n  %s %s <command> -help shows more.", g.program.Name, g.Name)
}

// HelpTemplate prevents the library from listing the commands a second time.
func (g *group) HelpTemplate() string { return "{{.Help}}" }

// Run is only called if no command of the group was named.
func (g *group) Run(args []string) int {
	if len(args) > 0 {
		_, _ = fmt.Fprintf(g.env.Err, "%s %s: there is no command %q\n\n", g.program.Name, g.Name, Clean(args[0]))
	}
	_, _ = fmt.Fprintln(g.env.Err, g.Help())
	return exitWrong
}

// Reference returns the help of all commands as Markdown: first commands without a group,
// then the groups.
func (p *Program) Reference() string {
	var b strings.Builder
	all := p.all(&Env{Getenv: func(string) string { return "" }})
	write := func(commands []*command) {
		for _, c := range commands {
			fmt.Fprintf(&b, "\n### %s %s\n%s.\n\n```text\n%s\n```\n", p.Name, c.Name, c.Synopsis(), c.reference())
		}
	}
	below := func(name string) (commands []*command) {
		for _, c := range all {
			if group, _, _ := strings.Cut(c.Name, " "); group == name {
				commands = append(commands, c)
			}
		}
		return commands
	}
	for _, g := range p.Groups {
		fmt.Fprintf(&b, "\n## %s %s\n%s.\n", p.Name, g.Name, g.Synopsis)
		write(below(g.Name))
	}
	b.WriteString("\n## Other commands\n")
	write(slices.DeleteFunc(slices.Clone(all), func(c *command) bool { return strings.Contains(c.Name, " ") }))
	return b.String()
}
