package scheduler

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/jobs"
)

const (
	// endAfter is how long the fence lets a process end by itself after SIGTERM, and
	// endLimit how long it tries altogether.
	endAfter = 20 * time.Second
	endLimit = 75 * time.Second
	// endTimeout bounds the wait for the fence: it also has to be placed and started.
	endTimeout = 90 * time.Second
	// longestQuiet bounds how long none may be seen before the fence believes that.
	longestQuiet = 45 * time.Second
)

// endScript ends the processes of the jobs named in $ORCH_FENCE_JOBS and succeeds when
// none was seen for $ORCH_FENCE_QUIET seconds: an agent that has not caught up with
// its servers yet starts an ended process anew. A process is found by the NOMAD_JOB_ID
// in its environment. No "${" may be written here: Nomad interpolates it.
const endScript = `
cd /proc || exit 2
[ -z "$ORCH_FENCE_ROOT" ] || [ "$(id -u)" = 0 ] || exit 3
jobs=" $ORCH_FENCE_JOBS "
told=" "
began=$(date +%s)
quiet=$began
while :; do
  now=$(date +%s)
  found=
  for p in [0-9]*; do
    id=$({ tr '\000' '\n' <"$p/environ" | sed -n 's/^NOMAD_JOB_ID=//p'; } 2>/dev/null)
    [ -n "$id" ] || continue
    case "$jobs" in *" $id "*) ;; *) continue ;; esac
    found=1
    if [ $((now - began)) -ge "$ORCH_FENCE_KILL" ]; then
      kill -KILL "$p" 2>/dev/null
      continue
    fi
    case "$told" in *" $p "*) continue ;; esac
    told="$told$p "
    kill -TERM "$p" 2>/dev/null
    kill -CONT "$p" 2>/dev/null
  done
  now=$(date +%s)
  if [ -n "$found" ]; then
    quiet=$now
  elif [ $((now - quiet)) -ge "$ORCH_FENCE_QUIET" ]; then
    exit 0
  fi
  [ $((now - began)) -lt "$ORCH_FENCE_LIMIT" ] || exit 1
  sleep 1
done
`

// endProcesses ends the processes of jobs on a node that Nomad may know nothing of,
// and returns when none is left. errNoScripts: it cannot be done there.
// STOP_UNCONFIRMED: some are left, or the node did not run the job.
func (s *Scheduler) endProcesses(ctx context.Context, nodeID string, jobIDs []string) error {
	node, err := s.runsScripts(ctx, nodeID)
	if err != nil {
		return err
	}
	template := s.template.Load()
	if template == nil {
		return fmt.Errorf("%w: the engine's job file is not parsed yet", cluster.ErrUnavailable)
	}
	// Nomad waits up to a quarter longer than the job says.
	quiet := min(template.RestartDelay()*5/4+2*time.Second, longestQuiet)
	seconds := func(d time.Duration) string { return strconv.Itoa(int(d.Round(time.Second).Seconds())) }
	env := map[string]string{
		"ORCH_FENCE_JOBS": strings.Join(jobIDs, " "), "ORCH_FENCE_QUIET": seconds(quiet),
		"ORCH_FENCE_KILL": seconds(endAfter), "ORCH_FENCE_LIMIT": seconds(endLimit),
	}
	if s.opts.Job.Driver == jobs.Docker { // other users' environments can be read by root alone
		env["ORCH_FENCE_ROOT"] = "1"
	}
	name := "orch-fence-" + strings.ToLower(rand.Text()[:12])
	limited, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	err = s.cluster.RunBatch(limited, cluster.Batch{Name: name, NodeID: node.ID, NodePool: node.Pool, Script: endScript, Env: env})
	if perr := s.cluster.Purge(context.WithoutCancel(ctx), name); perr != nil {
		s.log.Warn("a finished job of the service is left in Nomad", "job", name, "error", perr)
	}
	switch {
	case errors.Is(err, cluster.ErrBatchFailed):
		return &Error{Code: StopUnconfirmed, Message: "the node still runs processes of these engines, or cannot tell; nothing was changed", Err: err}
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return &Error{Code: StopUnconfirmed, Message: "the node did not confirm in time that no process of these engines is left; restart its Nomad agent and try again: nothing was changed", Err: err}
	}
	return err
}
