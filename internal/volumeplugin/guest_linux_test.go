package volumeplugin

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Many kernels have no project quotas. These tests run in one that has them: in User-mode
// Linux, a kernel that is an ordinary process (Debian's package), whose init is this test's
// executable.

const (
	linux = "/usr/bin/linux.uml"
	// done is what a guest prints when its tests have passed.
	done = "the guest's tests have passed"
)

// inGuest reports that this process is the init of a guest.
var inGuest = os.Getpid() == 1 && os.Getenv("ORCH_GUEST") != ""

func TestMain(m *testing.M) {
	if what := os.Getenv("ORCH_ENGINE"); what != "" {
		beEngine(what)
		os.Exit(0)
	}
	if !inGuest {
		os.Exit(m.Run())
	}
	if err := prepareGuest(); err != nil {
		fmt.Println("guest:", err)
	} else if m.Run() == 0 {
		fmt.Println(done)
	}
	syscall.Sync()
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

// filesystems are those of a guest, in the order of its disks, with the mount option that
// enables project quotas.
var filesystems = []struct{ name, kind, options string }{
	{"ext4", "ext4", "prjquota"},
	{"xfs", "xfs", "prjquota"},
	{"ext4-unmounted", "ext4", ""}, // it counts but does not enforce
	{"xfs-unmounted", "xfs", ""},
}

func prepareGuest() error {
	for _, module := range []string{"quota_tree.ko", "quota_v2.ko"} {
		text, err := os.ReadFile("/" + module)
		if err != nil {
			return err
		}
		if err := unix.InitModule(text, ""); err != nil {
			return fmt.Errorf("%s: %w", module, err)
		}
	}
	if err := unix.Mount("tmpfs", "/tmp", "tmpfs", 0, ""); err != nil {
		return err
	}
	for i, f := range filesystems {
		if err := unix.Mount(fmt.Sprintf("/dev/ubd%c", 'a'+i), "/"+f.name, f.kind, 0, f.options); err != nil {
			return fmt.Errorf("cannot mount %s: %w", f.name, err)
		}
	}
	return nil
}

// guestTests run on each filesystem that enforces project quotas.
var guestTests = map[string]func(t *testing.T, volumes string){
	"Limit": limits, "Usage": usage, "CreateAgain": createAgain, "VolumeOfMkdir": volumeOfMkdir, "Projects": projects,
}

func need(t *testing.T, program, packages string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("no %s here: apt-get install -y %s", program, packages)
	}
	t.Skipf("no %s here: apt-get install -y %s", program, packages)
	return ""
}

// TestProjectQuotas boots a guest, and runs guestTests there.
func TestProjectQuotas(t *testing.T) {
	if inGuest {
		for name, test := range guestTests {
			t.Run(name, func(t *testing.T) { onEach(t, test) })
		}
		t.Run("NotEnforced", notEnforced)
		return
	}
	kernel := need(t, linux, "user-mode-linux")
	makers := map[string][]string{
		"ext4": {need(t, "/usr/sbin/mkfs.ext4", "e2fsprogs"), "-q", "-F", "-O", "quota,project"},
		"xfs":  {need(t, "/usr/sbin/mkfs.xfs", "xfsprogs"), "-q"},
	}
	root := t.TempDir()
	modules, _ := filepath.Glob("/usr/lib/uml/modules/*/kernel/fs/quota/quota_*.ko")
	for _, module := range modules {
		text, err := os.ReadFile(module)
		if err == nil {
			err = os.WriteFile(filepath.Join(root, filepath.Base(module)), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "test", "-c", "-o", filepath.Join(root, "init"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // the guest has no C library
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	arguments := []string{
		"mem=256M", "rootfstype=hostfs", "rootflags=" + root, "rw", "init=/init", "quiet", "con=null", "con0=null,fd:1", "ORCH_GUEST=1",
	}
	for _, dir := range []string{"dev", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i, f := range filesystems {
		disk := filepath.Join(t.TempDir(), "disk")
		err := errors.Join(os.Mkdir(filepath.Join(root, f.name), 0o755), os.WriteFile(disk, nil, 0o644), os.Truncate(disk, 320<<20))
		if err != nil {
			t.Fatal(err)
		}
		make := makers[f.kind]
		if out, err := exec.Command(make[0], append(make[1:len(make):len(make)], disk)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		arguments = append(arguments, fmt.Sprintf("ubd%c=%s", 'a'+i, disk))
	}
	// Arguments after "--" are for the init.
	arguments = append(arguments, "--", "-test.run=^TestProjectQuotas$", "-test.v")
	began := time.Now()
	guest := exec.CommandContext(t.Context(), kernel, arguments...)
	guest.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	guest.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	guest.WaitDelay = time.Second
	out, err := guest.CombinedOutput()
	t.Logf("the guest ran for %s:\n%s", time.Since(began).Round(time.Millisecond), out)
	if !strings.Contains(string(out), done) {
		t.Fatalf("the guest's tests failed: %v", err)
	}
}

// beEngine acts as an engine: "write FILE MiB" fills a file, "files DIR N" creates N files,
// "room DIR" reads the size of the filesystem. It prints "ok", "full" or another error.
func beEngine(what string) {
	args := strings.Fields(what)
	n := 0
	if len(args) > 2 {
		_, _ = fmt.Sscan(args[2], &n)
	}
	err := error(nil)
	switch args[0] {
	case "write":
		var f *os.File
		if f, err = os.Create(args[1]); err == nil {
			for chunk := make([]byte, 1<<20); n > 0 && err == nil; n-- {
				_, err = f.Write(chunk)
			}
			err = errors.Join(err, f.Sync())
		}
	case "files":
		for ; n > 0 && err == nil; n-- {
			err = os.WriteFile(filepath.Join(args[1], fmt.Sprint("f", n)), nil, 0o600)
		}
	case "room":
		var s unix.Statfs_t
		if err = unix.Statfs(args[1], &s); err == nil {
			fmt.Print(s.Blocks * uint64(s.Bsize) >> 20)
			return
		}
	}
	switch {
	case errors.Is(err, unix.EDQUOT), errors.Is(err, unix.ENOSPC): // ext4 returns the former, XFS the latter
		fmt.Print("full")
	case err != nil:
		fmt.Print(err)
	default:
		fmt.Print("ok")
	}
}

// engine runs such an action as the user of engines. On ext4, limits do not apply to root.
func engine(t *testing.T, what string, args ...any) string {
	t.Helper()
	c := exec.Command("/init")
	c.Env = []string{"ORCH_ENGINE=" + fmt.Sprintf(what, args...)}
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// onEach runs a test on each filesystem that enforces project quotas.
func onEach(t *testing.T, test func(t *testing.T, volumes string)) {
	for _, f := range filesystems[:2] {
		t.Run(f.name, func(t *testing.T) {
			volumes, err := os.MkdirTemp("/"+f.name, "volumes")
			if err == nil {
				err = os.Chmod(volumes, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			test(t, volumes)
		})
	}
}

func volumeID(n int) string { return fmt.Sprintf("00000000-0000-0000-0000-%012d", n) }

func mustCreate(t *testing.T, volumes string, n, mb int) string {
	t.Helper()
	a, code := call(t, "create", volumes, volumeID(n), fmt.Sprintf(`{"uid":"65532","gid":"65532","mode":"0700","quota_mb":"%d"}`, mb))
	if want := filepath.Join(volumes, volumeID(n)); code != 0 || a.Path != want || a.Bytes != int64(mb)<<20 {
		t.Fatalf("create of %d MiB: %d, %+v", mb, code, a)
	}
	return a.Path
}

func mustDelete(t *testing.T, volumes string, n int) {
	t.Helper()
	if a, code := call(t, "delete", volumes, volumeID(n), ""); code != 0 {
		t.Fatalf("delete: %d, %+v", code, a)
	}
}

func projectNumber(t *testing.T, path string) uint32 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var a attributes
	if err := ioctl(f, fsGetXattr, &a); err != nil {
		t.Fatal(err)
	}
	return a.project
}

func record(t *testing.T, dir string, project uint32) (q quota) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := quotactl(d, getQuota, project, unsafe.Pointer(&q)); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	return q
}

// awaitUnused waits until nothing is counted for a project, because XFS frees deleted files
// with a delay.
func awaitUnused(t *testing.T, dir string, project uint32) {
	t.Helper()
	for until := time.Now().Add(time.Minute); record(t, dir, project).isUsed > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("project %d: %+v", project, record(t, dir, project))
		}
	}
}

func wantSame[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// A volume can contain as much as its quota allows, another volume is not affected, and the
// engine can read its size.
func limits(t *testing.T, volumes string) {
	small, large := mustCreate(t, volumes, 1, 4), mustCreate(t, volumes, 2, 0)
	wantSame(t, "room", engine(t, "room %s", small), "4")
	wantSame(t, "3 of 4 MiB", engine(t, "write %s/a 3", small), "ok")
	wantSame(t, "3 more", engine(t, "write %s/b 3", small), "full")
	wantSame(t, "6 without a quota", engine(t, "write %s/a 6", large), "ok")
	if q := record(t, large, projectNumber(t, large)); q.bytes < 6<<20 {
		t.Errorf("%d bytes are counted without a quota, of 6 MiB", q.bytes)
	}
	wantSame(t, "too many files", engine(t, "files %s 2000", mustCreate(t, volumes, 3, 1)), "full")
}

// The usage of volumes can be read from their filesystem; one that is not a project is
// omitted.
func usage(t *testing.T, volumes string) {
	limited, free := mustCreate(t, volumes, 1, 4), mustCreate(t, volumes, 2, 0)
	wantSame(t, "2 of 4 MiB", engine(t, "write %s/a 2", limited), "ok")
	wantSame(t, "3 without a quota", engine(t, "write %s/a 3", free), "ok")
	if err := os.Mkdir(filepath.Join(volumes, volumeID(3)), 0o700); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := Usage(volumes, &out); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	wantSame(t, "usage", got, fmt.Sprintf("VOLUME MIB QUOTA FILES %s 2 4 2 %s 3 none 2", volumeID(1), volumeID(2)))
}

// Repeating the same create, as at each start of Nomad's client, changes nothing. Another
// quota, even one below the usage, replaces or removes the old one.
func createAgain(t *testing.T, volumes string) {
	dir := mustCreate(t, volumes, 1, 2)
	project := projectNumber(t, dir)
	wantSame(t, "3 of 2 MiB", engine(t, "write %s/a 3", dir), "full")
	mustCreate(t, volumes, 1, 2)
	wantSame(t, "3 of the same 2 MiB", engine(t, "write %s/a 3", dir), "full")
	mustCreate(t, volumes, 1, 8)
	wantSame(t, "3 of 8 MiB", engine(t, "write %s/a 3", dir), "ok")
	mustCreate(t, volumes, 1, 1)
	wantSame(t, "1 more than 3 of 1 MiB", engine(t, "write %s/b 1", dir), "full")
	mustCreate(t, volumes, 1, 0)
	wantSame(t, "12 without a quota", engine(t, "write %s/b 12", dir), "ok")
	wantSame(t, "the project", projectNumber(t, dir), project)
}

// A volume of mkdir that contains files gets a quota that counts them, even if that was
// interrupted once.
func volumeOfMkdir(t *testing.T, volumes string) {
	dir := filepath.Join(volumes, volumeID(1))
	err := errors.Join(os.MkdirAll(dir+"/sub/deep", 0o755), os.WriteFile(dir+"/sub/deep/file", make([]byte, 3<<20), 0o644), os.Symlink("/", dir+"/link"))
	if err == nil {
		err = errors.Join(os.Chown(dir, 65532, 65532), os.Chown(dir+"/sub", 65532, 65532))
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var a attributes
	if err := errors.Join(ioctl(d, fsGetXattr, &a), takeProject(d, &a)); err != nil { // and then it is interrupted
		t.Fatal(err)
	}
	mustCreate(t, volumes, 1, 4)
	for _, path := range []string{"", "/sub", "/sub/deep", "/sub/deep/file"} {
		wantSame(t, "project of "+path, projectNumber(t, dir+path), a.project)
	}
	wantSame(t, "2 more than 3 of 4 MiB", engine(t, "write %s/sub/b 2", dir), "full")
}

// Two volumes never share a project: a number that another program, or the directory above,
// uses is skipped.
func projects(t *testing.T, volumes string) {
	dir := mustCreate(t, volumes, 1, 1)
	first := projectNumber(t, dir)
	mustDelete(t, volumes, 1)
	wantSame(t, "the limit of a deleted volume", record(t, volumes, first).blocks, 0)
	awaitUnused(t, volumes, first)
	mustCreate(t, volumes, 1, 1)
	wantSame(t, "the project of the same id", projectNumber(t, dir), first)
	mustDelete(t, volumes, 1)
	mustDelete(t, volumes, 1)
	awaitUnused(t, volumes, first)

	other := filepath.Join(volumes, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := join(other, first); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, volumes, 1, 1)
	wantSame(t, "the project beside a taken one", projectNumber(t, dir), first+1)

	if err := limit(other, 3); err != nil { // of the operator
		t.Fatal(err)
	}
	inner := mustCreate(t, other, 2, 1)
	if projectNumber(t, inner) == first {
		t.Error("a volume has the project of the directory around it")
	}
	wantSame(t, "2 of 1 MiB", engine(t, "write %s/a 2", inner), "full")
	mustDelete(t, other, 2)
	wantSame(t, "the limit around a deleted volume", record(t, other, first).blocks, 3<<10)
}

// On filesystems that count but do not enforce quotas, quotas are refused.
func notEnforced(t *testing.T) {
	for _, f := range filesystems[2:] {
		t.Run(f.name, func(t *testing.T) { refuses(t, "/"+f.name) })
	}
	t.Run("tmpfs", func(t *testing.T) { refuses(t, "/tmp") })
}
