package jobs

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/nomad/api"
	"go.uber.org/goleak"

	"github.com/septemberai/orch/internal/devstack"
	nomadjobs "github.com/septemberai/orch/nomad-jobs"
)

// stack contains the Nomad that parses and validates; the first test that needs it starts
// it.
var (
	stack *devstack.Stack
	start = sync.OnceValue(func() (err error) {
		stack, err = devstack.Start(context.Background(), devstack.Config{InMemory: true})
		return err
	})
)

func TestMain(m *testing.M) {
	code := m.Run()
	if stack != nil {
		if err := stack.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func nomadClient(t *testing.T) *api.Client {
	t.Helper()
	if err := start(); err != nil {
		t.Fatal(err)
	}
	c, err := api.NewClient(&api.Config{Address: stack.NomadAddr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// settings returns the settings of a service that runs engines with a driver.
func settings(driver Driver) Settings {
	return Settings{
		HCL: nomadjobs.Engine, Driver: driver, KeyReload: "restart", BinDir: "/opt/engines", CatalogPath: "/srv/catalog",
		ProviderKeysPath: "orch/data/engine-env", CheckIntervalS: 30, CheckTimeoutS: 10, CheckMaxFailures: 3,
		Namespace: "default", Deployment: "orch",
	}
}

var drivers = []Driver{Docker, RawExec}

// parsed returns the default job file as parsed by Nomad.
func parsed(t *testing.T, s Settings) *Template {
	t.Helper()
	tmpl, err := Parse(t.Context(), nomadClient(t), s)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}

// edited returns the default job file with one passage replaced.
func edited(t *testing.T, old, by string) string {
	t.Helper()
	if strings.Count(nomadjobs.Engine, old) != 1 {
		t.Fatalf("%q is %d times in the default job file, want once", old, strings.Count(nomadjobs.Engine, old))
	}
	return strings.Replace(nomadjobs.Engine, old, by, 1)
}

// engine returns an Engine with all fields set.
func engine(user string) Engine {
	return Engine{
		JobID: "engine-e1", EngineID: "e1", DeploymentID: "d1", ProductID: "p1", ProductName: "acme", UserID: user, Image: "engine",
		CPUMHz: 123, MemoryMB: 456, NodeID: "6ab8ae6f-2f7e-47b6-9a5f-2d6a6ba1c3a1", NodePool: "engines", VolumePath: "/volumes/e1", Count: 1,
	}
}
