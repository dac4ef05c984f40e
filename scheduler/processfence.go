package scheduler

import (
	"context"
	"crypto/rand"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/septemberai/orch/cluster"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/jobs"
)

const (
	// endAfter is how long the fence lets a process end by itself after SIGTERM, and
	// endLimit how long it tries in total.
	endAfter = 20 * time.Second
	endLimit = 75 * time.Second
	// endTimeout limits the wait for the fence, which must also be placed and started.
	endTimeout = 90 * time.Second
	// longestQuiet limits how long no process must be seen before the fence succeeds.
	longestQuiet = 45 * time.Second
)

// endScript ends the processes of the jobs and allocations (JOB/ALLOCATION) in
// $ORCH_FENCE_JOBS, and succeeds when none was seen for $ORCH_FENCE_QUIET seconds. It finds
// a process by NOMAD_JOB_ID and NOMAD_ALLOC_ID in its environment. One grep reads all
// environments, which is cheap enough for a busy machine; it must also find the script
// itself, which shows each time that it works. The script must not contain "${", because
// Nomad interpolates it.
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

// restartQuiet returns how long no process of a job must be seen if Nomad's agent may not
// have caught up with its servers yet, and may restart an ended process.
func (s *Scheduler) restartQuiet() (time.Duration, error) {
	template, err := s.jobFile()
	if err != nil {
		return 0, err
	}
	// Nomad waits up to a quarter longer than the delay in the job.
	return min(template.RestartDelay()*5/4+2*time.Second, longestQuiet), nil
}

// endProcesses ends the processes of jobs, or of single allocations (see endScript), on a
// node whose processes Nomad may not know, and returns when none was seen for the time
// quiet. errNoScripts: the node cannot run the script. STOP_UNCONFIRMED: processes are
// left, or the node did not run the job.
func (s *Scheduler) endProcesses(ctx context.Context, nodeID string, jobIDs []string, quiet time.Duration) error {
	node, err := s.runsScripts(ctx, nodeID)
	if err != nil {
		return err
	}
	if !node.Eligible {
		return &engine.Error{Code: engine.StopUnconfirmed, Message: "the node accepts no placements, so the service cannot check which processes it runs; nothing was changed: make the node eligible and retry"}
	}
	seconds := func(d time.Duration) string { return strconv.Itoa(int(d.Round(time.Second).Seconds())) }
	env := map[string]string{
		"ORCH_FENCE_JOBS": strings.Join(jobIDs, " "), "ORCH_FENCE_QUIET": seconds(quiet),
		"ORCH_FENCE_KILL": seconds(endAfter), "ORCH_FENCE_LIMIT": seconds(endLimit),
	}
	if s.opts.Job.Driver == jobs.Docker { // only root can read the environments of other users
		env["ORCH_FENCE_ROOT"] = "1"
	}
	name := "orch-fence-" + strings.ToLower(rand.Text()[:12])
	limited, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	err = s.cluster.RunBatch(limited, cluster.Batch{Name: name, NodeID: node.ID, NodePool: node.Pool, Script: endScript, Env: env})
	if perr := s.cluster.Purge(context.WithoutCancel(ctx), name); perr != nil {
		s.log.Warn("cannot remove a finished job of the service from Nomad", "job", name, "error", perr)
	}
	switch {
	case errors.Is(err, cluster.ErrBatchFailed):
		return &engine.Error{Code: engine.StopUnconfirmed, Message: "the node still runs processes of these engines, or cannot report them; nothing was changed", Err: err}
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		return &engine.Error{Code: engine.StopUnconfirmed, Message: "the node did not confirm in time that all processes of these engines have ended; nothing was changed: restart its Nomad agent and retry", Err: err}
	}
	return err
}
