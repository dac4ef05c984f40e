package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// fault makes one or two components unavailable for a while.
type fault struct {
	how     string // kill, pause, cut, part, crash, orphan, purge, strangers, reboot, restore, burst, failover or fill
	targets []string
	hold    time.Duration // until it is healed
	rest    time.Duration // until the next fault
}

func (f fault) String() string {
	return fmt.Sprintf("%s %s for %s", f.how, strings.Join(f.targets, " and "), f.hold.Round(100*time.Millisecond))
}

// Targets that are chosen when the fault begins.
const (
	leader    = "the leading replica"
	anyEngine = "an engine"
	consulKV  = "Consul"
)

// sessionTTL is how long a replica can be silent before it loses its session and its
// operations.
const sessionTTL = 10 * time.Second

// components can be killed, paused and disconnected. Replicas are listed more than once,
// because the suite is about them.
var (
	processes = []string{
		"orch-0", "orch-1", "orch-0", "orch-1", leader, leader,
		"consul-server-0", "consul-server-1", "consul-server-2", "nomad-server-0", "nomad-server-1", "nomad-server-2",
		"nomad-client-0", "nomad-client-1", "nomad-client-2", "consul-client-0", "consul-client-1", "consul-client-2",
		"consul-client-3", "consul-client-4", "vault", "postgres",
	}
	// burstStores are the stores that are paused during a burst (bursts).
	burstStores = []string{"consul-client-3", "nomad-server-1", "vault"}

	nodes = []string{"nomad-client-0", "nomad-client-1", "nomad-client-2"}
	hosts = []string{
		"orch-0", "orch-1", "orch-0", "orch-1",
		"consul-server-0", "consul-server-1", "consul-server-2", "nomad-server-0", "nomad-server-1", "nomad-server-2",
		"nomad-client-0", "nomad-client-1", "nomad-client-2", "vault", "postgres",
	}
)

// plan returns the faults of a run, in order. The same seed and time give the same plan,
// but its effects depend on the machine.
func plan(seed uint64, within time.Duration) []fault {
	rng := rand.New(rand.NewPCG(seed, 0))
	between := func(low, high time.Duration) time.Duration { return low + time.Duration(rng.Int64N(int64(high-low))) }
	rest := func() time.Duration { return between(time.Second, 4*time.Second) }
	// Every run has these faults, whatever its seed: they are measured, or test a fence.
	always := []fault{
		{"kill", []string{leader}, between(time.Second, 3*time.Second), rest()},
		{"pause", []string{leader}, sessionTTL + between(3*time.Second, 5*time.Second), rest()},
		// Consul is restored to a backup of this age.
		{"restore", []string{consulKV}, between(3*time.Second, 6*time.Second), rest()},
	}
	rng.Shuffle(len(always), func(i, j int) { always[i], always[j] = always[j], always[i] })
	var faults []fault
	left := within
	add := func(f fault) bool {
		if left -= f.hold + f.rest; left < 0 {
			return false
		}
		faults = append(faults, f)
		return true
	}
	for add(random(rng, between, rest, within)) {
		if len(faults)%2 == 1 && len(always) > 0 {
			if !add(always[0]) {
				break
			}
			always = always[1:]
		}
	}
	return append(faults, always...)
}

// repeated returns a plan that repeats one fault.
func repeated(what string, within time.Duration) ([]fault, error) {
	if what == "none" {
		return []fault{{how: "none", targets: []string{"nothing"}, hold: within}}, nil
	}
	f := fault{rest: 3 * time.Second}
	how, rest, _ := strings.Cut(what, " ")
	targets, hold, found := strings.Cut(rest, " for ")
	d, err := time.ParseDuration(hold)
	if !found || err != nil {
		return nil, fmt.Errorf("-chaos.only is %q, want for example \"pause consul-client-3 for 6s\"", what)
	}
	f.how, f.targets, f.hold = how, strings.Split(targets, " and "), d
	return slices.Repeat([]fault{f}, max(1, int(within/(f.hold+f.rest)))), nil
}

// long is the duration from which a run also has faults of half a minute.
const long = 3 * time.Minute

func random(rng *rand.Rand, between func(time.Duration, time.Duration) time.Duration, rest func() time.Duration, within time.Duration) fault {
	pick := func(from []string, n int) []string {
		var targets []string
		for len(targets) < n {
			if t := from[rng.IntN(len(from))]; !slices.Contains(targets, t) {
				targets = append(targets, t)
			}
		}
		return targets
	}
	n := 1
	if rng.IntN(4) == 0 {
		n = 2
	}
	f := fault{rest: rest()}
	switch d := rng.IntN(100); {
	case d < 28:
		f.how, f.targets, f.hold = "kill", pick(processes, n), between(500*time.Millisecond, 5*time.Second)
	case d < 44:
		f.how, f.targets, f.hold = "pause", pick(processes, n), between(time.Second, 6*time.Second)
	case d < 60:
		f.how, f.targets, f.hold = "cut", pick(hosts, n), between(time.Second, 8*time.Second)
	case d < 68:
		f.how, f.targets, f.hold = "part", pick(hosts, 2), between(2*time.Second, 8*time.Second)
	case d < 74:
		f.how, f.targets, f.hold = "crash", []string{anyEngine}, time.Millisecond
	case d < 78:
		f.how, f.targets, f.hold = "purge", []string{anyEngine}, time.Millisecond
	case d < 81:
		f.how, f.targets, f.hold = "orphan", []string{anyEngine}, time.Millisecond
	case d < 85:
		f.how, f.targets, f.hold = "strangers", pick(nodes, 1), between(3*time.Second, 8*time.Second)
	case d < 90:
		f.how, f.targets, f.hold = "burst", pick(burstStores, 1), between(7*time.Second, 12*time.Second)
	case d < 93:
		f.how, f.targets, f.hold = "failover", []string{"postgres"}, between(time.Second, 4*time.Second)
	case d < 95:
		f.how, f.targets, f.hold = "fill", []string{"postgres"}, between(2*time.Second, 5*time.Second)
	default:
		f.how, f.targets, f.hold = "reboot", pick(nodes, 1), between(time.Second, 5*time.Second)
	}
	if within >= long && f.hold > time.Second && rng.IntN(6) == 0 {
		f.hold += 20 * time.Second
	}
	return f
}
