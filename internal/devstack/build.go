package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/sys/unix"
)

const (
	modulePath = "github.com/septemberai/orch"

	// The free space that a build needs. Measured with empty caches: about 9 GB for all
	// three tools, module cache and build cache together. If the module is already in the
	// module cache, only the build cache and the binary need space.
	coldBuildSpace = 6 << 30
	warmBuildSpace = 3 << 30

	// progressEvery is the interval at which a build reports progress.
	progressEvery = 15 * time.Second
	// errorLines is how many lines of the compiler's output an error contains.
	errorLines = 20
)

// build compiles the pinned version of t into the cache, and returns its path.
func (f *finder) build(ctx context.Context, t tool) (string, error) {
	remedy := f.remedy(t)
	goTool, err := exec.LookPath("go")
	if err != nil {
		return "", fmt.Errorf("%s is missing and cannot be built, there is no go on PATH: install Go, or %s", t.name, remedy)
	}
	root, err := checkoutRoot()
	if err != nil {
		return "", fmt.Errorf("%s is missing and cannot be built: %w: run this inside a checkout, or %s", t.name, err, remedy)
	}
	if err := f.checkSpace(ctx, goTool, t); err != nil {
		return "", err
	}
	target := filepath.Join(f.cache, t.buildName())
	// Each build has its own directory, because a build whose parent was killed continues to
	// write.
	tmpDir, err := os.MkdirTemp(f.cache, ".tmp-"+t.name+"-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmpDir)
	tmp := filepath.Join(tmpDir, t.name)

	// The linker strips the debug information, so the compiler need not generate it. That
	// saves a sixth of its time (nomad/structs: 10.7 s of CPU time, 9.3 s without).
	args := []string{"build", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", "-s -w", "-o", tmp}
	if t.tags != "" {
		args = append(args, "-tags", t.tags)
	}
	args = append(args, t.command)
	dir := filepath.Join(root, "tools", t.name)
	if slices.ContainsFunc(toolTable, func(one tool) bool { return one.name == t.name }) {
		stop := f.fetch(ctx, goTool, root)
		defer stop()
	}
	f.opts.Progress(fmt.Sprintf("%s: building %s from tools/%s, once: about %s on %d cores", t.name, t.version, t.name, t.expected(), runtime.NumCPU()))
	if out, err := f.runBuild(ctx, t, goTool, dir, args); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("building %s failed: %w\n%s\n(to reproduce it: cd tools/%s && go build %s; or %s)",
			t.name, err, lastLines(out, errorLines), t.name, t.command, remedy)
	}
	if err := os.Rename(tmp, target); err != nil {
		return "", fmt.Errorf("putting %s into the cache: %w", t.name, err)
	}
	return target, nil
}

// remedy says what gives this machine t without a build.
func (f *finder) remedy(t tool) string {
	if f.opts.Pinned {
		return fmt.Sprintf("put a build with tags %q as %s into the cache", t.tags, t.buildName())
	}
	return fmt.Sprintf("install %s %s or newer on PATH", t.name, t.minimum)
}

// modulePath is the path of the module that contains the command: on GitHub the first three
// parts.
func (t tool) modulePath() string {
	parts := strings.Split(t.command, "/")
	return strings.Join(parts[:min(3, len(parts))], "/")
}

// expected estimates how long a build takes on this machine with empty caches.
func (t tool) expected() time.Duration {
	return (t.cpu / time.Duration(runtime.NumCPU())).Round(30 * time.Second)
}

// fetch downloads the modules of the remaining tools while the first one is built, because
// each build waits for its modules. It ignores errors: the build retries the download, and
// reports why it fails. stop ends the downloads.
func (f *finder) fetch(ctx context.Context, goTool, root string) (stop func()) {
	if f.fetched {
		return func() {}
	}
	f.fetched = true
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	for _, t := range toolTable {
		if _, there := f.cached(t); there {
			continue
		}
		work.Go(func() {
			args := []string{"list", "-deps", "-f", "{{.Dir}}"}
			if t.tags != "" {
				args = append(args, "-tags", t.tags)
			}
			cmd := exec.CommandContext(ctx, goTool, append(args, t.command)...)
			cmd.Dir = filepath.Join(root, "tools", t.name)
			cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly")
			_ = cmd.Run()
		})
	}
	return func() { cancel(); work.Wait() }
}

// runBuild runs go and reports the elapsed time. It returns go's stderr.
func (f *finder) runBuild(ctx context.Context, t tool, goTool, dir string, args []string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, goTool, args...)
	cmd.Dir = dir
	// Compilers are short-lived, so less frequent garbage collection saves another sixth.
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly", "GOGC=400")
	cmd.Stderr = &stderr
	// The build has its own process group, because a cancellation must end the compilers, too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second

	began := time.Now()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				f.opts.Progress(fmt.Sprintf("%s: still building, %s of about %s", t.name, time.Since(began).Round(time.Second), t.expected()))
			}
		}
	})
	err := cmd.Run()
	close(done)
	wg.Wait()
	if err == nil {
		f.opts.Progress(fmt.Sprintf("%s: built in %s", t.name, time.Since(began).Round(time.Second)))
	}
	return stderr.String(), err
}

// checkSpace returns an error if the disk has too little free space for a build.
func (f *finder) checkSpace(ctx context.Context, goTool string, t tool) error {
	out, err := exec.CommandContext(ctx, goTool, "env", "GOMODCACHE", "GOCACHE").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	dirs := strings.Fields(string(out))
	if len(dirs) != 2 {
		return nil // a cache is "off", or has blanks in its path: skip the check
	}
	need := uint64(coldBuildSpace)
	if _, err := os.Stat(filepath.Join(dirs[0], t.modulePath()+"@v"+t.version)); err == nil {
		need = warmBuildSpace
	}
	for _, dir := range append(dirs, f.cache) {
		if free, ok := freeSpace(dir); ok && free < need {
			return fmt.Errorf("building %s needs about %d GB on the disk of %s, which has %.1f GB free: "+
				"free some space, point GOCACHE, GOMODCACHE and XDG_CACHE_HOME at a larger disk, or %s",
				t.name, need>>30, dir, float64(free)/(1<<30), f.remedy(t))
		}
	}
	return nil
}

// freeSpace returns the free bytes of the file system that contains dir, or will contain it.
func freeSpace(dir string) (uint64, bool) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return st.Bavail * uint64(st.Bsize), true
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			return 0, false
		}
		dir = parent
	}
}

// checkoutRoot walks up from the working directory to this module's go.mod.
func checkoutRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && modfile.ModulePath(text) == modulePath {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("this is not in a checkout of %s", modulePath)
		}
		dir = parent
	}
}

// lockFile waits for an exclusive lock on path. It calls waiting once if another process
// holds the lock. The kernel releases the lock when its holder dies.
func lockFile(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// lastLines returns the last n lines of text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
