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
	"github.com/septemberai/orch/engine"
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

// endScript ends the processes of the jobs and allocations (JOB/ALLOCATION) that
// $ORCH_FENCE_JOBS names, and succeeds when none was seen for $ORCH_FENCE_QUIET
// seconds. A process is found by NOMAD_JOB_ID and NOMAD_ALLOC_ID in its environment. One
// grep reads them all, which is cheap enough for a busy machine; that it finds the
// script itself shows each time that it works. No "${" may be written here: Nomad
// interpolates it.
const endScript = `
cd /proc || exit 2
[ -z "$ORCH_FENCE_ROOT" ] || [ "$(id -u)" = 0 ] || exit 3
jobs=" $ORCH_FENCE_JOBS "
names="$NOMAD_TASK_DIR/names"
echo "$ORCH_FENCE_JOBS $NOMAD_JOB_ID" | tr ' ' '\n' | sed 's:/.*::; s/^/NOMAD_JOB_ID=/' >"$names" || exit 2
told=" "
began=$(date +%s)
quiet=$began
while :; do
  now=$(date +%s)
  found=
  self=
  for p in $(grep -lsF -f "$names" [0-9]*/environ | sed 's:/.*::'); do
    [ "$p" != $$ ] || { self=1; continue; }
    job=$({ tr '\000' '\n' <"$p/environ" | sed -n 's/^NOMAD_JOB_ID=//p'; } 2>/dev/null)
    alloc=$({ tr '\000' '\n' <"$p/environ" | sed -n 's/^NOMAD_ALLOC_ID=//p'; } 2>/dev/null)
    [ -n "$job" ] || continue
    case "$jobs" in *" $job "* | *" $job/$alloc "*) ;; *) continue ;; esac
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
  [ -n "$self" ] || exit 2
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

// restartQuiet is how long no process of a job may be seen where Nomad's agent may not
// have caught up with its servers yet, and start an ended process anew.
func (s *Scheduler) restartQuiet() (time.Duration, error) {
	template := s.template.Load()
	if template == nil {
		return 0, fmt.Errorf("%w: the engine's job file is not parsed yet", cluster.ErrUnavailable)
	}
	// Nomad waits up to a quarter longer than the job says.
	return min(template.RestartDelay()*5/4+2*time.Second, longestQuiet), nil
}

// endProcesses ends the processes of jobs, or of allocations of them (see endScript),
// on a node that Nomad may know nothing of, and returns when none was seen for as long
// as quiet. errNoScripts: it cannot be done there. STOP_UNCONFIRMED: some are left, or
// the node did not run the job.
func (s *Scheduler) endProcesses(ctx context.Context, nodeID string, jobIDs []string, quiet time.Duration) error {
	node, err := s.runsScripts(ctx, nodeID)
	if err != nil {
		return err
	}
	if !node.Eligible {
		return &engine.Error{Code: engine.StopUnconfirmed, Message: "the node takes no placements, so it cannot be asked which processes it runs: make it eligible and try again; nothing was changed"}
	}
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
		return &engine.Error{Code: engine.StopUnconfirmed, Message: "the node still runs processes of these engines, or cannot tell; nothing was changed", Err: err}
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return &engine.Error{Code: engine.StopUnconfirmed, Message: "the node did not confirm in time that no process of these engines is left; restart its Nomad agent and try again: nothing was changed", Err: err}
	}
	return err
}
