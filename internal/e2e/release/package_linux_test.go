package release

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// state is what a purge must leave as it was: accounts, units, and all files outside of
// directories for logs, caches and processes.
// The user stays.
const state = `grep -hv ^orch: /etc/passwd /etc/group /etc/shadow /etc/gshadow
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp -o -path /var/log -o -path /var/cache -o -path /var/lib/dpkg \
	-o -path /var/lib/apt -o -path /var/lib/systemd -o -path /root \) -prune -o ! -name '*-' ! -name .pwd.lock -printf '%p %M %u %g\n' | sort`

// TestRelease builds two versions, and tests what they have.
func TestRelease(t *testing.T) {
	need(t, "debootstrap", "systemd-nspawn", "nsenter", "dpkg-deb", "rpm", "skopeo", "sha256sum")
	t.Parallel()
	dir := t.TempDir()
	for _, version := range []string{"v1.0.0", "v1.1.0"} {
		build(t, repository(t), filepath.Join(dir, version), []string{"-dirty", "-version", version})
	}
	out := filepath.Join(dir, "v1.0.0")
	t.Run("Sums", func(t *testing.T) {
		output(t, "env", "-C", out, "sha256sum", "--check", "--strict", "SHA256SUMS")
		if _, err := os.Stat(filepath.Join(out, "SHA256SUMS.minisig")); !os.IsNotExist(err) {
			t.Errorf("a signature without a key: %v", err)
		}
	})
	t.Run("RPM", func(t *testing.T) {
		rpm, deb := one(t, out, "*.rpm"), one(t, out, "*.deb")
		output(t, "rpm", "-K", "--nosignature", rpm)
		// The packages have the same files, with the same owners and modes.
		list := func(command string) string {
			return output(t, "bash", "-o", "pipefail", "-c", command+" | sort", rpm, deb)
		}
		fromRPM := list(`rpm -qp --qf '[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES}\n]' "$0"`)
		fromDeb := list(`dpkg-deb -c "$1" | awk '$1 !~ /^d/ || $6 ~ /etc.orch/ {sub(/^\./, "", $6); sub(/\/$/, "", $6); print $1, $2, $6}'`)
		if fromRPM != fromDeb {
			t.Errorf("rpm and deb differ:\n%s", changed(fromRPM, fromDeb))
		}
	})
	t.Run("Images", func(t *testing.T) { testImages(t, out) })
	t.Run("Debian", func(t *testing.T) { testPackage(t, one(t, out, "*.deb"), one(t, dir, "v1.1.0", "*.deb")) })
}

// testPackage installs, configures, updates, removes and purges the package on a bare Debian
// whose systemd runs. The service runs as its unit says, on real agents.
func testPackage(t *testing.T, first, second string) {
	// A copy, because the test changes it.
	root := filepath.Join(t.TempDir(), "debian")
	output(t, "cp", "-a", harness.Debian(t, "debian-bookworm"), root)
	if err := os.MkdirAll(filepath.Join(root, "srv"), 0o755); err != nil {
		t.Fatal(err)
	}
	output(t, "cp", first, filepath.Join(root, "srv/first.deb"))
	output(t, "cp", second, filepath.Join(root, "srv/second.deb"))
	m := harness.BootMachine(t, root)
	before := m.Run(t, state)

	t.Run("Install", func(t *testing.T) {
		m.Run(t, "apt-get install -y --no-install-recommends /srv/first.deb")
		if version := m.Run(t, "orch version"); !strings.HasPrefix(version, "orch v1.0.0") {
			t.Errorf("orch version: %s", version)
		}
		m.Want(t, "systemd-analyze verify /usr/lib/systemd/system/orch.service", "")
		m.Want(t, "getent passwd orch | cut -d: -f6-", "/var/lib/orch:/usr/sbin/nologin")
		m.Want(t, "stat -c '%A %U:%G %n' /etc/orch /etc/orch/orch.env /usr/bin/orch /usr/bin/orch-brain /usr/lib/orch/orch-quota /usr/lib/systemd/system/orch.service /usr/share/orch/vault/orch.policy.hcl",
			`drwxr-x--- root:orch /etc/orch
-rw-r----- root:orch /etc/orch/orch.env
-rwxr-xr-x root:root /usr/bin/orch
-rwxr-xr-x root:root /usr/bin/orch-brain
-rwxr-xr-x root:root /usr/lib/orch/orch-quota
-rw-r--r-- root:root /usr/lib/systemd/system/orch.service
-rw-r--r-- root:root /usr/share/orch/vault/orch.policy.hcl`)
		// Nothing runs, and a start without the admin key fails at once.
		m.Want(t, "systemctl is-enabled orch", "disabled")
		m.Want(t, "systemctl is-active orch", "inactive")
		if printed, err := m.Try("systemctl start orch"); err == nil || !strings.Contains(printed, "ssertion") {
			t.Errorf("start without settings: %v\n%s", err, printed)
		}
	})
	if t.Failed() {
		return
	}

	admin := configure(t, m)
	var user *client.Client
	t.Run("Run", func(t *testing.T) {
		m.Run(t, "systemctl enable --now orch || { journalctl -o cat -u orch; exit 1; }")
		ready(t, m, admin)
		m.Want(t, `stat -c %U "/proc/$(systemctl show -p MainPID --value orch)"`, "orch")
		m.Want(t, `tr '\0' '\n' </proc/"$(systemctl show -p MainPID --value orch)"/status | awk '/^(CapEff|NoNewPrivs|Seccomp):/ {print $2}'`, "0000000000000000\n1\n2")
		m.Want(t, "stat -c '%a %U:%G' /var/lib/orch /var/lib/orch/snapshots /var/lib/orch/audit.db", "700 orch:orch\n700 orch:orch\n600 orch:orch")
		product, err := admin.RegisterProduct(t.Context(), "packaged", "Packaged", nil)
		if err != nil {
			t.Fatal(err)
		}
		user = &client.Client{BaseURL: admin.BaseURL, PlatformKey: product.PlatformAPIKey}
		if _, err := user.Provision(t.Context(), "alice", ""); err != nil {
			t.Fatal(err)
		}
	})
	if t.Failed() {
		return
	}

	t.Run("Update", func(t *testing.T) {
		settings, pid := m.Run(t, "cat /etc/orch/orch.env"), m.Run(t, "systemctl show -p MainPID --value orch")
		m.Run(t, "apt-get install -y --no-install-recommends /srv/second.deb")
		m.Want(t, "cat /etc/orch/orch.env", settings)
		m.Want(t, "stat -c '%A %U:%G' /etc/orch/orch.env", "-rw-r----- root:orch")
		if now := m.Run(t, "systemctl show -p MainPID --value orch"); now == pid || now == "0" {
			t.Errorf("the process was %s and is %s", pid, now)
		}
		if version := m.Run(t, `"/proc/$(systemctl show -p MainPID --value orch)/exe" version`); !strings.HasPrefix(version, "orch v1.1.0") {
			t.Errorf("runs %s", version)
		}
		ready(t, m, admin)
		if a, err := user.Admit(t.Context(), "alice", client.AdmitOptions{}); err != nil || !a.Admitted {
			t.Errorf("admit after the update: %+v, %v", a, err)
		}
		if _, err := user.Destroy(t.Context(), "alice"); err != nil {
			t.Error(err)
		}
		// What does not run is not started.
		m.Run(t, "systemctl stop orch && apt-get install -y --allow-downgrades --no-install-recommends /srv/first.deb")
		m.Want(t, "systemctl is-active orch", "inactive")
		m.Want(t, "systemctl is-enabled orch", "enabled")
	})

	t.Run("Remove", func(t *testing.T) {
		m.Run(t, "systemctl start orch && apt-get remove -y orch")
		m.Want(t, "ls -l /proc/*/exe 2>/dev/null | grep -c /usr/bin/orch", "0")
		m.Want(t, "ls /usr/bin/orch /etc/systemd/system/multi-user.target.wants/orch.service 2>/dev/null", "")
		m.Want(t, "ls /etc/orch/orch.env /var/lib/orch/audit.db", "/etc/orch/orch.env\n/var/lib/orch/audit.db")
	})
	t.Run("Purge", func(t *testing.T) {
		// Snapshots are users' data: a purge removes only an empty directory for them.
		m.Run(t, "touch /var/lib/orch/snapshots/one && apt-get purge -y orch")
		m.Want(t, "ls -d /etc/orch /var/lib/orch/* 2>/dev/null", "/var/lib/orch/snapshots")
		m.Run(t, "apt-get install -y --no-install-recommends /srv/first.deb && rm /var/lib/orch/snapshots/one && apt-get purge -y orch")
		if after := m.Run(t, state); after != before {
			t.Errorf("left or changed:\n%s", changed(before, after))
		}
		m.Want(t, "getent passwd orch | cut -d: -f6", "/var/lib/orch")
	})
}

// configure writes the settings of a service for the agents of the tests, as an operator does,
// and returns its admin.
func configure(t *testing.T, m *harness.Machine) *client.Client {
	t.Helper()
	prefix, addr := "packaged/", harness.FreeAddr(t)
	access, mount := harness.Deploy(t, harness.Shared, prefix)
	env := append(access.Environ(),
		"ORCH_ADDR="+addr, "ORCH_OPS_ADDR=127.0.0.1:0", "ORCH_DRAIN_DELAY_S=0", "ORCH_CONSUL_PREFIX="+prefix, "ORCH_VAULT_MOUNT="+mount,
		"ORCH_NOMAD_NAMESPACE="+harness.Shared.Namespace, fmt.Sprintf("ORCH_ALLOW_OPEN_NOMAD=%t", access.Open()),
		"ORCH_ENGINE_DRIVER=raw_exec", "ORCH_ENGINE_IMAGE=reference-engine", "ORCH_ENGINE_BIN_DIR="+harness.BinDir, "ORCH_ENGINE_LOGS=driver",
		"ORCH_ENGINE_CPU_MHZ=10", "ORCH_ENGINE_MEMORY_MB=32")
	var file strings.Builder
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasSuffix(name, "_TOKEN"):
			path := "/etc/orch/" + strings.ToLower(name)
			m.Write(t, path, value, "root:orch", 0o640)
			name, value = name+"_FILE", path
		case filepath.IsAbs(value) && name != "ORCH_ENGINE_BIN_DIR":
			text, err := os.ReadFile(value)
			if err != nil {
				t.Fatal(err)
			}
			path := "/etc/orch/" + strings.ToLower(name)
			m.Write(t, path, string(text), "root:orch", 0o640)
			value = path
		}
		fmt.Fprintf(&file, "%s=%s\n", name, value)
	}
	m.Write(t, "/etc/orch/orch.env", file.String(), "root:orch", 0o640)
	m.Write(t, "/etc/orch/admin-key", harness.AdminKey+"\n", "root:root", 0o600)
	return &client.Client{BaseURL: "http://" + addr, AdminKey: harness.AdminKey, HTTP: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
}

func ready(t *testing.T, m *harness.Machine, c *client.Client) {
	t.Helper()
	harness.Eventually(t, "the service is ready", func() error {
		if state, err := m.Try("systemctl is-active orch"); err != nil {
			log, _ := m.Try("journalctl -q -o cat -n 20 -u orch")
			return fmt.Errorf("it is %s: %s", state, log)
		}
		return c.Ready(t.Context())
	})
}

// changed returns the lines that only one of two texts has.
func changed(before, after string) string {
	cmd := exec.Command("bash", "-c", `diff <(printf '%s\n' "$0") <(printf '%s\n' "$1")`, before, after)
	printed, _ := cmd.CombinedOutput()
	return string(printed)
}
