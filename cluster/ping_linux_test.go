package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"

	"github.com/septemberai/orch/internal/devstack"
)

// Ping uses the service's own token for what the service needs, and distinguishes a Nomad
// that refuses it from one that is unavailable.
func TestPing(t *testing.T) {
	address := startNomad(t, true)
	pinged := func(address, token string) error {
		client, err := api.NewClient(&api.Config{Address: address, SecretID: token})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		return New(client, "default", Mkdir, hclog.NewNullLogger()).Ping(t.Context())
	}
	client, err := api.NewClient(&api.Config{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var root *api.ACLToken
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		if root, _, err = client.ACLTokens().Bootstrap((&api.WriteOptions{}).WithContext(ctx)); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err := pinged(address, root.SecretID); err != nil {
		t.Errorf("with a token that may: %v", err)
	}
	for name, token := range map[string]string{"without a token": "", "with one that is not there any more": "c0ffee00-0000-0000-0000-000000000000"} {
		if err := pinged(address, token); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := pinged("http://127.0.0.1:1", root.SecretID); !errors.Is(err, ErrUnavailable) {
		t.Errorf("if Nomad is unavailable: %v", err)
	}
}

// CheckACL reports whether ACLs are on, with every token, and knows that it does not know.
func TestCheckACL(t *testing.T) {
	check := func(address, token string) error {
		client, err := api.NewClient(&api.Config{Address: address, SecretID: token})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		return New(client, "default", Mkdir, hclog.NewNullLogger()).CheckACL(t.Context())
	}
	for _, acl := range []bool{true, false} {
		address := startNomad(t, acl)
		for name, token := range map[string]string{"without a token": "", "with an unknown token": "c0ffee00-0000-0000-0000-000000000000"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := check(address, token)
			for ; errors.Is(err, ErrUnavailable); err = check(address, token) { // it has just started
				select {
				case <-ctx.Done():
					t.Fatal(err)
				case <-time.After(50 * time.Millisecond):
				}
			}
			if acl && err != nil || !acl && !errors.Is(err, ErrOpen) {
				t.Errorf("ACLs on: %t, %s: %v", acl, name, err)
			}
		}
	}
	if err := check("http://127.0.0.1:1", ""); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrOpen) {
		t.Errorf("if Nomad is unavailable: %v", err)
	}
}

// startNomad returns the address of a separate server, which ends with the test. With acl it
// refuses requests without a token.
func startNomad(t *testing.T, acl bool) string {
	t.Helper()
	binaries, err := devstack.Tools(t.Context(), devstack.ToolOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var ports [3]int
	var held [3]net.Listener
	for i := range ports {
		if held[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		ports[i] = held[i].Addr().(*net.TCPAddr).Port
	}
	for _, l := range held {
		_ = l.Close()
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "nomad.hcl")
	config := fmt.Sprintf(`
bind_addr            = "127.0.0.1"
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
data_dir             = %q
disable_update_check = true
ports {
  http = %d
  rpc  = %d
  serf = %d
}
server {
  enabled          = true
  bootstrap_expect = 1
}
acl {
  enabled = %t
}
consul {
  auto_advertise   = false
  server_auto_join = false
  client_auto_join = false
}
`, filepath.Join(dir, "data"), ports[0], ports[1], ports[2], acl)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binaries.Nomad, "agent", "-config="+file, "-log-level=error")
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "GOMAXPROCS=2"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // its data is not needed
		_ = cmd.Wait()
	})
	return fmt.Sprintf("http://127.0.0.1:%d", ports[0])
}
