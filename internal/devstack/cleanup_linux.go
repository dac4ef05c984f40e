package devstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dockerTimeout limits the removal of all containers of a stack. A busy docker daemon needs
// seconds for each.
const dockerTimeout = time.Minute

// cleanUp removes everything of a stack outside its directory: processes, containers,
// mounts, cgroups, databases in memory. It can be repeated, also by a process that did not start the stack, and
// does not need a running agent.
func cleanUp(id identity) error {
	var errs []error
	errs = append(errs, killProcesses(id))
	if id.DockerSocket != "" {
		errs = append(errs, removeContainers(id))
	}
	errs = append(errs, unmountUnder(id.Dir), removeCgroups(id), removeMemory(id))
	return errors.Join(errs...)
}

// mountsUnder lists the mount points below dir, innermost first.
func mountsUnder(dir string) []string {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		real = dir
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var mounts []string
	for line := range strings.Lines(string(text)) {
		field := strings.Fields(line)
		if len(field) < 5 {
			continue
		}
		if point := unescapeMount(field[4]); strings.HasPrefix(point, real+"/") {
			mounts = append(mounts, point)
		}
	}
	slices.Reverse(mounts) // the kernel lists them in the order in which they were mounted
	return mounts
}

// unescapeMount decodes the escapes \ooo of blanks and backslashes (proc(5)).
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// unmountUnder unmounts what a killed Nomad client left below dir: the tmpfs "secrets" and
// "private" of its allocations, and bind mounts of volumes. It detaches them lazily, so that
// open files do not delay it.
func unmountUnder(dir string) error {
	var errs []error
	for _, point := range mountsUnder(dir) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// removeContainers removes only the docker containers of this stack's allocations: those
// whose label names an allocation with a directory below the stack's, or that mount
// something from there.
func removeContainers(id identity) error {
	ctx, cancel := context.WithTimeout(context.Background(), dockerTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(id.DockerSocket, "unix://"))
		},
	}}
	const label = "com.hashicorp.nomad.alloc_id" // set by Nomad's docker driver on every container
	filters := url.QueryEscape(`{"label":["` + label + `"]}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/containers/json?all=1&filters="+filters, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			return nil // docker itself does not run any more, so neither do its containers
		}
		return fmt.Errorf("listing the stack's containers: %w", err)
	}
	defer resp.Body.Close()
	var containers []struct {
		ID     string `json:"Id"`
		Labels map[string]string
		Mounts []struct{ Source string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&containers); err != nil {
		return fmt.Errorf("listing the stack's containers: %w", err)
	}
	allocs := allocationIDs(id.Dir)
	var errs []error
	for _, c := range containers {
		ours := allocs[c.Labels[label]]
		for _, m := range c.Mounts {
			ours = ours || strings.HasPrefix(m.Source, id.Dir+"/")
		}
		if !ours {
			continue
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodDelete, "http://docker/containers/"+c.ID+"?force=1&v=1", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			errs = append(errs, fmt.Errorf("removing container %.12s: %w", c.ID, err))
			continue
		}
		_ = resp.Body.Close()
		// 404 and 409: it was removed, or another process is removing it.
		if resp.StatusCode >= 300 && resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusConflict {
			errs = append(errs, fmt.Errorf("removing container %.12s: docker responded %s", c.ID, resp.Status))
		}
	}
	return errors.Join(errs...)
}

// allocationIDs returns the ids of the allocations of all nodes that have a directory below
// dir.
func allocationIDs(dir string) map[string]bool {
	ids := map[string]bool{}
	paths, _ := filepath.Glob(filepath.Join(dir, "*", "alloc", "*-*-*-*-*"))
	for _, path := range paths {
		ids[filepath.Base(path)] = true
	}
	return ids
}
