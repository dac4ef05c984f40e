package devstack

import (
	"fmt"
	"os"
	"strings"
	"text/template"
)

// nomadNode contains the values in the configuration of one Nomad agent, server or client.
type nomadNode struct {
	Name, Dir              string
	Bind, Interface        string // address and device
	Server                 bool
	State                  string // directory of a client's database; empty: below Dir
	HTTP, RPC, Serf        int
	Servers                []string // of a client: host:port of the servers' RPC
	Join                   []string // of a server: host:port of the servers' Serf
	Expect, Raft           int      // number of servers, and the multiplier of their timeouts
	Dynamic                [2]int
	Cgroup                 string
	Consul, ConsulUI       string // addresses
	Vault                  string
	MemoryMB, CPUMHz       int
	Docker, Catalog        string
	VolumePlugins          string
	DockerDisableLogs      bool
	Drivers, NoFingerprint string
	StockLimits            bool     // keep Nomad's limits of connections per client address
	TLS                    tlsFiles // what it shows its peers and callers
	Caller                 tlsFiles // what it shows Consul, which it reads only at its start
	ConsulToken            string
}

// secure adds the agent's certificate and token. It does nothing on an open stack.
func (n *nomadNode) secure(l *lock, c Component, addr string) (err error) {
	if l == nil {
		return nil
	}
	name := nomadClientName
	if n.Server {
		name = nomadServerName
	}
	n.ConsulToken, n.Caller = l.consulNomad, l.caller
	n.TLS, err = l.issue(c, addr, name)
	return err
}

// nomadTemplate is the configuration of a Nomad agent. The reasons for its settings:
//   - template retries 0 (without a limit): otherwise a client kills its tasks after some
//     minutes without Vault or a server.
//   - heartbeats have a TTL of 5 to 10 s and 10 s of grace, so a dead node is detected
//     within 20 s; after a change of leader within 30 s, not 5 minutes.
//   - event_buffer_size: the event stream does not report gaps; 100 is the default.
//   - memory_oversubscription_enabled: see memory_max in nomad-jobs/brain.nomad.hcl.
//   - gc_*: a full disk or many ended allocations on a developer's machine must not
//     make the client destroy allocations.
//   - collection_interval: the metrics are not used, and by default a server publishes
//     those of every job each second.
//   - fingerprint.denylist: Nomad must not query the metadata services of clouds.
//   - verify_https_client: servers require a certificate from callers. Clients do not,
//     because Vault and Consul, which have none, fetch the keys of workload identities from
//     a client, and a browser gets the UI from one.
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

  default_scheduler_config {
    memory_oversubscription_enabled = true
  }
  {{- if .Join}}
  server_join {
    retry_join     = {{list .Join}}
    retry_interval = "1s"
  }
  {{- end}}
}

# A server that is down is restarted later.
autopilot {
  cleanup_dead_servers = false
}
{{else}}
client {
  enabled           = true
  servers           = {{list .Servers}}
  network_interface = {{q .Interface}}
  {{- if eq .Interface "lo"}}

  # lo has two addresses, and Nomad would use the whole port range on each of them.
  host_network "ipv6" {
    cidr           = "::1/128"
    reserved_ports = "{{index .Dynamic 0}}-{{index .Dynamic 1}}"
  }
  {{- end}}
  {{- if .State}}
  state_dir         = {{q .State}}
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
    allow_runtimes         = ["runc", "runsc", "kata"]
    {{- if .Catalog}}
    volumes {
      enabled = true
    }
    {{- end}}
    gc {
      image = false
      # If enabled, an agent removes the containers of all other agents of the same docker
      # daemon once they are five minutes old.
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
  ca_file   = {{q .Caller.CA}}
  cert_file = {{q .Caller.Cert}}
  key_file  = {{q .Caller.Key}}
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

// hclList formats a list of strings for HCL.
func hclList(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

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
