// Breakout is an engine that was taken over: over the task API that Nomad puts into every
// task it tries to run commands as root and to read what other engines may know.
package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	socket := filepath.Join(os.Getenv("NOMAD_SECRETS_DIR"), "api.sock")
	api := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	job := `{"Job": {"ID": "engine-broke-out", "Type": "batch", "Datacenters": ["*"], "TaskGroups": [{"Name": "g", "Tasks": [
		{"Name": "t", "Driver": "raw_exec", "Config": {"command": "/bin/true"}}]}]}}`
	tries := map[string]string{} // the status of each try, or its error
	for name, token := range map[string]string{"no token": "", "any UUID": "c0ffee00-0000-4000-8000-000000000000", "its identity": os.Getenv("NOMAD_TOKEN")} {
		for what, try := range map[string]struct{ method, path, body string }{
			"run as root":        {http.MethodPut, "/v1/jobs", job},
			"another's variable": {http.MethodGet, "/v1/var/nomad/jobs/engine-other", ""},
			"its own variable":   {http.MethodGet, "/v1/var/nomad/jobs/" + os.Getenv("NOMAD_JOB_ID"), ""},
		} {
			req, err := http.NewRequest(try.method, "http://nomad"+try.path+"?namespace="+os.Getenv("NOMAD_NAMESPACE"), strings.NewReader(try.body))
			if err != nil {
				panic(err)
			}
			if token != "" {
				req.Header.Set("X-Nomad-Token", token)
			}
			resp, err := api.Do(req)
			if err != nil {
				tries[what+", "+name] = err.Error()
				continue
			}
			_ = resp.Body.Close()
			tries[what+", "+name] = resp.Status
		}
	}
	out, err := json.Marshal(map[string]any{"uid": os.Getuid(), "tries": tries})
	if err != nil {
		panic(err)
	}
	file := filepath.Join(os.Getenv("NOMAD_ALLOC_DIR"), "data", "tries")
	if err := os.WriteFile(file+".new", out, 0o644); err != nil {
		panic(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		panic(err)
	}
	select {}
}
