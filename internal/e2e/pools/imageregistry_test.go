package pools

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// imageRegistry is a container registry for a test, from Debian's package, on a free
// loopback port.
type imageRegistry struct {
	t    *testing.T
	dir  string
	addr string
	cmd  *exec.Cmd
}

// needRegistry skips a test if no registry is installed; in CI the test fails.
func needRegistry(t *testing.T) {
	t.Helper()
	harness.NeedDocker(t)
	if _, err := exec.LookPath("docker-registry"); err == nil {
		return
	}
	const how = "no container registry here: apt-get install -y docker-registry"
	if os.Getenv("CI") == "true" {
		t.Fatal(how)
	}
	t.Skip(how)
}

func startRegistry(t *testing.T) *imageRegistry {
	t.Helper()
	g := &imageRegistry{t: t, dir: t.TempDir(), addr: harness.FreeAddr(t)}
	config := fmt.Sprintf("version: 0.1\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: %s}\n",
		filepath.Join(g.dir, "data"), g.addr)
	if err := os.WriteFile(filepath.Join(g.dir, "config.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.stop)
	g.start()
	return g
}

func (g *imageRegistry) start() {
	g.t.Helper()
	g.cmd = exec.Command("docker-registry", "serve", filepath.Join(g.dir, "config.yml"))
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	harness.Eventually(g.t, "the container registry responds", func() error {
		_, err := g.call(http.MethodGet, "/v2/")
		return err
	})
}

func (g *imageRegistry) stop() {
	if g.cmd != nil {
		_ = g.cmd.Process.Kill()
		_ = g.cmd.Wait()
		g.cmd = nil
	}
}

func (g *imageRegistry) call(method, path string) (http.Header, error) {
	r, err := http.NewRequestWithContext(g.t.Context(), method, "http://"+g.addr+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json")
	r.Close = true
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	_ = answer.Body.Close()
	if answer.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %s", method, path, answer.Status)
	}
	return answer.Header, nil
}

func (g *imageRegistry) image(tag string) string { return g.addr + "/engine:" + tag }

// push sets a tag to one of the reference engine's images, and returns its digest.
func (g *imageRegistry) push(tag, name string) string {
	g.t.Helper()
	g.tag(tag, name)
	return g.upload(tag)
}

// pushNew sets a tag to a new image of the reference engine with a switch.
func (g *imageRegistry) pushNew(tag, name string) {
	g.t.Helper()
	build := exec.Command("sh", harness.Repository+"/cmd/reference-engine/build-image.sh", g.image(tag)+"="+name)
	if out, err := build.CombinedOutput(); err != nil {
		g.t.Fatalf("build the image: %v: %s", err, out)
	}
	g.upload(tag)
}

func (g *imageRegistry) upload(tag string) string {
	g.t.Helper()
	dockerCommand(g.t, "push", "-q", g.image(tag))
	dockerCommand(g.t, "rmi", g.image(tag)) // so that nodes must pull it
	header, err := g.call(http.MethodHead, "/v2/engine/manifests/"+tag)
	if err != nil {
		g.t.Fatal(err)
	}
	return header.Get("Docker-Content-Digest")
}

// tag creates an image of that name on the nodes, but not in the registry.
func (g *imageRegistry) tag(tag, name string) {
	g.t.Helper()
	dockerCommand(g.t, "tag", harness.Docker.Image(name), g.image(tag))
}

// remove removes a digest, and the tags that point to it, from the registry.
func (g *imageRegistry) remove(digest string) {
	g.t.Helper()
	if _, err := g.call(http.MethodDelete, "/v2/engine/manifests/"+digest); err != nil {
		g.t.Fatal(err)
	}
}

func dockerCommand(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// slowly returns the address of a proxy to the registry that serves no layer until let is
// called.
func (g *imageRegistry) slowly() (addr string, let func()) {
	g.t.Helper()
	held := make(chan struct{})
	let = sync.OnceFunc(func() { close(held) })
	to := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: g.addr})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/blobs/") {
			select {
			case <-held:
			case <-r.Context().Done():
				return
			}
		}
		to.ServeHTTP(w, r)
	}))
	g.t.Cleanup(s.Close)
	g.t.Cleanup(let)
	return s.Listener.Addr().String(), let
}
