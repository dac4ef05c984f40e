package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/secrets"
)

const (
	dockerImage = "orch/reference-engine:1"
	// dockerUser is the user of the job file's containers.
	dockerUser = "65532:65532"
	// stackLabel is by what a stack finds the containers to look at when it is
	// ended; those that mount something from its directory it removes.
	stackLabel = "com.hashicorp.nomad.alloc_id"
	// dockerWithin bounds each call of the docker command.
	dockerWithin = 30 * time.Second
)

// docker is the engine that DOCKER_HOST names.
type docker struct {
	socket  string
	version string
}

// findDocker returns the docker engine that answers, or why there is none.
func findDocker(ctx context.Context) (*docker, error) {
	d := &docker{socket: os.Getenv("DOCKER_HOST")}
	if d.socket == "" {
		d.socket = "unix:///var/run/docker.sock"
	}
	if !strings.HasPrefix(d.socket, "unix:///") {
		return nil, fmt.Errorf("DOCKER_HOST is not a Unix socket")
	}
	version, err := d.command(ctx, "version", "--format", "{{.Server.Version}}")
	if err != nil {
		return nil, fmt.Errorf("no docker engine answers on DOCKER_HOST")
	}
	d.version = version
	return d, nil
}

func (d *docker) command(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, dockerWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.socket)
	cmd.SysProcAttr = childAttributes()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// buildImage builds the reference engine's image from this checkout.
func (d *docker) buildImage(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "cmd/reference-engine/build-image.sh", dockerImage)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the engine's image: %w:\n%s", err, out)
	}
	return nil
}

// container is an engine run by `docker run`.
type container struct {
	name string
	addr string
	args []string
}

// container prepares one with the settings of the job file, its brain in a
// directory below dir. Both this and the label let the stack remove what is left of
// it, however this program ends.
func (d *docker) container(dir string, ask registry.Resources) (*container, error) {
	name := "by-hand-" + strings.ToLower(rand.Text())
	brain := filepath.Join(dir, name)
	if err := os.MkdirAll(brain, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(brain, 0o777); err != nil { // the container has a user of its own
		return nil, err
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := free.Addr().String()
	if err := free.Close(); err != nil {
		return nil, err
	}
	return &container{name: name, addr: addr, args: []string{
		"run", "-d", "--name", name, "--label", stackLabel + "=" + name, "-p", addr + ":8000", "-v", brain + ":/data",
		"--user", dockerUser, "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "256",
		"--cpu-shares", strconv.Itoa(ask.CPUMHz), "--memory", strconv.Itoa(ask.MemoryMB) + "m",
		"-e", "ENGINE_KEY_HASH=" + secrets.Hash(secrets.NewEngineKey()), "-e", "SQLITE_DB_PATH=/data/brain.sqlite",
		"-e", "CATALOG_DIR=/catalog", "-e", "PORT=8000", dockerImage,
	}}, nil
}

// run starts the container and returns when the engine answers.
func (d *docker) run(ctx context.Context, c *container) (timing, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	// Not cut short: a command that is killed may leave a container that comes
	// to be only after the stack has looked for those to remove.
	if _, err := d.command(context.WithoutCancel(ctx), c.args...); err != nil {
		return timing{}, errors.Join(err, d.remove(context.WithoutCancel(ctx), c))
	}
	started := time.Now()
	if err := awaitHealthy(ctx, c.addr); err != nil {
		return timing{}, err
	}
	healthy := time.Now()
	return timing{total: millis(healthy.Sub(began)), steps: map[string]float64{
		"docker run": millis(started.Sub(began)), "health": millis(healthy.Sub(started)),
	}}, nil
}

// taskStarted waits until the container that Nomad makes for an allocation runs.
// By hand and on one machine this can be known: a probe that reaches a published
// port before the container's network is up costs a second (ARP, SYN retry).
func (d *docker) taskStarted(ctx context.Context, allocID string) error {
	filters, err := json.Marshal(map[string][]string{"container": {"engine-" + allocID}, "event": {"start"}})
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(d.socket, "unix://"))
		},
	}}
	// From a moment before: the container may be there already.
	since := strconv.FormatInt(time.Now().Add(-time.Second).Unix(), 10)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/events?since="+since+"&filters="+url.QueryEscape(string(filters)), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var event json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&event); err != nil {
		return fmt.Errorf("waiting for docker's start event: %w", err)
	}
	return nil
}

// remove ends the container.
func (d *docker) remove(ctx context.Context, c *container) error {
	_, err := d.command(ctx, "rm", "-f", c.name)
	return err
}
