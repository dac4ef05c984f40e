package devstack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
)

// probeTimeout limits one probe of an agent, so that a probe that hangs is repeated.
const probeTimeout = 5 * time.Second

// httpClient returns a client without idle connections, which would outlive the stack.
func httpClient() *http.Client {
	return &http.Client{Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
}

// httpClient returns a client without idle connections that the stack's agents accept.
func (s *Stack) httpClient() *http.Client {
	return &http.Client{Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: s.TLS()}}
}

// startConsul starts a Consul agent and waits until it is usable.
func (s *Stack) startConsul(ctx context.Context, c Component) error {
	if err := s.agents[c].start(); err != nil {
		return err
	}
	return s.awaitConsul(ctx, c)
}

// awaitConsul waits until a write through a Consul agent succeeds, which needs a leader and,
// for a client agent, a connection to it. It also waits until the catalog has the node.
func (s *Stack) awaitConsul(ctx context.Context, c Component) error {
	client, err := s.consulClient(s.urls[c])
	if err != nil {
		return err
	}
	return s.agents[c].await(ctx, "a write to the KV store", func(ctx context.Context) error {
		// Without a leader, a write hangs for seconds, and this request does not.
		if leader, err := client.Status().Leader(); err != nil || leader == "" {
			return errors.Join(errors.New("there is no leader yet"), err)
		}
		key := "devstack/ready/" + string(c)
		w := (&consulapi.WriteOptions{}).WithContext(ctx)
		if _, err := client.KV().Put(&consulapi.KVPair{Key: key}, w); err != nil {
			return err
		}
		if _, err := client.KV().Delete(key, w); err != nil {
			return err
		}
		// Only serfHealth counts, because the checks of a killed Nomad are critical.
		checks, _, err := client.Health().Node(s.names[c], (&consulapi.QueryOptions{}).WithContext(ctx))
		if err != nil {
			return err
		}
		for _, check := range checks {
			if check.CheckID == "serfHealth" && check.Status == consulapi.HealthPassing {
				return nil
			}
		}
		return errors.New("the node is not in the catalog yet")
	})
}

// startNomad starts a Nomad agent and waits until it is usable.
func (s *Stack) startNomad(ctx context.Context, c Component) error {
	if err := s.agents[c].start(); err != nil {
		return err
	}
	if err := s.awaitNomad(ctx, c); err != nil || !isNomadServer(c) {
		return err
	}
	return s.lockNomad(ctx, c)
}

// awaitNomad waits until the server accepts clients, or until tasks can be placed
// on the client's node.
func (s *Stack) awaitNomad(ctx context.Context, c Component) error {
	cfg := s.NomadConfig()
	cfg.Address, cfg.HttpClient = s.urls[c], s.httpClient()
	self, err := nomadapi.NewClient(cfg)
	if err != nil {
		return err
	}
	if isNomadServer(c) {
		return s.awaitServer(ctx, c, self)
	}
	return s.agents[c].await(ctx, "a ready node", func(ctx context.Context) error {
		q := (&nomadapi.QueryOptions{AllowStale: false}).WithContext(ctx)
		health, err := self.Agent().Health()
		if err != nil {
			return err
		}
		if health.Client == nil || !health.Client.Ok {
			return errors.New("the agent is not healthy yet")
		}
		// After a restart the servers still report the node as ready. Its client has a
		// heartbeat TTL only after it has registered.
		about, err := self.Agent().Self()
		if err != nil {
			return err
		}
		if ttl := about.Stats["client"]["heartbeat_ttl"]; ttl == "" || ttl == "0s" {
			return errors.New("the client has not registered yet")
		}
		nodes, _, err := self.Nodes().List(q)
		if err != nil {
			return err
		}
		for _, stub := range nodes {
			// Compare ids, because a client that lost its state leaves an old node of the same
			// name.
			if stub.ID != about.Stats["client"]["node_id"] {
				continue
			}
			node, _, err := self.Nodes().Info(stub.ID, q)
			if err != nil {
				return err
			}
			return s.nodeReady(node)
		}
		return errors.New("the node is not registered yet")
	})
}

// awaitServer waits until the server has a leader and its keys. Before that it refuses
// clients, which then wait for 15 to 30 s.
func (s *Stack) awaitServer(ctx context.Context, c Component, self *nomadapi.Client) error {
	err := s.agents[c].await(ctx, "a leader", func(context.Context) error {
		health, err := self.Agent().Health()
		if err != nil {
			return err
		}
		if health.Server == nil || !health.Server.Ok {
			return errors.New("there is no leader yet")
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.awaitKeys(ctx, c)
}

// nodeReady returns an error that names what a node still lacks; nil: tasks can be placed.
func (s *Stack) nodeReady(node *nomadapi.Node) error {
	if node.Status != nomadapi.NodeStatusReady {
		return fmt.Errorf("the node is %s", node.Status)
	}
	drivers := []string{"raw_exec"}
	if s.cfg.DockerSocket != "" {
		drivers = append(drivers, "docker")
	}
	for _, name := range drivers {
		if d := node.Drivers[name]; d == nil || !d.Detected || !d.Healthy {
			reason := "not detected yet"
			if d != nil {
				reason = d.HealthDescription
			}
			return fmt.Errorf("driver %s is not healthy: %s", name, reason)
		}
	}
	for _, attr := range []string{"plugins.host_volume.mkdir.version", "consul.version", "vault.version"} {
		if node.Attributes[attr] == "" {
			return fmt.Errorf("the node has no %s yet", strings.TrimSuffix(attr, ".version"))
		}
	}
	return nil
}
