package install

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// vagrantCluster is where the Vagrantfile takes the cluster from.
const vagrantCluster = "deploy/vagrant/cluster"

// vagrant is the cluster of the Vagrantfile, with machines of systemd-nspawn in place of virtual
// ones.
type vagrant struct {
	network  *harness.Network
	root     string // of this checkout
	base     string // of each machine's files
	programs string
	secrets  string
	machines map[string]*harness.Machine
	address  map[string]string
	// allocations have cgroups on this host.
	allocations []string
}

// TestVagrantCluster runs what the Vagrantfile runs, on five machines with systemd and a network
// of their own: with the real scripts, units and agents, and the Debian packages that these
// install, except docker's. So engines are processes here.
func TestVagrantCluster(t *testing.T) {
	need(t)
	for _, program := range []string{"debootstrap", "nsenter", "systemd-nspawn"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	v := newVagrant(t)
	defer func() { // before the machines are switched off
		for name := range v.machines {
			v.kill(t, name)
		}
	}()

	// In any order. The servers become a cluster when the third is there.
	for _, step := range []struct{ name, says string }{
		{"client1", "joins the servers by itself"},
		{"server3", "provision the others"},
		{"server1", "provision the others"},
		{"server2", "is a server of the cluster"},
		{"client2", "and runs orch"},
	} {
		v.boot(t, step.name)
		if said := v.provision(t, step.name); !strings.Contains(said, step.says) {
			t.Fatalf("the provisioning of %s printed:\n%s", step.name, said)
		}
	}
	v.awaitPeers(t)
	v.awaitOrch(t, "client1", "client2")
	t.Run("Refused", v.refused)

	// Here, a caller who is not on a machine: the certificate of orch is verified.
	orch := `export ORCH_URL=https://` + v.address["client1"] + `:8000 ORCH_CACERT=` + v.secrets + `/ca.pem ORCH_ADMIN_KEY=$(cat ` + v.secrets + `/admin-key)
orch=` + v.programs + "/orch\n"
	v.host(t, orch+`$orch product register -json lab >product.json`)
	orch += "export ORCH_PLATFORM_KEY=$(jq -r .platform_api_key product.json)\n"
	v.host(t, orch+`$orch engine provision -json alice >alice.json
call() { curl -sS -o out -w '%{http_code}' -H "X-Engine-Key: $1" "$(jq -r .url alice.json)/memory/export"; }
[ "$(call "$(jq -r .api_key alice.json)") $(call wrong)" = "200 401" ]`)

	t.Run("Repeat", v.repeat)

	// Without one server, which is Vault's active one, orch works on.
	v.kill(t, "server2")
	v.awaitOrch(t, "client1", "client2")
	for _, client := range []string{"client1", "client2"} {
		v.host(t, orch+`ORCH_URL=https://`+v.address[client]+`:8000 $orch engine admit -json alice | jq -e .admitted`)
	}
	harness.Eventually(t, "an engine is made without a server", func() error {
		_, err := v.tryHost(t, orch+`$orch engine provision -json bob`)
		return err
	})

	// Machines that were created again, with nothing but what this host keeps.
	v.boot(t, "server2")
	v.provision(t, "server2")
	v.awaitPeers(t)
	v.kill(t, "client2")
	v.boot(t, "client2")
	v.provision(t, "client2")
	v.awaitOrch(t, "client1", "client2")
	v.eventually(t, "server1", "two nodes are ready", `[ "$(nomad node status -json | jq -c '[.[] | select(.Status == "ready") | .Name] | sort')" = '["client1","client2"]' ]`)
	v.eventually(t, "server1", "Consul has all machines", `[ "$(consul members | awk '$3 == "alive"' | wc -l)" = 5 ]
[ "$(consul catalog nodes -service=nomad-client | awk 'NR > 1' | wc -l)" = 2 ]`)
	v.host(t, orch+`$orch engine provision -json carol | jq -e .url`)
}

func newVagrant(t *testing.T) *vagrant {
	t.Helper()
	root, err := filepath.Abs(harness.Repository)
	if err != nil {
		t.Fatal(err)
	}
	dir, agents := checkout(t)
	v := &vagrant{root: root, programs: filepath.Join(dir, "bin"), secrets: filepath.Join(t.TempDir(), "orch"),
		machines: map[string]*harness.Machine{}, address: map[string]string{}}
	// Links for processes of this machine; the others need the files.
	if out, err := exec.CommandContext(t.Context(), "sh", "-euc", `cp -Ll "$0"/* "$1" 2>/dev/null || cp -L "$0"/* "$1"`, agents, v.programs).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	machines, err := os.ReadFile(filepath.Join(root, vagrantCluster, "machines"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(machines)) {
		name, address, _ := strings.Cut(strings.TrimSpace(line), " ")
		v.address[name] = address
	}
	v.makeSecrets(t)
	v.base = harness.Debian(t, "debian-bookworm-cluster", "ca-certificates", "curl", "iproute2", "jq", "nftables", "openssl", "postgresql", "procps")
	v.network = harness.NewNetwork(t, "192.168.56.1/24")
	t.Cleanup(func() { v.removeCgroups(t) })
	return v
}

// makeSecrets runs secrets.sh twice, as this host's user: the second run changes nothing, and
// each machine's directory has nothing for others.
func (v *vagrant) makeSecrets(t *testing.T) {
	t.Helper()
	var sums [2]string
	for i := range sums {
		if out, err := exec.CommandContext(t.Context(), filepath.Join(v.root, vagrantCluster, "secrets.sh"), v.secrets).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		sums[i] = v.local(t, `find . -type f -exec sha256sum {} + | sort`)
	}
	if sums[0] != sums[1] {
		t.Errorf("secrets.sh changed its files:\n%s\n%s", sums[0], sums[1])
	}
	if open := v.local(t, `find . -perm /077; grep -rlE '^(consul_management|nomad_management|admin_key|database_password|agents)' client* || true; find server* client* -name 'ca-key*'`); open != "" {
		t.Fatalf("secrets for others than they should be:\n%s", open)
	}
}

// local runs a script in the directory of secrets.
func (v *vagrant) local(t *testing.T, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", script)
	cmd.Dir = v.secrets
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// boot creates a machine, with the directories that Vagrant synchronises.
func (v *vagrant) boot(t *testing.T, name string) {
	t.Helper()
	v.machines[name] = v.network.Boot(t, name, v.address[name]+"/24", v.base,
		"--bind-ro="+v.root+":/vagrant", "--bind-ro="+v.programs+":/orch/programs", "--bind-ro="+filepath.Join(v.secrets, name)+":/orch/secrets")
}

// kill switches a machine off, with all its files.
func (v *vagrant) kill(t *testing.T, name string) {
	t.Helper()
	m := v.machines[name]
	if t.Failed() {
		said, _ := m.Try("systemctl --no-pager --failed; journalctl -q -n 60 -o cat -u consul -u vault -u vault-unseal -u nomad -u orch-firewall -u postgresql; tail -n 20 /var/lib/nomad/alloc/*/alloc/logs/orch.stderr.0 || true")
		t.Logf("%s:\n%s", name, harness.Tail(said, 6000))
	}
	list, _ := m.Try("ls -d /var/lib/nomad/alloc/*-* 2>/dev/null")
	v.allocations = append(v.allocations, strings.Fields(list)...)
	m.Kill(t)
}

// provision does what the Vagrantfile does in each machine.
func (v *vagrant) provision(t *testing.T, name string) string {
	t.Helper()
	said, err := v.tryProvision(name)
	if err != nil {
		t.Fatalf("provisioning %s: %v\n%s", name, err, said)
	}
	return said
}

func (v *vagrant) tryProvision(name string) (string, error) {
	return v.machines[name].Try("ORCH_ENGINE_DRIVER=raw_exec bash /vagrant/" + vagrantCluster + "/cluster.sh /vagrant " + name)
}

// eventually repeats a script on a server, with the operator's environment.
func (v *vagrant) eventually(t *testing.T, name, what, script string) {
	t.Helper()
	harness.Eventually(t, what, func() error {
		out, err := v.machines[name].Try(". /etc/orch/env\n" + script)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
}

// tryHost runs a script on this host, in the network of the machines.
func (v *vagrant) tryHost(t *testing.T, script string) (string, error) {
	cmd := v.network.Command("bash", "-euc", script)
	cmd.Dir = v.secrets
	cmd.Env = append(os.Environ(), "HOME="+v.secrets)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%w\n%s", err, out)
	}
	return string(out), nil
}

func (v *vagrant) host(t *testing.T, script string) string {
	t.Helper()
	out, err := v.tryHost(t, script)
	if err != nil {
		t.Fatalf("%s\n%v", script, err)
	}
	return out
}

// awaitPeers: the three servers are voters of Consul, Nomad and Vault, and see one another.
func (v *vagrant) awaitPeers(t *testing.T) {
	t.Helper()
	for _, server := range []string{"server1", "server2", "server3"} {
		v.eventually(t, server, server+" sees three servers of each", `want='["192.168.56.11","192.168.56.12","192.168.56.13"]'
voters() { jq -c '[.[] | select(.v) | .a | sub(":.*"; "")] | sort' ; }
[ "$(curl -sS --cacert $CONSUL_CACERT -H "X-Consul-Token: $CONSUL_HTTP_TOKEN" "$CONSUL_HTTP_ADDR/v1/operator/raft/configuration" | jq '[.Servers[] | {v: .Voter, a: .Address}]' | voters)" = "$want" ]
[ "$(curl -sS --cacert $NOMAD_CACERT -H "X-Nomad-Token: $NOMAD_TOKEN" "$NOMAD_ADDR/v1/operator/raft/configuration" | jq '[.Servers[] | {v: .Voter, a: .Address}]' | voters)" = "$want" ]
[ "$(vault operator raft list-peers -format=json | jq '[.data.config.servers[] | {v: .voter, a: .address}]' | voters)" = "$want" ]
vault status
nomad server members | awk 'NR > 1 && $4 == "alive"' | wc -l | grep -qx 3`)
	}
}

// awaitOrch: a replica on each of these clients is ready.
func (v *vagrant) awaitOrch(t *testing.T, clients ...string) {
	t.Helper()
	for _, name := range clients {
		harness.Eventually(t, "orch is ready on "+name, func() error {
			_, err := v.tryHost(t, "curl -fsS --cacert ca.pem https://"+v.address[name]+":8000/ready")
			return err
		})
	}
}

// refused: calls without TLS, without a token, or from elsewhere.
func (v *vagrant) refused(t *testing.T) {
	server, client := v.address["server1"], v.address["client1"]
	code := func(url string, args ...string) string {
		out, _ := v.tryHost(t, "curl -sS --cacert ca.pem -o out -w '%{http_code}' "+strings.Join(args, " ")+" "+url+" 2>curl.log || true")
		return out
	}
	for url, want := range map[string]string{
		"http://" + server + ":4646/v1/status/leader":  "400",
		"https://" + server + ":4646/v1/nodes":         "403",
		"https://" + client + ":4646/v1/agent/self":    "403",
		"http://" + server + ":8200/v1/sys/health":     "400",
		"https://" + server + ":8200/v1/secret/data/x": "403",
		"http://" + client + ":8000/ready":             "400",
		"https://" + client + ":8000/status":           "401",
		"https://" + server + ":8501/v1/status/leader": "000", // on loopback only
		"https://" + client + ":8501/v1/status/leader": "000",
	} {
		if got := code(url); got != want {
			t.Errorf("%s: %s, want %s", url, got, want)
		}
	}
	v.machines["server1"].Want(t, `curl -sS --cacert /etc/orch/tls/ca.pem -o /dev/null -w '%{http_code}' https://127.0.0.1:8501/v1/kv/vagrant/vault`, "403")
	// PostgreSQL is for orch, from a client, by TLS.
	url := "postgres://orch@" + server + "/orch?connect_timeout=60&sslmode="
	for _, from := range []struct{ machine, url string }{{"server3", url + "require"}, {"client1", url + "disable"}} {
		if out, err := v.machines[from.machine].Try("psql -w '" + from.url + "' -c 'SELECT 1'"); err == nil || !strings.Contains(out, "no pg_hba.conf entry") {
			t.Errorf("psql on %s: %v\n%s", from.machine, err, out)
		}
	}
	// orch has no token of its own.
	v.eventually(t, "server1", "the variable of orch", `nomad var get -out=json nomad/jobs/orch | jq -e '.Items | keys == ["ORCH_ADMIN_KEY", "ORCH_DATABASE_URL"]'`)
}

// repeat provisions all machines again, concurrently: nothing changes, and nothing restarts.
func (v *vagrant) repeat(t *testing.T) {
	state := func() string {
		var b strings.Builder
		for _, name := range []string{"server1", "server2", "server3", "client1", "client2"} {
			b.WriteString(v.machines[name].Run(t, `hostname
for unit in consul vault vault-unseal nomad postgresql orch-firewall; do
	systemctl show -p Id -p ActiveState -p MainPID -p ExecMainStartTimestampMonotonic $unit.service
done
find /etc/orch /etc/systemd/system /etc/hosts /etc/postgresql /var/lib/orch-vagrant -type f -exec sha256sum {} + | sort`) + "\n")
		}
		b.WriteString(v.machines["server1"].Run(t, `. /etc/orch/env
nomad job inspect orch | jq -c '[.Job.Version, .Job.JobModifyIndex]'
nomad var get -out=json nomad/jobs/orch | jq .ModifyIndex
consul acl token list -format=json | jq -r '.[].AccessorID' | sort | sha256sum
consul acl binding-rule list -method=nomad-workloads -format=json | jq length
nomad job allocs -json orch | jq -c '[.[] | .ID] | sort'`))
		return b.String()
	}
	// The first deployment must be over, because its end changes the job.
	v.eventually(t, "server1", "the deployment of orch has ended", `nomad job deployments -latest -json orch | jq -e '.Status == "successful"'`)
	before := state()
	var all sync.WaitGroup
	said := map[string]string{}
	var mu sync.Mutex
	var failed error
	for name := range v.machines {
		all.Go(func() {
			out, err := v.tryProvision(name)
			mu.Lock()
			defer mu.Unlock()
			said[name] = out
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s: %w\n%s", name, err, out))
			}
		})
	}
	all.Wait()
	if failed != nil {
		t.Fatal(failed)
	}
	if after := state(); after != before {
		t.Errorf("provisioning again changed:\n%s\nprinted by server1:\n%s", difference(before, after), said["server1"])
	}
}

// difference returns the lines that only one of two texts has.
func difference(before, after string) string {
	out, _ := exec.Command("bash", "-c", `diff <(printf '%s\n' "$0") <(printf '%s\n' "$1")`, before, after).CombinedOutput()
	return string(out)
}

// removeCgroups removes the cgroups of the tasks, once all machines are off.
func (v *vagrant) removeCgroups(t *testing.T) {
	for _, allocation := range v.allocations {
		removeGroups(t, filepath.Base(allocation))
	}
}
