package terraform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	nomad "github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/devstack"
	"github.com/septemberai/orch/internal/e2e/harness"
)

// engineOfTest is an engine in the configuration of the example. The platform key of its
// product is in the state only for this engine.
const engineOfTest = `
variable "protected" { default = null }
resource "orch_product" "tested" {
  slug                  = "tested"
  display_name          = "Tested"
  platform_key_in_state = true
  depends_on            = [module.orch]
}
provider "orch" {
  alias        = "tested"
  platform_key = orch_product.tested.platform_key
}
resource "orch_engine" "probe" {
  provider            = orch.tested
  user_id             = "probe@example.com"
  deletion_protection = var.protected
}
`

// TestModules makes everything that orch needs, orch itself, a product and an engine on a
// cluster that has nothing of it, by one apply of the example for operators; updates orch
// under calls; and destroys everything again.
func TestModules(t *testing.T) {
	built(t)
	t.Parallel()
	database := harness.Postgres.Database(t)
	binary, err := harness.OrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	next, err := harness.NextOrchBinary()
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t)
	before, err := c.inventory(t)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range before {
		if strings.Contains(line, "engines") || strings.Contains(line, "nomad-workloads") || strings.HasSuffix(line, " orch") {
			t.Fatalf("the cluster has %s before", line)
		}
	}

	access, url := c.stack.Operator(), c.balancer(t)
	secrets, err := json.Marshal(map[string]string{"ORCH_ADMIN_KEY": harness.AdminKey, "ORCH_DATABASE_URL": database, "LLM_API_KEY": harness.ProviderKey})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for name, path := range map[string]string{"ca": c.stack.Orch().CACert, "cert": c.stack.Orch().ClientCert, "key": c.stack.Orch().ClientKey} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
	}
	agents, err := json.Marshal(files)
	if err != nil {
		t.Fatal(err)
	}
	w := newExample(t, append(c.env(t),
		"TF_VAR_agents_tls=mutual", "TF_VAR_agents_files="+string(agents),
		"ORCH_URL="+url, "ORCH_ADMIN_KEY="+harness.AdminKey, "TF_VAR_secrets="+string(secrets),
		"TF_VAR_jwks_url="+c.jwksURL(t), "TF_VAR_jwks_ca_file="+access.CACert, "TF_VAR_engine_pki=true", `TF_VAR_node_pools={"engines" = "nodes of engines"}`,
	)...)
	for _, secret := range []string{harness.AdminKey, database, harness.ProviderKey, access.NomadToken, access.ConsulToken, access.VaultToken, strings.Split(files["key"], "\n")[1]} {
		w.keepSecret(secret)
	}
	w.file("engine.tf", engineOfTest)
	w.file("terraform.tfvars.json", c.variables(t, binary, 2))
	t.Cleanup(func() {
		if t.Failed() {
			c.logReplicas(t)
		}
	})
	w.must("init", "-no-color")
	w.must("validate", "-no-color")
	t.Run("other names", c.otherNames)
	w.apply()

	c.equalFiles(t)
	c.noSecretInJob(t, w.secrets)
	product := &client.Client{BaseURL: url, PlatformKey: keyInState(w)}
	admitted := func(ctx context.Context) (*client.Engine, error) {
		a, err := product.Admit(ctx, "probe@example.com", client.AdmitOptions{})
		if err != nil || !a.Admitted {
			return nil, fmt.Errorf("%+v, %w", a, err)
		}
		return a.Engine, nil
	}
	e, err := admitted(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.keepSecret(e.APIKey)
	harness.Remember(t, e, e.APIKey, "before the update")
	w.changes(false)

	// Another binary and another setting replace both replicas, and no call fails.
	w.file("terraform.tfvars.json", c.variables(t, next, 0))
	ctx, stop := context.WithCancel(t.Context())
	var calling sync.WaitGroup
	calls := 0
	calling.Go(func() {
		for ctx.Err() == nil {
			if _, err := admitted(context.WithoutCancel(ctx)); err != nil {
				t.Errorf("admit %d: %v", calls, err)
				return
			}
			calls++
		}
	})
	out := w.apply()
	stop()
	calling.Wait()
	w.says(out, "module.orch.nomad_job.orch", "0 added, 1 changed, 0 destroyed")
	t.Logf("%d admits during the update", calls)
	if calls == 0 {
		t.Error("there was no call during the update")
	}
	c.runs(t, next)
	if err := harness.Export(t, e, e.APIKey).Knows("before the update"); err != nil {
		t.Error(err)
	}
	w.changes(false)

	c.keepsEngines(t, w, product)

	// The new setting has emptied the pool of ready volumes.
	harness.Eventually(t, "there are only volumes of engines", func() error {
		list, _, err := c.nomad.HostVolumes().List(nil, nil)
		if err != nil || len(list) != 1 {
			return fmt.Errorf("%d volumes, %w", len(list), err)
		}
		return nil
	})
	w.apply("-var", "protected=false")
	w.must("destroy", "-no-color", "-auto-approve", "-var", "protected=false")
	w.clean()
	harness.Eventually(t, "everything is as before", func() error {
		after, err := c.inventory(t)
		if err != nil {
			return err
		}
		for _, line := range after {
			if !slices.Contains(before, line) {
				err = errors.Join(err, fmt.Errorf("there is %s, which was not there before", line))
			}
		}
		if err == nil && !slices.Equal(before, after) {
			err = fmt.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
		return err
	})
}

// keepsEngines: with an engine that Terraform does not know, nothing that it needs is
// destroyed, even if Terraform knows no product either. The next apply repairs orch.
func (c *cluster) keepsEngines(t *testing.T, w *workspace, product *client.Client) {
	t.Helper()
	ctx := t.Context()
	e, err := product.Provision(ctx, "bob", "")
	if err != nil {
		t.Fatal(err)
	}
	w.keepSecret(e.APIKey)
	e, err = product.Engine(ctx, "bob")
	if err != nil {
		t.Fatal(err)
	}
	harness.Remember(t, e, e.APIKey, "the secret of bob")
	w.refused([]string{`The engine of "probe@example.com" is protected`}, "destroy", "-no-color", "-auto-approve")

	// In the state there is no product any more, so orch is not asked.
	file := filepath.Join(w.dir, "terraform.tfstate")
	state, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w.must("state", "rm", "orch_engine.probe", "orch_product.tested", "orch_product.acme")
	w.refused([]string{"The namespace engines contains host volumes, or they cannot be listed"}, "destroy", "-no-color", "-auto-approve")
	list, err := c.vault.Logical().ListWithContext(ctx, "orch/metadata/engines")
	if err != nil || list == nil || len(list.Data["keys"].([]any)) != 2 {
		t.Fatalf("the keys of engines are gone: %+v, %v", list, err)
	}
	if keys, _, err := c.consul.KV().Keys("orch/", "", nil); err != nil || len(keys) < 4 {
		t.Fatalf("the registry is gone: %q, %v", keys, err)
	}
	if err := os.WriteFile(file, state, 0o600); err != nil {
		t.Fatal(err)
	}
	w.apply("-target=module.orch")
	w.changes(false)
	if err := harness.Export(t, e, e.APIKey).Knows("the secret of bob"); err != nil {
		t.Error(err)
	}
	if _, err := product.Destroy(ctx, "bob"); err != nil {
		t.Fatal(err)
	}
}

// variables are the example's variables for a development stack.
func (c *cluster) variables(t *testing.T, binary string, pool int) string {
	t.Helper()
	settings := map[string]string{
		"ORCH_ENGINE_DRIVER": "raw_exec", "ORCH_ENGINE_IMAGE": "reference-engine", "ORCH_ENGINE_BIN_DIR": harness.BinDir,
		"ORCH_ENGINE_CPU_MHZ": "10", "ORCH_ENGINE_MEMORY_MB": "32", "ORCH_ENGINE_ENV_PASSTHROUGH": "LLM_API_KEY", "ORCH_VOLUME_POOL": fmt.Sprint(pool),
	}
	for _, v := range c.stack.Orch().Environ() {
		name, value, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "NOMAD_") && !strings.HasSuffix(name, "_TOKEN") && !strings.HasSuffix(name, "_CACERT") && !strings.Contains(name, "_CLIENT_") {
			settings[name] = value
		}
	}
	text, err := json.Marshal(map[string]any{"settings": settings, "job": map[string]string{
		"driver": "raw_exec", "binary": binary, "port": "0", "canary": "1", "consul_addr": c.stack.ConsulAddr, "vault_addr": c.stack.VaultAddr, "cpu_mhz": "50", "memory_mb": "64",
	}})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// runs fails the test unless two replicas run, both of the newest version of the job, which
// has this binary.
func (c *cluster) runs(t *testing.T, binary string) {
	t.Helper()
	in := &nomad.QueryOptions{Namespace: nomad.DefaultNamespace}
	job, _, err := c.nomad.Jobs().Info("orch", in)
	if err != nil || job.TaskGroups[0].Tasks[0].Config["command"] != binary {
		t.Fatalf("the job has %+v, %v", job, err)
	}
	harness.Eventually(t, "both replicas are new", func() error {
		list, _, err := c.nomad.Jobs().Allocations("orch", true, in)
		if err != nil {
			return err
		}
		running := 0
		for _, a := range list {
			if a.ClientStatus != nomad.AllocClientStatusRunning {
				continue
			}
			if running++; a.JobVersion != *job.Version {
				return fmt.Errorf("%s is of version %d", a.ID, a.JobVersion)
			}
		}
		if running != 2 {
			return fmt.Errorf("%d run", running)
		}
		return nil
	})
}

// noSecretInJob looks for secrets in the job as Nomad has it, with its source.
func (c *cluster) noSecretInJob(t *testing.T, secrets []string) {
	t.Helper()
	in := &nomad.QueryOptions{Namespace: nomad.DefaultNamespace}
	job, _, err := c.nomad.Jobs().Info("orch", in)
	if err != nil {
		t.Fatal(err)
	}
	source, _, err := c.nomad.Jobs().Submission("orch", int(*job.Version), in)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal([]any{job, source})
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range secrets {
		if strings.Contains(string(text), secret) {
			t.Errorf("the job contains a secret: %.12s...", secret)
		}
	}
}

// agentsBinary builds the stand-in for HashiCorp's providers for Nomad and Consul.
var agentsBinary = sync.OnceValues(func() (string, error) {
	bin, err := filepath.Abs(filepath.Join(harness.BinDir, "..", "provider", "agents"))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./internal/agents")
	cmd.Dir, cmd.Env = providerDir(), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the providers of the agents: %w: %s", err, out)
	}
	return bin, nil
})

// newExample returns a workspace with a copy of examples/complete, the modules and the files
// that they read, and with all providers in a mirror.
func newExample(t *testing.T, env ...string) *workspace {
	t.Helper()
	w := newWorkspaceWith(t, "", "", env...)
	root, err := filepath.EvalSymlinks(filepath.Join(w.dir, ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"deploy/nomad", "deploy/consul", "deploy/vault", "deploy/terraform", "nomad-jobs"} {
		if err := os.CopyFS(filepath.Join(root, dir), os.DirFS(filepath.Join(harness.Repository, dir))); err != nil {
			t.Fatal(err)
		}
	}
	host := w.registry()
	mirror := filepath.Join(root, "mirror")
	install := func(address, version, from string) {
		_, name, _ := strings.Cut(address, "/")
		copyFile(t, from, filepath.Join(mirror, host, address, version, runtime.GOOS+"_"+runtime.GOARCH, "terraform-provider-"+name+"_v"+version))
	}
	cli := fmt.Sprintf("provider_installation {\n  filesystem_mirror { path = %q }\n", mirror)
	install("septemberai/orch", "1.2.3", built(t))
	if theirs := os.Getenv("ORCH_TEST_TERRAFORM_MIRROR"); theirs != "" {
		cli += fmt.Sprintf("  filesystem_mirror { path = %q }\n", theirs)
	} else {
		agents, err := agentsBinary()
		if err != nil {
			t.Fatal(err)
		}
		install("hashicorp/nomad", "2.6.0", agents)
		install("hashicorp/consul", "2.21.0", agents)
		vault, err := devstack.VaultProvider(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		install("hashicorp/vault", devstack.VaultProviderVersion, vault)
	}
	w.file("../cli.tfrc", cli+"}\n")
	w.dir = filepath.Join(root, "deploy", "terraform", "examples", "complete")
	// At the level of the other tests, HashiCorp's providers log their tokens.
	w.env = slices.DeleteFunc(w.env, func(v string) bool { return strings.HasPrefix(v, "TF_LOG=") })
	return w
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}
