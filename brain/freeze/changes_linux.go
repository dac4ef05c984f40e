package freeze

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain/tree"
)

// changes counts the files and directories that somebody changed since a time: the kernel sets
// the time of the last change (st_ctime), and no program can set it back. A change in the first
// tick of the kernel's clock (1 to 10 ms) is not seen, and neither is one through a mapping of
// a page that was written before.
func changes(ctx context.Context, dir string, since time.Time) (int64, error) {
	c := changed{since: since.UnixNano(), until: time.Now().UnixNano()}
	err := tree.Walk(ctx, dir, &c)
	return c.n, err
}

type changed struct {
	since, until int64 // ns
	n            int64
}

func (c *changed) look(s *unix.Stat_t) {
	// One that is later is from before the clock was set back.
	if at := s.Ctim.Nano(); at > c.since && at <= c.until {
		c.n++
	}
}

func (c *changed) Enter(e *tree.Entry, _ *os.File) error {
	c.look(&e.Stat)
	return nil
}

func (c *changed) Leave(*tree.Entry, *os.File) error { return nil }

func (c *changed) Other(e *tree.Entry) error {
	c.look(&e.Stat)
	return nil
}

func (c *changed) Skip(string) {}

// Gone implements tree.Forgiving.
func (c *changed) Gone(string) { c.n++ }
