package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// readyPoll is the interval at which a condition is checked.
	readyPoll = 25 * time.Millisecond
	// logTail is how many lines of an agent's log an error contains.
	logTail = 12
)

// agent is one process of the stack. After it ended it can be restarted with the same
// arguments.
type agent struct {
	name Component
	bin  string
	args []string
	env  []string
	log  string                         // file that gets stdout and stderr
	on   func(start func() error) error // where to start it; nil: here

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for
	err  error         // valid after done
}

// agentEnv is the environment of the agents: only what any program needs to run. The tasks
// of raw_exec inherit it, and a VAULT_TOKEN, CONSUL_HTTP_ADDR, AWS_CA_BUNDLE or LLM_API_KEY
// of the developer's shell must not affect the agents or the engines.
func agentEnv() []string {
	keep := []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "GOMAXPROCS", "GOCOVERDIR"}
	var env []string
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); slices.Contains(keep, name) {
			env = append(env, entry)
		}
	}
	return env
}

// start starts the process; it does not wait until the agent is ready.
func (a *agent) start() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	logFile, err := os.OpenFile(a.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	defer logFile.Close()
	cmd := exec.Command(a.bin, a.args...)
	cmd.Env = a.env
	cmd.Dir = filepath.Dir(a.log)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// The agent has its own process group, so that Ctrl-C in the terminal reaches only the
	// parent, which then stops the agents in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	start := cmd.Start
	if a.on != nil {
		start = func() error { return a.on(cmd.Start) }
	}
	if err := start(); err != nil {
		return fmt.Errorf("starting %s: %w (the path comes from PATH, the tool cache or Config.Binaries)", a.name, err)
	}
	done := make(chan struct{})
	a.cmd, a.done, a.err = cmd, done, nil
	go func() { // ends with the process; stop and Kill wait for it
		err := cmd.Wait()
		a.mu.Lock()
		a.err = err
		a.mu.Unlock()
		close(done)
	}()
	return nil
}

// running returns the agent's process and a channel that is closed when the process ends;
// nil if it does not run.
func (a *agent) running() (*os.Process, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cmd == nil {
		return nil, nil
	}
	select {
	case <-a.done:
		return nil, nil
	default:
		return a.cmd.Process, a.done
	}
}

// stop sends SIGTERM to the agent, and SIGKILL after grace. It returns when the process has
// ended.
func (a *agent) stop(grace time.Duration) {
	p, done := a.running()
	if p == nil {
		return
	}
	_ = p.Signal(syscall.SIGTERM)
	_ = p.Signal(syscall.SIGCONT) // a paused agent does not handle SIGTERM
	select {
	case <-done:
		return
	case <-time.After(grace):
	}
	_ = p.Kill()
	<-done
}

// signal sends sig to the running agent. After SIGSTOP it waits until all its threads have
// stopped.
func (a *agent) signal(sig syscall.Signal) error {
	p, _ := a.running()
	if p == nil {
		return fmt.Errorf("%s is not running", a.name)
	}
	if err := p.Signal(sig); err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	if sig != syscall.SIGSTOP {
		return nil
	}
	for deadline := time.Now().Add(stopWithin); !stopped(p.Pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s did not stop within %s", a.name, stopWithin)
		}
	}
	return nil
}

// stopWithin limits the wait for the last thread of a paused agent.
const stopWithin = 5 * time.Second

// exited returns an error with the end of its log if the agent has ended, and nil while it
// runs.
func (a *agent) exited() error {
	if p, _ := a.running(); p != nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	reason := "exited"
	if a.err != nil {
		reason = a.err.Error()
	}
	return fmt.Errorf("%s ended (%s); the end of its log:\n%s", a.name, reason, a.tail())
}

// tail returns the end of the agent's log.
func (a *agent) tail() string {
	text, err := os.ReadFile(a.log)
	if err != nil || len(text) == 0 {
		return "(its log is empty)"
	}
	return lastLines(string(text), logTail)
}

// await polls cond until it returns nil. It gives up when ctx or the agent ends; the error
// then contains the last error of cond and the end of the log.
func (a *agent) await(ctx context.Context, what string, cond func(context.Context) error) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		err := cond(ctx)
		if err == nil {
			return nil
		}
		if gone := a.exited(); gone != nil {
			return gone
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
		return fmt.Errorf("%s: %s did not happen in time (%w); the end of its log:\n%s", a.name, what, err, a.tail())
	}
}
