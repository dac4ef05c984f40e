package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestContainerIsConfined: what the job file requests is so for the engine's process, as the
// kernel shows it. The image has no shell, so the test looks at the process from outside,
// and writes through /proc/PID/root, which is the process's own view of its file systems.
func TestContainerIsConfined(t *testing.T) {
	harness.NeedDocker(t)
	if os.Getuid() != 0 {
		t.Skip("only root can look into the container of another user")
	}
	t.Parallel()
	r := harness.StartService(t, harness.Shared, harness.Docker.With(map[string]string{"ORCH_ENGINE_MEMORY_MB": "64", "ORCH_VOLUME_POOL": "0"}))
	c := r.Product(t, nil)
	e, err := c.Provision(t.Context(), "u", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := harness.ErrOf(c.Destroy(context.WithoutCancel(t.Context()), "u")); err != nil {
			t.Error(err)
		}
	})
	found := harness.Inspect(t, e)
	p := process(found.State.Pid)
	root := p.path("root")

	for name, check := range map[string]func() error{
		"user": func() error {
			groups, err := p.line("status", "Groups:")
			if groups != "" && groups != "65532" { // which of both depends on docker's version
				err = fmt.Errorf("its groups are %q", groups)
			}
			return errors.Join(err, p.status("Uid", "65532 65532 65532 65532"), p.status("Gid", "65532 65532 65532 65532"))
		},
		"no capabilities": func() error {
			const none = "0000000000000000"
			return errors.Join(p.status("CapInh", none), p.status("CapPrm", none), p.status("CapEff", none), p.status("CapBnd", none), p.status("CapAmb", none))
		},
		"no new privileges": func() error { return p.status("NoNewPrivs", "1") },
		"system calls":      func() error { return p.status("Seccomp", "2") }, // docker's default filter
		"cpu": func() error {
			if found.HostConfig.CPUShares <= 0 {
				return errors.New("it has no share of the CPUs")
			}
			return nil
		},
		"read-only root": func() error {
			if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
				return fmt.Errorf("a write to /: %w, want EROFS", err)
			}
			return p.mounted("/", "", "ro")
		},
		"tmp": func() error {
			file := filepath.Join(root, "tmp", "full")
			defer func() { _ = os.Remove(file) }()
			if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
				return fmt.Errorf("a write to /tmp: %w", err)
			}
			if err := os.Truncate(file, 0); err != nil {
				return err
			}
			var fs syscall.Statfs_t
			if err := syscall.Statfs(filepath.Join(root, "tmp"), &fs); err != nil {
				return err
			}
			if size := int64(fs.Blocks) * fs.Bsize; size != 64<<20 {
				return fmt.Errorf("/tmp has %d bytes, want 64 MiB", size)
			}
			return p.mounted("/tmp", "tmpfs", "nosuid", "nodev", "noexec")
		},
		"writable": func() error {
			// Nomad's directories of the task, and the files that docker mounts over those
			// of the image, which belong to root.
			known := []string{"/data", "/alloc", "/local", "/secrets", "/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}
			mounts, err := p.mounts()
			for _, m := range mounts {
				disk := !slices.Contains([]string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}, m.kind)
				if disk && slices.Contains(m.options, "rw") && !slices.Contains(known, m.at) {
					err = errors.Join(err, fmt.Errorf("%s is writable", m.at))
				}
			}
			return errors.Join(err, p.mounted("/data", "", "rw"))
		},
		"processes": func() error {
			limit, err := p.cgroup("pids", "pids.max")
			if err == nil && limit != "256" {
				return fmt.Errorf("it may have %s processes, want 256", limit)
			}
			return err
		},
		"memory": func() error {
			file := "memory.limit_in_bytes"
			if p.unified() {
				file = "memory.max"
			}
			limit, err := p.cgroup("memory", file)
			if err == nil && limit != strconv.Itoa(64<<20) {
				return fmt.Errorf("it may have %s bytes of memory, want 64 MiB", limit)
			}
			return err
		},
		"open files":    func() error { return p.limit("Max open files", "16384 16384") },
		"no core dumps": func() error { return p.limit("Max core file size", "0 0") },
		"own namespaces": func() error {
			var errs []error
			for _, kind := range []string{"net", "pid", "mnt", "ipc", "uts"} {
				its, err := os.Readlink(p.path("ns", kind))
				ours, oerr := os.Readlink("/proc/self/ns/" + kind)
				if errs = append(errs, err, oerr); its == ours {
					errs = append(errs, fmt.Errorf("it shares the %s namespace of the node", kind))
				}
			}
			return errors.Join(errs...)
		},
		"no daemon": func() error {
			mounts, err := p.mounts()
			for _, m := range mounts {
				if strings.Contains(m.at, "docker.sock") {
					err = errors.Join(err, fmt.Errorf("%s is mounted", m.at))
				}
			}
			return err
		},
		"no key": func() error {
			env, err := os.ReadFile(p.path("environ"))
			if strings.Contains(string(env), e.APIKey) || slices.ContainsFunc(found.Config.Env, func(v string) bool { return strings.Contains(v, e.APIKey) }) {
				return errors.New("the engine's key is in its environment")
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// process is a process by its PID, as /proc of this machine shows it.
type process int

func (p process) path(of ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(int(p))}, of...)...)
}

// line returns the rest of the line of a file of the process that begins with a word.
func (p process) line(file, word string) (string, error) {
	text, err := os.ReadFile(p.path(file))
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, word); ok {
			return strings.Join(strings.Fields(rest), " "), nil
		}
	}
	return "", errors.Join(err, fmt.Errorf("%s has no line %q", file, word))
}

func (p process) status(field, want string) error {
	got, err := p.line("status", field+":")
	if err == nil && got != want {
		err = fmt.Errorf("%s is %q, want %q", field, got, want)
	}
	return err
}

// limit compares a soft and a hard limit.
func (p process) limit(name, want string) error {
	got, err := p.line("limits", name)
	if err == nil && !strings.HasPrefix(got+" ", want+" ") {
		err = fmt.Errorf("%s is %q, want %q", name, got, want)
	}
	return err
}

// unified reports whether the process is in cgroups of version 2.
func (p process) unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// cgroup reads a file of the process's cgroup of a controller.
func (p process) cgroup(controller, file string) (string, error) {
	text, err := os.ReadFile(p.path("cgroup"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(strings.TrimSpace(string(text))) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		dir := filepath.Join("/sys/fs/cgroup", controller, part[2])
		if p.unified() {
			dir = filepath.Join("/sys/fs/cgroup", part[2])
		} else if !slices.Contains(strings.Split(part[1], ","), controller) {
			continue
		}
		limit, err := os.ReadFile(filepath.Join(dir, file))
		return strings.TrimSpace(string(limit)), err
	}
	return "", fmt.Errorf("no cgroup of %s in %q", controller, text)
}

// mount is a line of mountinfo (proc(5)).
type mount struct {
	at, kind string
	options  []string
}

func (p process) mounts() (mounts []mount, err error) {
	text, err := os.ReadFile(p.path("mountinfo"))
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		mounts = append(mounts, mount{at: f[4], kind: strings.Fields(after)[0], options: strings.Split(f[5], ",")})
	}
	return mounts, err
}

// mounted returns an error unless a file system of a kind (empty: any) is mounted at a path
// with these options.
func (p process) mounted(at, kind string, options ...string) error {
	mounts, err := p.mounts()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if m.at != at {
			continue
		}
		for _, o := range options {
			if !slices.Contains(m.options, o) || kind != "" && m.kind != kind {
				return fmt.Errorf("%s is a %s with %v, want %s with %v", at, m.kind, m.options, kind, options)
			}
		}
		return nil
	}
	return fmt.Errorf("nothing is mounted at %s", at)
}
