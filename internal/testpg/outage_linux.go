package testpg

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Halt ends the server as in an outage: it disconnects its clients.
func (s *Server) Halt() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(syscall.SIGQUIT)
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// Pause stops the server and all its workers with SIGSTOP, as if the machine hung. Resume
// continues them.
func (s *Server) Pause() error { return s.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	if s.cmd == nil {
		return errors.New("PostgreSQL is not running")
	}
	err := s.cmd.Process.Signal(sig)
	// The server is signalled first, so that it starts no worker meanwhile.
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", s.cmd.Process.Pid))
	for field := range strings.FieldsSeq(string(children)) {
		pid, perr := strconv.Atoi(field)
		if perr == nil {
			perr = syscall.Kill(pid, sig)
		}
		if !errors.Is(perr, syscall.ESRCH) {
			err = errors.Join(err, perr)
		}
	}
	return err
}
