package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	vault "github.com/hashicorp/vault/api"
)

// machine is the shape of what it was measured on.
type machine struct {
	CPU       string  `json:"cpu"`
	Cores     int     `json:"cores"`
	MemoryMiB float64 `json:"memory_mib"`
	Kernel    string  `json:"kernel"`
	// Load is the load average of the minute before: what else ran here.
	Load string `json:"load_before"`
}

// thisMachine leaves out what cannot be found.
func thisMachine() machine {
	m := machine{Cores: runtime.NumCPU(), Kernel: firstLine("/proc/sys/kernel/osrelease")}
	m.MemoryMiB, _ = procMiB("/proc/meminfo", "MemTotal:")
	if load := strings.Fields(firstLine("/proc/loadavg")); len(load) > 0 {
		m.Load = load[0]
	}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	return m
}

func firstLine(file string) string {
	text, _ := os.ReadFile(file)
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// procMiB reads a line "Name:  1234 kB" of a file in /proc.
func procMiB(file, name string) (float64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if field := strings.Fields(line); len(field) == 3 && field[0] == name {
			kib, err := strconv.ParseFloat(field[1], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}

// commit is the checkout's, marked when there are changes on top of it.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--exclude=*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// versionsOf asks everything that takes part for its version.
func versionsOf(ctx context.Context, r *rig) (map[string]string, error) {
	versions := map[string]string{"go": runtime.Version()}
	out, err := exec.CommandContext(ctx, filepath.Join(r.dir, "orch"), "version").Output()
	if err != nil {
		return nil, fmt.Errorf("orch version: %w", err)
	}
	versions["orch"] = strings.TrimPrefix(strings.TrimSpace(string(out)), "orch ")
	n, err := nomad.NewClient(&nomad.Config{Address: r.stack.NomadAddr})
	if err != nil {
		return nil, err
	}
	nodes, _, err := n.Nodes().List((&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil || len(nodes) == 0 {
		return nil, errors.Join(err, errors.New("the stack has no node"))
	}
	node, _, err := n.Nodes().Info(nodes[0].ID, (&nomad.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	versions["nomad"] = node.Attributes["nomad.version"]
	versions["cgroups"] = node.Attributes["os.cgroups.version"]
	c, err := consul.NewClient(&consul.Config{Address: r.stack.ConsulAddr})
	if err != nil {
		return nil, err
	}
	self, err := c.Agent().Self()
	if err != nil {
		return nil, err
	}
	versions["consul"] = fmt.Sprint(self["Config"]["Version"])
	v, err := vault.NewClient(&vault.Config{Address: r.stack.VaultAddr})
	if err != nil {
		return nil, err
	}
	health, err := v.Sys().HealthWithContext(ctx)
	if err != nil {
		return nil, err
	}
	versions["vault"] = health.Version
	if r.docker != nil {
		versions["docker"] = r.docker.version
	}
	return versions, nil
}
