// Package integrity checks the SQLite databases in a directory that was restored. It trusts
// none of them, and nothing beside them: each is checked by a process of its own, with
// limits, which gets only that database.
//
// The measures are those that SQLite recommends for files of strangers
// (https://www.sqlite.org/security.html), and those against files beside a database.
package integrity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/tree"
)

// FileEnv is the environment variable with the path of the database that a process is to
// check, and do nothing else (CheckFile).
const FileEnv = "ORCH_BRAIN_CHECK"

const (
	// within limits the time for all databases, and mostFiles their number; the rest counts as
	// not checked.
	within    = 10 * time.Minute
	mostFiles = 1000
	// maxAnswer limits what is read of a process that checks a file, in bytes.
	maxAnswer = 4 << 10
	// scratch is the directory for the database that is being checked.
	scratch = tree.Reserved + ".check"
)

// Found is what a check found.
type Found struct {
	// Databases is how many databases were checked; Unchecked, how many others there are.
	Databases, Unchecked int
	// Damaged is how many of Databases are damaged. First names one of them, and says how.
	Damaged int
	First   string
}

// Check checks all databases below dir, in which nothing else may be at work. It changes
// them: SQLite completes what a process that was killed had begun. self is this program's
// file. The error is one of ctx or of the file system, and says nothing about a database.
func Check(ctx context.Context, dir, self string) (Found, error) {
	c := &checker{ctx: ctx, self: self, at: filepath.Join(dir, scratch), until: time.Now().Add(within), seen: map[tree.File]bool{}}
	err := tree.Walk(ctx, dir, c)
	return c.Found, errors.Join(err, tree.Remove(c.at))
}

type checker struct {
	Found
	ctx      context.Context //nolint:containedctx // a visitor gets none
	self, at string
	until    time.Time
	seen     map[tree.File]bool // files with several names
}

// Enter implements [tree.Visitor].
func (c *checker) Enter(*tree.Entry, *os.File) error { return nil }

// Leave implements [tree.Visitor].
func (c *checker) Leave(*tree.Entry, *os.File) error { return nil }

// Skip implements [tree.Visitor].
func (c *checker) Skip(string) {}

// magic begins every database (https://www.sqlite.org/fileformat.html#magic_header_string).
var magic = []byte("SQLite format 3\x00")

// Other implements [tree.Visitor].
func (c *checker) Other(e *tree.Entry) error {
	if e.Kind() != unix.S_IFREG || e.Linked() && c.seen[e.File()] {
		return nil
	}
	if is, err := begins(e); !is || err != nil {
		return err
	}
	if e.Linked() {
		c.seen[e.File()] = true
	}
	if c.Databases+c.Unchecked >= mostFiles || time.Now().After(c.until) {
		c.Unchecked++
		return nil
	}
	a, err := c.file(e)
	switch {
	case c.ctx.Err() != nil:
		return c.ctx.Err()
	case err != nil || a.State == unchecked:
		c.Unchecked++
	default:
		c.Databases++
		if a.State == damaged {
			if c.Damaged++; c.First == "" {
				c.First = fmt.Sprintf("%q: %s", e.Path, a.Why)
			}
		}
	}
	return nil
}

// begins reports whether a file begins as a database does.
func begins(e *tree.Entry) (bool, error) {
	f, err := e.Open()
	if err != nil {
		return false, brain.Local(err, brain.Internal, "a restored file cannot be opened")
	}
	defer f.Close()
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(f, head); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, brain.Local(err, brain.Internal, "a restored file cannot be read")
	}
	return bytes.Equal(head, magic), nil
}

// file lets a process check one database. The process gets it under a name of our own, with
// the files beside it that belong to it, and can reach nothing else by their names.
func (c *checker) file(e *tree.Entry) (*answer, error) {
	if err := tree.Remove(c.at); err != nil {
		return nil, err
	}
	if err := os.Mkdir(c.at, 0o700); err != nil {
		return nil, err
	}
	for _, suffix := range []string{"", "-wal", "-journal"} {
		if err := c.take(e, suffix); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithDeadline(c.ctx, c.until)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.self) //nolint:gosec // it is this program
	cmd.Env = []string{FileEnv + "=" + filepath.Join(c.at, fileName), "GOMAXPROCS=1", "GOMEMLIMIT=48MiB"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if err != nil { // it crashed, or took too long: both are no statement about the content
		return nil, err
	}
	a := new(answer)
	if len(out) > maxAnswer {
		return nil, errors.New("the process that checks a database writes too much")
	}
	return a, json.Unmarshal(out, a)
}

const fileName = "db"

// errRefused means that a file beside a database may lead out of the directory.
var errRefused = errors.New("a file beside the database is refused")

// take links a database, or what is beside it, into the scratch directory.
func (c *checker) take(e *tree.Entry, suffix string) error {
	to := filepath.Join(c.at, fileName+suffix)
	dir, name := int(e.Parent.Fd()), e.Name+suffix
	var s unix.Stat_t
	err := unix.Fstatat(dir, name, &s, unix.AT_SYMLINK_NOFOLLOW)
	if suffix != "" && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG)) {
		return nil
	}
	if err == nil && s.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errRefused
	}
	if err == nil {
		err = unix.Linkat(dir, name, unix.AT_FDCWD, to, 0)
	}
	if err == nil {
		err = os.Chmod(to, 0o600) // SQLite completes what was begun
	}
	if err == nil && suffix == "-journal" && namesOthers(to) {
		err = errRefused
	}
	return err
}

// journalEnd ends a rollback journal that names a super-journal. SQLite would open the file
// of that name, and the databases that it names, and could delete it
// (https://www.sqlite.org/fileformat.html#the_rollback_journal).
var journalEnd = []byte{0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7}

// namesOthers reports whether a journal names a super-journal, or cannot be read.
func namesOthers(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return true
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil || size < int64(len(journalEnd)) {
		return err != nil
	}
	end := make([]byte, len(journalEnd))
	_, err = f.ReadAt(end, size-int64(len(end)))
	return err != nil || bytes.Equal(end, journalEnd)
}
