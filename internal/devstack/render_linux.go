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
	Server                 bool
	HTTP, RPC, Serf        int
	ServerRPC              int // of the stack's only server
	Dynamic                [2]int
	Cgroup                 string
	Consul, ConsulUI       string // addresses
	Vault                  string
	MemoryMB, CPUMHz       int
	Docker, Catalog        string
	DockerDisableLogs      bool
	Drivers, NoFingerprint string
}

// nomadTemplate. The settings that are not plain addresses, and why:
//   - template retries 0 (for ever): otherwise a client kills its tasks after some
//     minutes without Vault or a server; DESIGN §3.
//   - heartbeat: TTL 5 to 10 s and 10 s of grace, so a dead node is seen after at
//     most 20 s; after a leader change 30 s, not 5 minutes.
//   - event_buffer_size: the event stream's gaps are silent; 100 is the default.
//   - gc_*: a full disk or many ended allocations on a developer's machine must not
//     make the client destroy allocations.
//   - fingerprint.denylist: no cloud's metadata service is asked.
var nomadTemplate = template.Must(template.New("nomad").Funcs(template.FuncMap{"q": func(s string) string { return fmt.Sprintf("%q", s) }}).Parse(`
name                 = {{q .Name}}
data_dir             = {{q .Dir}}
bind_addr            = "127.0.0.1"
log_level            = "INFO"
disable_update_check = true

ports {
  http = {{.HTTP}}
  rpc  = {{.RPC}}
  serf = {{.Serf}}
}

advertise {
  http = "127.0.0.1:{{.HTTP}}"
  rpc  = "127.0.0.1:{{.RPC}}"
  serf = "127.0.0.1:{{.Serf}}"
}

limits {
  http_max_conns_per_client = 2000
  rpc_max_conns_per_client  = 2000
}
{{if .Server}}
server {
  enabled                = true
  bootstrap_expect       = 1
  raft_multiplier        = 1
  min_heartbeat_ttl      = "5s"
  heartbeat_grace        = "10s"
  failover_heartbeat_ttl = "30s"
  event_buffer_size      = 10000
}
{{else}}
client {
  enabled           = true
  servers           = ["127.0.0.1:{{.ServerRPC}}"]
  network_interface = "lo"

  # lo has two addresses, and Nomad would give each of them the whole range.
  host_network "ipv6" {
    cidr           = "::1/128"
    reserved_ports = "{{index .Dynamic 0}}-{{index .Dynamic 1}}"
  }
  host_volumes_dir  = {{printf "%s/host_volumes" .Dir | q}}
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
    }
  }
}
{{end}}
{{end}}
consul {
  address = {{q .Consul}}
}

vault {
  enabled               = true
  address               = {{q .Vault}}
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

// vaultTemplate: file storage, so that a killed Vault keeps its secrets.
const vaultTemplate = `
storage "file" {
  path = %q
}

listener "tcp" {
  address         = "127.0.0.1:%d"
  cluster_address = "127.0.0.1:%d"
  tls_disable     = true
}

api_addr      = "http://127.0.0.1:%[2]d"
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
	Server             bool
	HTTP, RPC, SerfLAN int
	Join               int // the server's SerfLAN, for a client agent
}

func (n consulNode) render(path string) error {
	conf := map[string]any{
		"node_name":               n.Name,
		"data_dir":                n.Dir,
		"server":                  n.Server,
		"bind_addr":               loopback,
		"client_addr":             loopback,
		"log_level":               "warn",
		"disable_update_check":    true,
		"leave_on_terminate":      false,
		"skip_leave_on_interrupt": true,
		"connect":                 map[string]any{"enabled": false},
		"ui_config":               map[string]any{"enabled": true},
		"limits":                  map[string]any{"http_max_conns_per_client": 2000, "rpc_max_conns_per_client": 2000},
		"ports": map[string]any{
			"http": n.HTTP, "server": n.RPC, "serf_lan": n.SerfLAN,
			"serf_wan": -1, "dns": -1, "grpc": -1, "grpc_tls": -1,
		},
	}
	if n.Server {
		conf["bootstrap_expect"] = 1
		conf["performance"] = map[string]any{"raft_multiplier": 1}
	} else {
		conf["retry_join"] = []string{fmt.Sprintf("%s:%d", loopback, n.Join)}
		conf["retry_interval"] = "1s"
	}
	text, err := json.MarshalIndent(conf, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o600)
}

// renderVault writes Vault's configuration file.
func renderVault(path, dir string, port, cluster int) error {
	text := strings.TrimSpace(fmt.Sprintf(vaultTemplate, filepath.Join(dir, "data"), port, cluster)) + "\n"
	return os.WriteFile(path, []byte(text), 0o600)
}
