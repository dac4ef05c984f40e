package commands

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/posener/complete"

	"github.com/septemberai/orch/internal/cmdline"
)

// shells are the shells that have completion, with their scripts. The executable itself
// completes (`complete -C`), so a script never becomes outdated. zsh emulates that command
// of bash.
var shells = map[string]string{
	"bash": "complete -C %s orch\n",
	"zsh":  "autoload -U +X bashcompinit && bashcompinit\ncomplete -o nospace -C %s orch\n",
}

func completion(env *cmdline.Env) *cmdline.Command {
	return &cmdline.Command{
		Name: "completion", Args: []string{"shell"},
		Synopsis: "Print the completion script for bash or zsh",
		About: `Print the script that makes bash or zsh complete commands, flags and their values.
Put it into the shell's start-up file.`,
		Examples: []string{
			`eval "$(orch completion bash)"    # in ~/.bashrc`,
			`eval "$(orch completion zsh)"     # in ~/.zshrc, after compinit`,
		},
		Predict: map[string]complete.Predictor{"": complete.PredictSet("bash", "zsh")},
		Run: func(_ context.Context, c *cmdline.Call) error {
			script, known := shells[c.Args[0]]
			if !known {
				return cmdline.Wrong("the shell must be bash or zsh")
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			// The path is quoted twice: for this line, and for the command that it
			// registers.
			_, err = fmt.Fprintf(env.Out, script, quote(quote(self)))
			return err
		},
	}
}

// quote quotes a value for a shell, if that is necessary.
func quote(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/._-+", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
