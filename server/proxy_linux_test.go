package server_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/septemberai/orch/client"
)

// documented returns the only code block of a language in docs/operations.md.
func documented(t *testing.T, language string) string {
	t.Helper()
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllSubmatch(page, -1)
	if len(blocks) != 1 {
		t.Fatalf("operations.md has %d blocks of %s", len(blocks), language)
	}
	return string(blocks[0][1])
}

// replace fails unless it replaces something.
func replace(t *testing.T, text string, oldnew ...string) string {
	t.Helper()
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			t.Fatalf("%q is not in\n%s", oldnew[i], text)
		}
		text = strings.ReplaceAll(text, oldnew[i], oldnew[i+1])
	}
	return text
}

// startProxy runs an installed proxy in a separate directory, and returns a client of the
// socket that it listens on. config gets that socket's path.
func startProxy(t *testing.T, program string, config func(socket string) string, args func(file string) []string) *http.Client {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + program)
	}
	if err != nil {
		t.Skipf("%s is not installed (Debian's packages: nginx-light, haproxy)", program)
	}
	dir, err := os.MkdirTemp("", program) // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, file := filepath.Join(dir, "s"), filepath.Join(dir, "config")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(config(socket), "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cmd := exec.Command(path, args(file)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = cmd.Process.Kill()
		if err := <-ended; err == nil {
			t.Errorf("%s ended by itself", program)
		}
		if t.Failed() {
			t.Logf("output of %s:\n%s", program, said.String())
		}
	})
	through := &http.Client{Transport: transport}
	deadline := time.After(time.Minute)
	for {
		if err := (&client.Client{BaseURL: "http://proxy", HTTP: through}).Live(t.Context()); err == nil {
			return through
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v", program, err)
		case <-deadline:
			t.Fatalf("%s does not pass calls on", program)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// nginx runs nginx with the given server blocks.
func nginx(t *testing.T, servers func(socket string) string) *http.Client {
	return startProxy(t, "nginx", func(socket string) string {
		return "daemon off; master_process off; pid DIR/pid; error_log stderr;\nevents {}\nhttp { access_log off; client_body_temp_path DIR/b; proxy_temp_path DIR/p; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/c;\n" + servers(socket) + "}\n"
	}, func(file string) []string { return []string{"-e", "stderr", "-c", file} })
}

// hostile are user_ids whose path a proxy that decodes, cleans or merges paths changes into
// that of another user or endpoint.
var hostile = []string{
	"/a", "a/", "//a", "a//", "/a/", "./a", "a/.", "x/../a", "../engines/a", "../engines", "../status", "../products/p", ".", "..", "x/y/../../a", "%61", "a%2F", "%2Fa",
	"x/..%2Fa", "a?", "a?x=1", "a#", "a#x", "a;x", "a/start", "a/admit", "a/rotate-key", "provision/../a", "a\\", "a\\..\\a", "a ", " a", "a+", "A",
}

// testProxies: whatever a proxy does to a path, no call concerns another user than the
// intended one, and with the settings in operations.md all calls work.
func testProxies(t *testing.T, a *api) {
	direct := &client.Client{BaseURL: a.url, PlatformKey: a.key, HTTP: a.http}
	victim, err := direct.Provision(t.Context(), "a", "")
	if err != nil {
		t.Fatal(err)
	}
	upstream := strings.TrimPrefix(a.url, "http://")
	for name, start := range map[string]func(*testing.T) *http.Client{
		"nginx that decodes": func(t *testing.T) *http.Client { // the usual configuration
			return nginx(t, func(socket string) string {
				return "server { listen unix:" + socket + "; location / { proxy_pass " + a.url + "/; } }"
			})
		},
		"nginx that strips a prefix": func(t *testing.T) *http.Client {
			return nginx(t, func(socket string) string {
				return "server { listen unix:" + socket + "; location = /live { proxy_pass " + a.url + "; } location / { rewrite ^/(.*)$ /$1 break; proxy_pass " + a.url + "; } }"
			})
		},
		"nginx as documented": func(t *testing.T) *http.Client {
			return nginx(t, func(socket string) string {
				return replace(t, documented(t, "nginx"), "listen 8080;", "listen unix:"+socket+";", "127.0.0.1:8000", upstream)
			})
		},
		"haproxy as documented": func(t *testing.T) *http.Client {
			return startProxy(t, "haproxy", func(socket string) string {
				return replace(t, documented(t, "haproxy"), "bind :8080", "bind unix@"+socket, "127.0.0.1:8000", upstream)
			}, func(file string) []string { return []string{"-db", "-f", file} })
		},
	} {
		t.Run(name, func(t *testing.T) {
			through := start(t)
			clean := strings.HasSuffix(name, "documented")
			c := &client.Client{BaseURL: "http://proxy", PlatformKey: a.key, HTTP: through}
			if got, err := c.Engine(t.Context(), "a"); err != nil || got.EngineID != victim.EngineID {
				t.Fatalf("the user itself: %+v, %v", got, err)
			}
			for _, user := range hostile {
				for call, err := range callsOf(t.Context(), c, user) {
					var answered *client.Error
					if !errors.As(err, &answered) {
						t.Errorf("%s of %q: %v", call, user, err)
					} else if want := callsOf(t.Context(), direct, user)[call]; clean && fmt.Sprint(answered.Code) != codeOf(want) {
						t.Errorf("%s of %q: %v, without the proxy %v", call, user, err, want)
					}
				}
				// A caller that sends no header is safe if the proxy does not change the
				// path.
				if clean {
					path := "http://proxy/engines/" + url.PathEscape(user)
					for _, c := range [][2]string{{"GET", path}, {"DELETE", path}, {"POST", path + "/admit"}, {"POST", path + "/rotate-key"}} {
						req, err := http.NewRequestWithContext(t.Context(), c[0], c[1], nil)
						if err != nil {
							t.Fatal(err)
						}
						req.Header.Set("X-Platform-Key", a.key)
						resp, err := through.Do(req)
						if err != nil {
							t.Fatal(err)
						}
						_ = resp.Body.Close()
						if denied := strings.HasSuffix(c[1], "/admit") && resp.StatusCode == 200; !denied && resp.StatusCode != 400 && resp.StatusCode != 404 {
							t.Errorf("%s %s: %d", c[0], c[1], resp.StatusCode)
						}
					}
				}
			}
			if got, err := direct.Engine(t.Context(), "a"); err != nil || got.EngineID != victim.EngineID || got.APIKey != victim.APIKey || got.Status != client.Running {
				t.Errorf("the other user's engine is %+v, %v", got, err)
			}
		})
	}
	if _, err := direct.Destroy(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

// callsOf makes every call about a user without an engine, and returns the errors. A denied
// admit counts as an error.
func callsOf(ctx context.Context, c *client.Client, user string) map[string]error {
	_, get := c.Engine(ctx, user)
	_, stop := c.Stop(ctx, user)
	_, start := c.Start(ctx, user)
	_, rotate := c.RotateKey(ctx, user)
	_, awake := c.KeepAwake(ctx, user, time.Minute)
	admission, admit := c.Admit(ctx, user, client.AdmitOptions{})
	if admit == nil && !admission.Admitted && admission.Engine == nil {
		admit = &client.Error{Code: client.Code(admission.Reason)}
	}
	_, destroy := c.Destroy(ctx, user)
	return map[string]error{"get": get, "stop": stop, "start": start, "rotate-key": rotate, "keep-awake": awake, "admit": admit, "destroy": destroy}
}

func codeOf(err error) string {
	var e *client.Error
	if errors.As(err, &e) {
		return string(e.Code)
	}
	return fmt.Sprint(err)
}
