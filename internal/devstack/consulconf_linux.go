package devstack

import (
	"encoding/json"
	"os"
)

// consulNode contains the values in the configuration of one Consul agent.
type consulNode struct {
	Name, Dir          string
	Bind, Client       string // addresses of the cluster's traffic and of the API
	Server             bool
	HTTP, RPC, SerfLAN int
	Expect, Raft       int      // number of servers, and the multiplier of their timeouts
	Join               []string // host:port of the servers' SerfLAN; empty for a single server
	StockLimits        bool     // keep Consul's limits of connections per client address
	GRPC               int      // port, on a locked stack
	TLS                tlsFiles
	Root, Agent        string // tokens: the operator's, for servers, and the agent's
}

// secure adds the agent's certificate and tokens. It does nothing on an open stack.
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
		// Servers start before their token exists: see setAgentToken.
		conf["acl"] = map[string]any{"enabled": true, "default_policy": "deny", "enable_token_persistence": true, "tokens": tokens}
	}
	if !n.StockLimits {
		conf["limits"] = map[string]any{"http_max_conns_per_client": 2000, "rpc_max_conns_per_client": 2000}
	}
	if n.Server {
		conf["bootstrap_expect"] = n.Expect
		conf["performance"] = map[string]any{"raft_multiplier": n.Raft}
		conf["autopilot"] = map[string]any{"cleanup_dead_servers": false} // a server that is down is restarted later
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
