package commands

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/client"
)

func TestRegistryStatusCommand(t *testing.T) {
	vars, _ := answering(t, map[string]string{"GET /registry": `{"deployment_id": "d1", "registry_id": "r1", "epoch": 4, "state": "recovering", "why": "the epoch in Consul is 3, and in Vault 5",
		"since": "2026-11-24T06:19:47.024Z", "keys": "lost", "keys_lost_since": "2026-11-24T06:00:00Z", "keys_missing": 12, "quarantined": 2,
		"last_recovery": {"why": "an admin requested it", "began_at": "2026-11-23T06:00:00Z", "ended_at": "2026-11-23T06:00:01Z", "rebuilt": 7, "corrected": 5, "missing": 3, "products": 1, "pooled": 4}}`})
	code, stdout, stderr := orch(t, vars, "registry", "status")
	want := `Registry          recovering
  why             the epoch in Consul is 3, and in Vault 5
  since           2026-11-24 06:19:47Z
Keys              lost
  since           2026-11-24 06:00:00Z
Keys missing      12
Quarantined       2
Deployment        d1
Registry id       r1
Epoch             4
Last recovery     an admin requested it
  began           2026-11-23 06:00:00Z
  ended           2026-11-23 06:00:01Z
  engines         7 rebuilt, 5 corrected, 3 whose brain is missing
  products        1
  pooled volumes  4 forgotten
`
	if diff := cmp.Diff(want, stdout); code != 0 || stderr != "" || diff != "" {
		t.Errorf("exit code %d, stderr %q\n%s", code, stderr, diff)
	}
	var answer client.RegistryStatus
	if code, stdout, _ := orch(t, vars, "registry", "status", "-json"); code != 0 || json.Unmarshal([]byte(stdout), &answer) != nil || answer.Epoch != 4 || answer.LastRecovery.Rebuilt != 7 {
		t.Errorf("-json: %d, %q", code, stdout)
	}
}

func TestRecoverCommand(t *testing.T) {
	plan := `{"actions": [{"subject": "engine", "engine_id": "e1", "product_id": "p", "user_id": "u", "action": "rebuild", "why": "it has a user in Vault and no row"}]}`
	vars, asked := answering(t, map[string]string{"GET /registry/recover": plan, "POST /registry/recover": `{"status": "requested"}`})
	if code, stdout, _ := orch(t, vars, "registry", "recover", "-dry-run"); code != 0 || !strings.Contains(stdout, "rebuild  engine   e1      p        u     it has a user") {
		t.Errorf("-dry-run: %d, %q", code, stdout)
	}
	if code, stdout, _ := orch(t, vars, "registry", "recover", "-dry-run", "-json"); code != 0 || !strings.Contains(stdout, `"action": "rebuild"`) {
		t.Errorf("-dry-run -json: %d, %q", code, stdout)
	}
	if got := asked(); got != "GET /registry/recover, GET /registry/recover" {
		t.Errorf("a dry run called %s", got)
	}
	if code, stdout, _ := orch(t, vars, "registry", "recover"); code != 0 || stdout != "Status  requested\n" {
		t.Errorf("%d, %q", code, stdout)
	}
	if code, stdout, _ := orch(t, vars, "registry", "recover", "-json"); code != 0 || !strings.Contains(stdout, `"status": "requested"`) {
		t.Errorf("-json: %d, %q", code, stdout)
	}
	vars, _ = answering(t, map[string]string{"GET /registry/recover": `{"actions": []}`})
	if code, stdout, _ := orch(t, vars, "registry", "recover", "-dry-run"); code != 0 || stdout != "nothing to do\n" {
		t.Errorf("without any: %d, %q", code, stdout)
	}
	if code, stdout, _ := orch(t, vars, "registry", "recover", "-dry-run", "-json"); code != 0 || !strings.Contains(stdout, `"actions": []`) {
		t.Errorf("without any, -json: %d, %q", code, stdout)
	}
}

func TestQuarantineCommand(t *testing.T) {
	vars, _ := answering(t, map[string]string{"GET /quarantine": `{"engines": [{"engine_id": "e1", "since": "2026-11-24T06:19:47Z", "why": "no secret", "what": ["job", "volume"],
		"product_id": "", "user_id": "u", "node_id": "n"}, {"engine_id": "e2", "since": null, "why": "its record cannot be read", "what": [], "product_id": "", "user_id": "", "node_id": ""}], "total": 2}`})
	code, stdout, _ := orch(t, vars, "engine", "quarantine")
	want := `ENGINE  SINCE                 PRODUCT  USER  NODE  WHAT         WHY
e1      2026-11-24 06:19:47Z  -        u     n     job, volume  no secret
e2      -                     -        -     -     -            its record cannot be read
`
	if diff := cmp.Diff(want, stdout); code != 0 || diff != "" {
		t.Errorf("exit code %d\n%s", code, diff)
	}
	if code, stdout, _ := orch(t, vars, "engine", "quarantine", "-json"); code != 0 || !strings.Contains(stdout, `"total": 2`) {
		t.Errorf("-json: %d, %q", code, stdout)
	}
	vars, _ = answering(t, map[string]string{"GET /quarantine": `{"engines": [], "total": 0}`})
	if code, stdout, _ := orch(t, vars, "engine", "quarantine"); code != 0 || stdout != "no engine is quarantined\n" {
		t.Errorf("without any: %d, %q", code, stdout)
	}
}

func TestAdoptAndDiscardCommands(t *testing.T) {
	vars, asked := answering(t, map[string]string{
		"GET /products/p":           `{"product_id": "p"}`,
		"POST /quarantine/e1/adopt": `{"engine_id": "e1", "product_id": "p", "user_id": "u", "status": "stopped"}`,
		"DELETE /quarantine/e1":     `{"status": "discarded", "engine_id": "e1"}`,
	})
	if code, stdout, _ := orch(t, vars, "engine", "adopt", "e1", "-product", "p", "-user", "u"); code != 0 || stdout != "Product  p\nUser     u\nEngine   e1\nStatus   stopped\n" {
		t.Errorf("%d, %q", code, stdout)
	}
	if code, _, stderr := orch(t, vars, "engine", "adopt", "e2"); code != 1 || !strings.Contains(stderr, "VOLUME_NOT_FOUND") {
		t.Errorf("an unknown one: %d, %q", code, stderr)
	}
	before := asked()
	if code, _, stderr := orch(t, vars, "engine", "discard", "e1"); code != 2 || !strings.Contains(stderr, "give -yes") || asked() != before {
		t.Errorf("unconfirmed: %d, %q, it called %q", code, stderr, asked())
	}
	if code, stdout, _ := orch(t, vars, "engine", "discard", "e1", "-yes"); code != 0 || stdout != "Engine  e1\nStatus  discarded\n" {
		t.Errorf("%d, %q", code, stdout)
	}
}

func TestRekeyCommand(t *testing.T) {
	rekeyed := func(answer string) []string {
		vars, _ := answering(t, map[string]string{"POST /registry/rekey": answer})
		return vars
	}
	if code, stdout, _ := orch(t, rekeyed(`{"rekeyed": 3, "at_start": 2, "failed": 0, "left": 0}`), "engine", "rekey"); code != 0 || stdout != "Rekeyed              3\nAt their next start  2\nFailed               0\nLeft                 0\n" {
		t.Errorf("%d, %q", code, stdout)
	}
	if code, stdout, _ := orch(t, rekeyed(`{"rekeyed": 3, "at_start": 2, "failed": 1, "left": 0}`), "engine", "rekey", "-json"); code != 1 || !strings.Contains(stdout, `"failed": 1`) {
		t.Errorf("-json with a failed one: %d, %q", code, stdout)
	}
}

// TestRekeyAll: it continues while there is progress.
func TestRekeyAll(t *testing.T) {
	down := errors.New("it is down")
	for name, c := range map[string]struct {
		answers []client.Rekeyed
		want    client.Rekeyed
		err     error
	}{
		"all at once":        {[]client.Rekeyed{{Rekeyed: 5}}, client.Rekeyed{Rekeyed: 5}, nil},
		"none":               {[]client.Rekeyed{{AtStart: 5}}, client.Rekeyed{AtStart: 5}, nil},
		"in several calls":   {[]client.Rekeyed{{Rekeyed: 40, AtStart: 2, Left: 50}, {Rekeyed: 40, AtStart: 2, Left: 10}, {Rekeyed: 10, AtStart: 2}}, client.Rekeyed{Rekeyed: 90, AtStart: 2}, nil},
		"a slow beginning":   {[]client.Rekeyed{{Failed: 4, Left: 50}, {Rekeyed: 50, Failed: 4}}, client.Rekeyed{Rekeyed: 50, Failed: 4}, nil},
		"nothing moves":      {[]client.Rekeyed{{Rekeyed: 4, Left: 3}, {Left: 3}}, client.Rekeyed{Rekeyed: 4, Left: 3}, nil},
		"fewer without keys": {[]client.Rekeyed{{Left: 3}, {Left: 2}, {Left: 2}}, client.Rekeyed{Left: 2}, nil},
		"interrupted":        {[]client.Rekeyed{{Rekeyed: 4, Left: 3}}, client.Rekeyed{}, down},
	} {
		left := c.answers
		got, err := rekeyAll(func() (*client.Rekeyed, error) {
			if len(left) == 0 {
				return nil, down
			}
			next := left[0]
			left = left[1:]
			return &next, nil
		})
		if !errors.Is(err, c.err) || len(left) > 0 || err == nil && *got != c.want {
			t.Errorf("%s: got %+v, %v, and %d responses remain", name, got, err, len(left))
		}
	}
}
