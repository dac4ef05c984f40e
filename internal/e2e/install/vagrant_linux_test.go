package install

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// machine makes the namespaces look like the machine of the Vagrantfile: what provision.sh
// writes is not the machine of the test. /run is empty, so that no docker engine is found.
const machine = `set -euo pipefail
mount --make-rprivate / && mount -t proc proc /proc && ip link set lo up
cp -a /etc "$PWD/etc" && mount --bind "$PWD/etc" /etc
for dir in /run /var/lib /usr/local/bin /usr/local/sbin; do
	mount -t tmpfs tmpfs "$dir"
done
mkdir -p /etc/systemd/system
cp bin/orch systemctl agents/* /usr/local/bin/
trap 'cd /var/lib/nomad/alloc && mkdir -p $(printf "$LOGS/alloc/%s " *)' EXIT
`

// systemctl is as much of it as provision.sh needs.
const systemctl = `#!/bin/bash
set -eu
[ "$1" = restart ] || exit 0
unit=/etc/systemd/system/$2.service pid=/run/$2.pid
if [ -s "$pid" ]; then
	kill "$(cat "$pid")"
	tail -f /dev/null --pid="$(cat "$pid")"
fi
env -i PATH="$PATH" $(sed -n 's/^ExecStart=//p' "$unit") >>"$LOGS/$2.log" 2>&1 </dev/null &
echo $! >"$pid"
$(sed -n 's/^ExecStartPost=//p' "$unit")
`

// provisioned is what is then true: the agents refuse callers without a token, and orch has no
// token of its own.
const provisioned = `
. /etc/orch/env
orch status
orch product register lab
nomad acl token self
env -u NOMAD_TOKEN nomad node status && exit 1
env -u CONSUL_HTTP_TOKEN consul kv get orch/deployment && exit 1
env -u VAULT_TOKEN vault secrets list && exit 1
nomad var get -out=json nomad/jobs/orch | jq -e '.Items | keys == ["ORCH_ADMIN_KEY"]'
echo as it should be
`

// TestVagrant provisions the machine of the Vagrantfile twice, and starts the real agents and
// orch there. Only the installation of programs is left out, and with it docker: no engine can
// run.
func TestVagrant(t *testing.T) {
	need(t)
	t.Parallel()
	root, err := filepath.Abs(harness.Repository)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "deploy", "vagrant", "provision.sh"))
	if err != nil {
		t.Fatal(err)
	}
	provision := string(text)
	for _, part := range []struct{ is, here string }{{"\ninstall_programs\n", "\n"}, {".Drivers.docker.Healthy", ".Drivers.raw_exec.Healthy"}} {
		if strings.Count(provision, part.is) != 1 {
			t.Fatalf("provision.sh does not contain %q once", part.is)
		}
		provision = strings.Replace(provision, part.is, part.here, 1)
	}
	dir, path := checkout(t)
	if err := os.Symlink(path, filepath.Join(dir, "agents")); err != nil {
		t.Fatal(err)
	}
	twice := "bash provision.sh " + root + " 127.0.0.1\n"
	for name, text := range map[string]string{"systemctl": systemctl, "provision.sh": provision, "script": machine + twice + twice + provisioned} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	home := t.TempDir()
	logDir := filepath.Join(home, "logs")
	if err := os.Mkdir(logDir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeCgroups(t, filepath.Join(logDir, "alloc", "*-*")) })
	cmd := exec.CommandContext(ctx, "bash", "script")
	inNamespaces(cmd, dir, "PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin", "HOME="+home, "LOGS="+logDir)
	printed, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(printed), "as it should be\n") {
		t.Errorf("%v\n%s\n%s", err, harness.Tail(string(printed), 8000), logs(home))
	}
}
