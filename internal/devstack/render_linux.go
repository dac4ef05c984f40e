package devstack

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

const loopback = "127.0.0.1"

// nomadNode is what the configuration of one Nomad agent, server or client, is
// rendered from.
type nomadNode struct {
	Name, Dir              string
	Bind, Interface        string // address and device
	Server                 bool
	HTTP, RPC, Serf        int
	Servers                []string // host:port of their RPC, for a client
	Join                   []string // host:port of their Serf, for a server
	Expect, Raft           int      // servers, and the multiplier of their timeouts
	Dynamic                [2]int
	Cgroup                 string
	Consul, ConsulUI       string // addresses
	Vault                  string
	MemoryMB, CPUMHz       int
	Docker, Catalog        string
	VolumePlugins          string
	DockerDisableLogs      bool
	Drivers, NoFingerprint string
	StockLimits            bool // of connections: each agent of a Cluster has an address of its own
	TLS                    tlsFiles
	ConsulToken            string
}

// secure gives the agent what it needs on a locked stack.
func (n *nomadNode) secure(l *lock, c Component, addr string) (err error) {
	if l == nil {
		return nil
	}
	name := nomadClientName
	if n.Server {
		name = nomadServerName
	}
	n.ConsulToken = l.consulNomad
	n.TLS, err = l.issue(c, addr, name)
	return err
}

// nomadTemplate. The settings that are not plain addresses, and why:
//   - template retries 0 (indefinitely): otherwise a client kills its tasks after some
//     minutes without Vault or a server; DESIGN §3.
//   - heartbeat: TTL 5 to 10 s and 10 s of grace, so a dead node is seen after at
//     most 20 s; after a leader change 30 s, not 5 minutes.
//   - event_buffer_size: the event stream's gaps are silent; 100 is the default.
//   - gc_*: a full disk or many ended allocations on a developer's machine must not
//     make the client destroy allocations.
//   - collection_interval: nobody reads the metrics here, and by default a server
//     publishes those of every job each second.
//   - fingerprint.denylist: no cloud's metadata service is asked.
//   - verify_https_client: servers want a certificate from callers. Clients do not:
//     Vault and Consul, which cannot show one, get the keys of workload identities
//     there, and a browser its pages.
var nomadTemplate = template.Must(template.New("nomad").Funcs(template.FuncMap{"q": func(s string) string { return fmt.Sprintf("%q", s) }, "list": hclList}).Parse(`
name                 = {{q .Name}}
data_dir             = {{q .Dir}}
bind_addr            = {{q .Bind}}
log_level            = "INFO"
disable_update_check = true

ports {
  http = {{.HTTP}}
  rpc  = {{.RPC}}
  serf = {{.Serf}}
}

advertise {
  http = "{{.Bind}}:{{.HTTP}}"
  rpc  = "{{.Bind}}:{{.RPC}}"
  serf = "{{.Bind}}:{{.Serf}}"
}

telemetry {
  collection_interval = "30s"
}

{{if .TLS.CA}}
acl {
  enabled = true
}

tls {
  http                   = true
  rpc                    = true
  ca_file                = {{q .TLS.CA}}
  cert_file              = {{q .TLS.Cert}}
  key_file               = {{q .TLS.Key}}
  verify_server_hostname = true
  verify_https_client    = {{.Server}}
}
{{end}}
{{- if not .StockLimits}}
limits {
  http_max_conns_per_client = 2000
  rpc_max_conns_per_client  = 2000
}
{{end}}
{{- if .Server}}
server {
  enabled                = true
  bootstrap_expect       = {{.Expect}}
  raft_multiplier        = {{.Raft}}
  min_heartbeat_ttl      = "5s"
  heartbeat_grace        = "10s"
  failover_heartbeat_ttl = "30s"
  event_buffer_size      = 10000
  {{- if .Join}}
  server_join {
    retry_join     = {{list .Join}}
    retry_interval = "1s"
  }
  {{- end}}
}

# A server that is away comes back.
autopilot {
  cleanup_dead_servers = false
}
{{else}}
client {
  enabled           = true
  servers           = {{list .Servers}}
  network_interface = {{q .Interface}}
  {{- if eq .Interface "lo"}}

  # lo has two addresses, and Nomad would give each of them the whole range.
  host_network "ipv6" {
    cidr           = "::1/128"
    reserved_ports = "{{index .Dynamic 0}}-{{index .Dynamic 1}}"
  }
  {{- end}}
  host_volumes_dir  = {{printf "%s/host_volumes" .Dir | q}}
  {{- if .VolumePlugins}}
  host_volume_plugin_dir = {{q .VolumePlugins}}
  {{- end}}
  cgroup_parent     = {{q .Cgroup}}
  min_dynamic_port  = {{index .Dynamic 0}}
  max_dynamic_port  = {{index .Dynamic 1}}
  {{- if .MemoryMB}}
  memory_total_mb   = {{.MemoryMB}}
  {{- end}}
  {{- if .CPUMHz}}
  cpu_total_compute = {{.CPUMHz}}
  {{- end}}
  gc_max_allocs            = 5000
  gc_disk_usage_threshold  = 99
  gc_inode_usage_threshold = 99

  options {
    "fingerprint.denylist" = {{q .NoFingerprint}}
    "driver.allowlist"     = {{q .Drivers}}
  }

  template {
    vault_retry {
      attempts = 0
    }
    consul_retry {
      attempts = 0
    }
    nomad_retry {
      attempts = 0
    }
  }
  {{- if .Catalog}}

  host_volume "catalog" {
    path      = {{q .Catalog}}
    read_only = true
  }
  {{- end}}
}

plugin "raw_exec" {
  config {
    enabled = true
  }
}
{{if .Docker}}
plugin "docker" {
  config {
    endpoint               = {{q .Docker}}
    disable_log_collection = {{.DockerDisableLogs}}
    volumes {
      enabled = true
    }
    gc {
      image = false
      # An agent removes the containers of every other agent of the same docker daemon
      # once they are five minutes old.
      dangling_containers {
        enabled = false
      }
    }
  }
}
{{end}}
{{end}}
consul {
  address = {{q .Consul}}
  {{- if .TLS.CA}}
  ssl       = true
  ca_file   = {{q .TLS.CA}}
  cert_file = {{q .TLS.Cert}}
  key_file  = {{q .TLS.Key}}
  token     = {{q .ConsulToken}}
  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
  task_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
  {{- end}}
}

vault {
  enabled               = true
  address               = {{q .Vault}}
  {{- if .TLS.CA}}
  ca_file               = {{q .TLS.CA}}
  {{- end}}
  jwt_auth_backend_path = "jwt-nomad"
  create_from_role      = "nomad-workloads"
  default_identity {
    aud = ["vault.io"]
    ttl = "1h"
  }
}

ui {
  enabled = true
  consul {
    ui_url = {{printf "%s/ui" .ConsulUI | q}}
  }
  vault {
    ui_url = {{printf "%s/ui" .Vault | q}}
  }
}
`))

// hclList is a list of strings.
func hclList(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// vaultNode is what the configuration of Vault is rendered from.
type vaultNode struct {
	Dir, Bind     string
	HTTP, Cluster int
	TLS           tlsFiles
}

// vaultTemplate: storage on disk, so that a killed Vault keeps its secrets.
const vaultTemplate = `
storage "raft" {
  path = %[1]q
  performance_multiplier = "1" # of Raft: a lone server need not wait for others
}

listener "tcp" {
  address         = "%[2]s:%[3]d"
  cluster_address = "%[2]s:%[4]d"
  %[5]s
}

api_addr      = "%[6]s://%[2]s:%[3]d"
cluster_addr  = "%[6]s://%[2]s:%[4]d"
disable_mlock = true
ui            = true
log_level     = "warn"
`

// render writes the node's configuration file.
func (n nomadNode) render(path string) error {
	n.Drivers = "raw_exec,mock_driver"
	if n.Docker != "" {
		n.Drivers += ",docker"
	}
	n.NoFingerprint = "env_aws,env_gce,env_azure,env_digitalocean"
	var b strings.Builder
	if err := nomadTemplate.Execute(&b, n); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strings.TrimSpace(b.String())+"\n"), 0o600)
}

// consulNode is what the configuration of one Consul agent is rendered from.
type consulNode struct {
	Name, Dir          string
	Bind, Client       string // addresses, of the cluster's traffic and of the API
	Server             bool
	HTTP, RPC, SerfLAN int
	Expect, Raft       int      // servers, and the multiplier of their timeouts
	Join               []string // host:port of the servers' SerfLAN; none for a lone server
	StockLimits        bool     // of connections
	GRPC               int      // where it is locked
	TLS                tlsFiles
	Root, Agent        string // tokens: of the operator, for servers, and of the agent
}

// secure gives the agent what it needs on a locked stack.
func (n *consulNode) secure(l *lock, c Component, addr string) (err error) {
	if l == nil {
		return nil
	}
	name := consulClientName
	if n.Server {
		name, n.Root = consulServerName, l.consulRoot
	} else {
		n.Agent = l.consulAgent
	}
	n.TLS, err = l.issue(c, addr, name)
	return err
}

func (n consulNode) render(path string) error {
	ports := map[string]any{
		"http": n.HTTP, "server": n.RPC, "serf_lan": n.SerfLAN,
		"serf_wan": -1, "dns": -1, "grpc": -1, "grpc_tls": -1,
	}
	conf := map[string]any{
		"node_name":               n.Name,
		"data_dir":                n.Dir,
		"server":                  n.Server,
		"bind_addr":               n.Bind,
		"client_addr":             n.Client,
		"log_level":               "warn",
		"disable_update_check":    true,
		"leave_on_terminate":      false,
		"skip_leave_on_interrupt": true,
		"connect":                 map[string]any{"enabled": false},
		"ui_config":               map[string]any{"enabled": true},
		"ports":                   ports,
	}
	if n.TLS.CA != "" {
		ports["http"], ports["https"], ports["grpc_tls"] = -1, n.HTTP, n.GRPC
		conf["tls"] = map[string]any{
			"defaults": map[string]any{
				"ca_file": n.TLS.CA, "cert_file": n.TLS.Cert, "key_file": n.TLS.Key,
				"verify_incoming": true, "verify_outgoing": true,
			},
			"internal_rpc": map[string]any{"verify_server_hostname": true},
		}
		tokens := map[string]any{}
		if n.Server {
			tokens["initial_management"] = n.Root
		} else {
			tokens["agent"] = n.Agent
		}
		// Servers start before their token is made: see setAgentToken.
		conf["acl"] = map[string]any{"enabled": true, "default_policy": "deny", "enable_token_persistence": true, "tokens": tokens}
	}
	if !n.StockLimits {
		conf["limits"] = map[string]any{"http_max_conns_per_client": 2000, "rpc_max_conns_per_client": 2000}
	}
	if n.Server {
		conf["bootstrap_expect"] = n.Expect
		conf["performance"] = map[string]any{"raft_multiplier": n.Raft}
		conf["autopilot"] = map[string]any{"cleanup_dead_servers": false} // one that is away comes back
	}
	if len(n.Join) > 0 {
		conf["retry_join"] = n.Join
		conf["retry_interval"] = "1s"
	}
	text, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o600)
}

// render writes Vault's configuration file and makes its directory.
func (n vaultNode) render(path string) error {
	data := filepath.Join(n.Dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	secure, scheme := "tls_disable     = true", "http"
	if n.TLS.CA != "" {
		secure, scheme = fmt.Sprintf("tls_cert_file   = %q\n  tls_key_file    = %q", n.TLS.Cert, n.TLS.Key), "https"
	}
	text := strings.TrimSpace(fmt.Sprintf(vaultTemplate, data, n.Bind, n.HTTP, n.Cluster, secure, scheme)) + "\n"
	return os.WriteFile(path, []byte(text), 0o600)
}
