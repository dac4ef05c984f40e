package cmdline

import (
	"bytes"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an environment without a terminal.
type world struct {
	Env
	out, err bytes.Buffer
}

func newWorld(input string) *world {
	w := &world{}
	w.Env = Env{In: strings.NewReader(input), Out: &w.out, Err: &w.err, Getenv: func(string) string { return "" }}
	return w
}
