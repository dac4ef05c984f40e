package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
	"github.com/septemberai/orch/internal/pause"
)

// passing returns the addresses of the instances of a service whose checks pass in Consul.
func passing(c *consul.Client, service string) (urls []string, err error) {
	list, _, err := c.Health().Service(service, "", true, nil)
	for _, s := range list {
		urls = append(urls, "http://"+s.Service.Address+":"+strconv.Itoa(s.Service.Port))
	}
	return urls, err
}

// checkRolled updates the running job from processes to containers of another version of the
// service, with a canary, under 200 admits per second and a stream of provisions. Callers find the replicas in
// Consul's catalog, and no call fails.
func checkRolled(t *testing.T, stack *devstack.Stack, n *nomad.Client, c *consul.Client, admin *client.Client) {
	harness.NeedDocker(t)
	ctx := t.Context()
	p, err := admin.RegisterProduct(ctx, "rolled", "Rolled", harness.PolicyOf(t, map[string]any{"rate_limit_rpm": 1000000}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&client.Client{BaseURL: admin.BaseURL, PlatformKey: p.PlatformAPIKey}).Provision(ctx, "u", ""); err != nil {
		t.Fatal(err)
	}
	wantVersion(t, c, func(version string) bool { return version != harness.NextVersion })
	next, err := harness.NextOrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	image := harness.ServiceImage(t, next)

	var known []string
	l := startLoad(t, p.PlatformAPIKey, 200, func(context.Context) []string {
		if urls, err := passing(c, orchJob); err == nil && len(urls) > 0 { // checks of a busy machine time out
			known = urls
		}
		return known
	})
	l.await(t, 200)
	streaming, stop := context.WithCancel(ctx)
	defer stop()
	provisioned := make(chan int, 1)
	l.working.Go(func() { provisioned <- l.provisions(streaming, t) })
	runByIdentity(t, stack, "-var=driver=docker", "-var=image="+image)
	in := &nomad.QueryOptions{Namespace: nomad.DefaultNamespace}
	harness.Eventually(t, "all replicas are of the next version", func() error {
		d, _, err := n.Jobs().LatestDeployment(orchJob, in)
		if err != nil || d == nil {
			return fmt.Errorf("%+v, %w", d, err)
		}
		job, _, err := n.Jobs().Info(orchJob, in)
		if err != nil || d.Status != nomad.DeploymentStatusSuccessful || d.JobVersion != *job.Version || *job.Version == 0 {
			return fmt.Errorf("its deployment of version %d is %s: %s, %w", d.JobVersion, d.Status, d.StatusDescription, err)
		}
		allocs, _, err := n.Jobs().Allocations(orchJob, true, in)
		for _, a := range allocs {
			if err == nil && a.ClientStatus == nomad.AllocClientStatusRunning && a.JobVersion != *job.Version {
				err = fmt.Errorf("%s of version %d runs", a.ID, a.JobVersion)
			}
		}
		return err
	})
	l.await(t, 400)
	stop()
	l.end(t)
	streamed := <-provisioned
	t.Logf("%d engines were provisioned and destroyed meanwhile", streamed)
	if streamed == 0 {
		t.Error("no provision was finished")
	}
	wantVersion(t, c, func(version string) bool { return version == harness.NextVersion })
	for _, a := range runningAllocs(t, n) {
		if events := a.TaskStates[orchJob]; events.Restarts > 0 || events.Failed {
			t.Errorf("%s was restarted %d times", a.ID, events.Restarts)
		}
	}
	if c, err := passing(c, orchJob); err != nil || len(c) != 2 {
		t.Errorf("%d replicas pass, %v", len(c), err)
	}
}

// storeAway matches the message of a call that failed because a store responded too late.
var storeAway = regexp.MustCompile(`\((?:Nomad|Consul|Vault|its database)\) cannot be reached`)

// provisions creates and destroys engines, one after another, until ctx ends. It repeats
// calls that failed because a store responded too late.
func (l *load) provisions(ctx context.Context, t *testing.T) (n int) {
	whole := context.WithoutCancel(ctx) // a call that was begun is finished
	for ctx.Err() == nil {
		user := fmt.Sprintf("stream-%d", n)
		for _, call := range []func(c *client.Client) error{
			func(c *client.Client) error {
				return harness.ErrOf(c.Provision(whole, user, "", client.IdempotencyKey(user)))
			},
			func(c *client.Client) error {
				return harness.ErrOf(c.Destroy(whole, user, client.IdempotencyKey(user+"-end")))
			},
		} {
			for began, again := time.Now(), true; again; {
				c, err := l.replica()
				if err == nil {
					err = call(c)
				}
				again = errors.Is(err, client.ErrBackendUnavailable) && storeAway.MatchString(err.Error()) && time.Since(began) < harness.Patience && pause.For(whole, time.Second)
				if err != nil && !again {
					t.Errorf("%s: %v", user, err)
					return n
				}
			}
		}
		n++
	}
	return n
}

// wantVersion checks the version of the service in the metrics of both replicas, which
// Consul lists for Prometheus.
func wantVersion(t *testing.T, c *consul.Client, right func(string) bool) {
	t.Helper()
	harness.Eventually(t, "Consul lists two listeners for operators, of the right version", func() error {
		urls, err := passing(c, orchJob+"-ops")
		if err != nil || len(urls) != 2 {
			return fmt.Errorf("%d pass, %w", len(urls), err)
		}
		for _, url := range urls {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/metrics", http.NoBody)
			if err != nil {
				return err
			}
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				return err
			}
			text, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			_, version, found := strings.Cut(string(text), `orch_build_info{`)
			version, _, _ = strings.Cut(version, "}")
			_, version, _ = strings.Cut(version, `version="`)
			version, _, _ = strings.Cut(version, `"`)
			if err != nil || !found || !right(version) {
				return fmt.Errorf("%s is of version %q, %w", url, version, err)
			}
		}
		return nil
	})
}

// runningAllocs returns the job's allocations that run.
func runningAllocs(t *testing.T, n *nomad.Client) (running []*nomad.AllocationListStub) {
	t.Helper()
	list, _, err := n.Jobs().Allocations(orchJob, true, &nomad.QueryOptions{Namespace: nomad.DefaultNamespace})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.ClientStatus == nomad.AllocClientStatusRunning {
			running = append(running, a)
		}
	}
	return running
}
