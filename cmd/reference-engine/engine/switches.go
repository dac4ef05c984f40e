package engine

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Switches make the engine misbehave on purpose, or pose as another version. The zero value
// is an engine that obeys the contract.
type Switches struct {
	Version string // vN: a label that distinguishes two "images"

	ExitAtStart bool          // exits 1 at the start
	SlowBoot    time.Duration // waits before it listens
	NeverListen bool          // runs, but never opens its port
	Hang        bool          // accepts /health, but never responds
	CrashAfter  time.Duration // exits 1 this long after it began to serve; negative: never
	EatMemory   time.Duration // allocates memory without end this long after it began to serve; 0: before that; negative: never
	FailHealth  time.Duration // /health fails after this time; negative: never
	FailFile    bool          // /health fails while a file "fail-health" is beside the brain
	Busy        time.Duration // /health reports busy for this long after the start; negative: never
	IgnoreTerm  bool          // SIGTERM and SIGINT do nothing
	TermDelay   time.Duration // after draining it keeps running this long, with the brain open and locked
	Linger      time.Duration // after SIGTERM it keeps serving this long, with its current key hash
	NoReload    bool          // SIGHUP does nothing
	TwoKeys     time.Duration // the previous key stays valid this long after a reload
	RouteFirst  bool          // unknown paths are 404 even without a key
	Unknown401  bool          // unknown paths are 401 even with the key
	Names       []string      // as given, for GET /info
}

// forever means "no end" for switches whose duration is optional.
const forever = 100 * 365 * 24 * time.Hour

// argument says whether a switch has a duration.
type argument int

const (
	none argument = iota
	optional
	required
)

// switchDef is one row of the table of switches.
type switchDef struct {
	name string
	arg  argument
	def  time.Duration // default of an optional argument
	help string
	set  func(*Switches, time.Duration)
}

var switchTable = []switchDef{
	{"slow-boot", optional, 5 * time.Second, "wait before listening (5s)", func(s *Switches, d time.Duration) { s.SlowBoot = d }},
	{"never-listen", none, 0, "run, but never open the port", func(s *Switches, _ time.Duration) { s.NeverListen = true }},
	{"exit-at-start", none, 0, "print a message on stderr and exit 1", func(s *Switches, _ time.Duration) { s.ExitAtStart = true }},
	{"crash-after", required, 0, "exit 1 that long after serving began", func(s *Switches, d time.Duration) { s.CrashAfter = d }},
	{"eat-memory", optional, 0, "allocate memory without end, before listening or that long after serving began", func(s *Switches, d time.Duration) { s.EatMemory = d }},
	{"fail-health", optional, 0, "/health returns 503, from the start or after a while", func(s *Switches, d time.Duration) { s.FailHealth = d }},
	{"fail-health-file", none, 0, "/health returns 503 while the file fail-health is beside the brain, with the subsystem that the file names", func(s *Switches, _ time.Duration) { s.FailFile = true }},
	{"hang", none, 0, "accept /health, but never respond", func(s *Switches, _ time.Duration) { s.Hang = true }},
	{"busy", optional, forever, "/health reports busy, always or for that long", func(s *Switches, d time.Duration) { s.Busy = d }},
	{"ignore-sigterm", none, 0, "SIGTERM and SIGINT do nothing", func(s *Switches, _ time.Duration) { s.IgnoreTerm = true }},
	{"term-delay", optional, 5 * time.Second, "after SIGTERM: drain, then keep running that long with the brain locked (5s)", func(s *Switches, d time.Duration) { s.TermDelay = d }},
	{"linger", optional, 5 * time.Second, "after SIGTERM: keep serving that long with the old key hash (5s)", func(s *Switches, d time.Duration) { s.Linger = d }},
	{"no-reload", none, 0, "SIGHUP does nothing", func(s *Switches, _ time.Duration) { s.NoReload = true }},
	{"two-keys", optional, forever, "the previous key stays valid after a reload", func(s *Switches, d time.Duration) { s.TwoKeys = d }},
	{"route-first", none, 0, "404 for unknown paths, even without a key", func(s *Switches, _ time.Duration) { s.RouteFirst = true }},
	{"unknown-401", none, 0, "401 for unknown paths, even with the key", func(s *Switches, _ time.Duration) { s.Unknown401 = true }},
	{"reload", none, 0, "changes nothing: a name for an image that is known to reload on SIGHUP", func(*Switches, time.Duration) {}},
}

// switchFile is the name of the file for fail-health-file.
const switchFile = "fail-health"

var versionLabel = regexp.MustCompile(`^v[0-9]+$`)

// parseSwitches reads the switches in args (args[0] is the executable's path) and in the
// list env. An unknown switch is an error, because a test that misspells one would
// otherwise test nothing.
func parseSwitches(args []string, env string) (Switches, error) {
	s := Switches{CrashAfter: -1, EatMemory: -1, FailHealth: -1, Busy: -1}
	var words []string
	if len(args) > 0 {
		words = append(words, strings.Split(filepath.Base(args[0]), ".")[1:]...)
		for _, a := range args[1:] {
			words = append(words, strings.TrimLeft(a, "-"))
		}
	}
	words = append(words, strings.FieldsFunc(env, func(r rune) bool { return r == ',' || r == ' ' })...)
	for _, w := range words {
		if versionLabel.MatchString(w) {
			s.Version = w
			continue
		}
		if err := s.apply(w); err != nil {
			return Switches{}, err
		}
		s.Names = append(s.Names, w)
	}
	return s, nil
}

// apply sets the switch that word names. An exact name takes precedence over a name with an
// argument, so fail-health-file is not fail-health with the argument "file".
func (s *Switches) apply(word string) error {
	i := slices.IndexFunc(switchTable, func(d switchDef) bool { return d.name == word })
	if i >= 0 {
		d := switchTable[i]
		if d.arg == required {
			return fmt.Errorf("switch %s needs a duration, as in %s-5s", d.name, d.name)
		}
		d.set(s, d.def)
		return nil
	}
	for _, d := range switchTable {
		rest, ok := strings.CutPrefix(word, d.name)
		if !ok || d.arg == none || (rest[0] != '-' && rest[0] != '=') {
			continue
		}
		v, err := time.ParseDuration(rest[1:])
		if err != nil || v < 0 {
			return fmt.Errorf("switch %q: %q is not a duration like 5s", d.name, rest[1:])
		}
		d.set(s, v)
		return nil
	}
	return fmt.Errorf("unknown switch %q, see -help", word)
}

// Help is what -help prints.
var Help = help()

func help() string {
	var b strings.Builder
	b.WriteString(`reference-engine [switch ...]

A small engine that keeps orch's engine contract.

Environment: ENGINE_KEY_HASH or ENGINE_KEY_HASH_FILE, ENGINE_TLS_FILE, SQLITE_DB_PATH,
CATALOG_DIR, PORT (8000), HOST, ENGINE_SWITCHES.

Test switches, on the command line, in ENGINE_SWITCHES (comma-separated) or in
the executable's name (reference-engine.v2.slow-boot-5s), as name, name-5s or name=5s:

`)
	for _, d := range switchTable {
		name := d.name
		switch d.arg {
		case optional:
			name += "[-DURATION]"
		case required:
			name += "-DURATION"
		}
		fmt.Fprintf(&b, "  %-24s %s\n", name, d.help)
	}
	fmt.Fprintf(&b, "  %-24s %s\n", "vN", "a version label, shown by GET /info")
	return b.String()
}

// WantsHelp reports whether args request the help text.
func WantsHelp(args []string) bool {
	return len(args) > 1 && slices.ContainsFunc(args[1:], func(a string) bool {
		return a == "-h" || a == "-help" || a == "--help"
	})
}
