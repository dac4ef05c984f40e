package engine

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseSwitches(t *testing.T) {
	t.Parallel()
	base := func(change func(*Switches)) Switches {
		s := Switches{CrashAfter: -1, EatMemory: -1, FailHealth: -1, Busy: -1}
		change(&s)
		return s
	}
	tests := map[string]struct {
		args []string
		env  string
		want Switches
		err  string
	}{
		"OKNone":        {args: []string{"/bin/reference-engine"}, want: base(func(*Switches) {})},
		"OKDashInName":  {args: []string{"my-engine"}, want: base(func(*Switches) {})},
		"OKDotInFolder": {args: []string{"/a.b/reference-engine"}, want: base(func(*Switches) {})},
		"OKName": {args: []string{"/x/reference-engine.slow-boot-5s.ignore-sigterm"}, want: base(func(s *Switches) {
			s.SlowBoot, s.IgnoreTerm, s.Names = 5*time.Second, true, []string{"slow-boot-5s", "ignore-sigterm"}
		})},
		"OKForms": {args: []string{"e", "--slow-boot=1s", "-linger=2s", "term-delay-3s"}, want: base(func(s *Switches) {
			s.SlowBoot, s.Linger, s.TermDelay = time.Second, 2*time.Second, 3*time.Second
			s.Names = []string{"slow-boot=1s", "linger=2s", "term-delay-3s"}
		})},
		"OKLongerNameWins": {args: []string{"e", "fail-health-file"}, want: base(func(s *Switches) {
			s.FailFile, s.Names = true, []string{"fail-health-file"}
		})},
		"OKEnv": {args: []string{"e.v7"}, env: "busy, fail-health=10s", want: base(func(s *Switches) {
			s.Version, s.Busy, s.FailHealth, s.Names = "v7", forever, 10*time.Second, []string{"busy", "fail-health=10s"}
		})},
		"ErrUnknown":  {args: []string{"e.slow-bot"}, err: "unknown switch"},
		"ErrDuration": {args: []string{"e", "linger-x"}, err: "not a duration"},
		"ErrNegative": {args: []string{"e", "linger=-1s"}, err: "not a duration"},
		"ErrRequired": {args: []string{"e", "crash-after"}, err: "needs a duration"},
		"ErrNoArg":    {args: []string{"e", "hang-5s"}, err: "unknown switch"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseSwitches(tt.args, tt.env)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %v, want %q", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
	for _, d := range switchTable {
		if !strings.Contains(Help, d.name) {
			t.Errorf("-help does not name %s", d.name)
		}
	}
}
