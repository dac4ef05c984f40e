package commands

// Document is docs/cli.md: every command with its help.
func Document() string {
	return `# Command line

<!-- Made by "make docs" from cmd/orch/internal/commands: change it there. -->

` + "`orch`" + ` is the service (` + "`orch server`" + `) and its command line. ` + "`orch -help`" + ` lists the commands, ` + "`orch engine -help`" + ` those of a group, and ` + "`orch engine show -help`" + ` explains one. ` + "`eval \"$(orch completion bash)\"`" + `, or zsh, lets the shell complete all of them.

## Which service, and which key
A command calls the service at ` + "`-address`" + `, else at ` + "`ORCH_URL`" + `, else that of the context in use, else ` + "`http://127.0.0.1:8000`" + `. The product's platform key is in ` + "`ORCH_PLATFORM_KEY`" + ` and the admin key in ` + "`ORCH_ADMIN_KEY`" + `, unless a context says otherwise. A key is never given on the command line, where other users of the machine could see it.

A context is a name for a service and for who calls it:

` + "```sh" + `
orch context add -address https://orch.example.com -product acme -platform-key-file ~/.keys/acme production
orch context use production         # in all calls from now on
orch engine list -context staging   # in this call
` + "```" + `

The file is ` + "`orch/contexts.json`" + ` in ` + "`$XDG_CONFIG_HOME`" + ` (else ` + "`~/.config`" + `; ` + "`~/Library/Application Support`" + ` on macOS), readable by its owner alone. It holds no key, only the name of an environment variable or of a file for each. ` + "`-context`" + ` wins over the environment. Without it, ` + "`-address`" + ` and ` + "`ORCH_URL`" + ` win over the context in use, and then its keys are not used either; a context that names a key takes no other from the environment: a key goes only to the service that it is for.

## What all commands have in common
- Flags may come before or after arguments; ` + "`--`" + ` ends them.
- Results go to stdout, everything else to stderr. ` + "`-json`" + ` prints the result for scripts, as one object; ` + "`audit tail`" + ` and ` + "`engine watch`" + ` print one object a line.
- Keys are printed by the commands that make them (` + "`engine provision`, `engine rotate-key`, `product register`, `product rotate-key`" + `), and else only with ` + "`-key`" + `, in JSON as well.
- A command that cannot be undone asks first. ` + "`-yes`" + ` answers; without a terminal it is required.
- Colours and progress are for terminals. ` + "`NO_COLOR=1`" + ` turns colours off.

## Exit codes
| Code | Meaning |
|---|---|
| 0 | done |
| 1 | failed: stderr has what the service said, its ` + "`code`" + ` and the ` + "`request`" + ` id to look for in the log |
| 2 | called wrongly or configured wrongly: nothing was done |
| 3 | ` + "`orch server`" + ` was ended at once by a second signal |
| 124 | the time of ` + "`orch engine wait`" + ` ran out |
` + Program().Reference()
}
