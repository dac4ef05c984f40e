package jobs

import (
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
)

// TestDefaultJobFile: it obeys all rules with all settings.
func TestDefaultJobFile(t *testing.T) {
	for _, driver := range drivers {
		for _, reload := range []string{"restart", "signal"} {
			for _, keys := range []string{"", "orch/data/engine-env"} {
				s := settings(driver)
				s.KeyReload, s.ProviderKeysPath = reload, keys
				parsed(t, s)
				s.PKIPath = pkiPath
				parsed(t, s)
			}
		}
	}
	bare := settings(Docker)
	bare.CatalogPath = ""
	parsed(t, bare)
}

const (
	updateBlock = `    update {
      max_parallel = 0
    }
`
	restartBlock = `    restart {
      attempts = 2
      interval = "10m"
      delay    = "5s"
      mode     = "fail"
    }
`
	rescheduleBlock = `    reschedule {
      attempts  = 0
      unlimited = false
    }
`
	disconnectBlock = `    disconnect {
      lost_after = "8760h"
      replace    = false
      reconcile  = "keep_original"
    }
`
	mountBlock = `      dynamic "volume_mount" {
        for_each = var.driver == "docker" ? ["brain"] : []
        content {
          volume      = "brain"
          destination = "/data"
        }
      }
`
	vaultBlock = `          change_mode  = "noop"
          env          = false`
	keyHashHead = `        env         = true
        change_mode = var.key_reload == "signal" ? "noop" : "restart"
        splay       = "0s"
`
	providerHead = `          env         = true
          change_mode = "noop"
`
	checkPath = `          path                     = "/health"
`
	servicePort = `        port     = "http"

`
)

// brokenRules has a case for each rule: a change of the default job file, and a part of the
// text of the only resulting problem.
var brokenRules = map[string]struct{ old, by, names string }{
	"job type":               {`  type = "service"`, `  type = "batch"`, "type must be"},
	"one group":              {`job "engine" {`, `job "engine" {` + "\n group \"other\" {\n task \"t\" {\n driver = \"raw_exec\"\n }\n }\n", "exactly one group, found 2"},
	"one task":               {`    task "engine" {`, "    task \"other\" {\n driver = \"raw_exec\"\n }\n    task \"engine\" {", "exactly one task, found 2"},
	"driver":                 {`driver = var.driver` + "\n", `driver = "exec"` + "\n", "driver"},
	"no mount":               {mountBlock, "", "/data"},
	"mount elsewhere":        {`destination = "/data"`, `destination = "/other"`, "/data"},
	"no port":                {`port "http" {`, `port "web" {`, "dynamic port"},
	"static port":            {`to = var.driver`, "static = 8080\n to = var.driver", "dynamic port"},
	"volume of another name": {`volume "brain" {`, `volume "other" {`, `claim a volume named "brain"`},
	"volume type":            {`      type            = "host"`, `      type            = "csi"`, `type "host"`},
	"two writers":            {`access_mode     = "single-node-single-writer"`, `access_mode     = "single-node-writer"`, "access_mode"},
	"no access mode":         {`      access_mode     = "single-node-single-writer"` + "\n", "", "access_mode"},
	"read-only volume":       {`source          = "engine"`, "source = \"engine\"\n read_only = true", "read-only"},
	"no update":              {updateBlock, "", "max_parallel"},
	"max_parallel":           {updateBlock, "update {\n max_parallel = 1\n }\n", "max_parallel"},
	"no restart":             {restartBlock, "", "restart"},
	"restart mode":           {`mode     = "fail"`, `mode     = "delay"`, "restart"},
	"no reschedule":          {rescheduleBlock, "", "reschedule"},
	"reschedule attempts":    {`attempts  = 0`, `attempts  = 1`, "reschedule"},
	"reschedule unlimited":   {`unlimited = false`, `unlimited = true`, "reschedule"},
	"lost_after":             {`      lost_after = "8760h"` + "\n", "", "lost_after"},
	"replace":                {`replace    = false`, `replace    = true`, "replace"},
	"no replace":             {`      replace    = false` + "\n", "", "replace"},
	"once":                   {keyHashHead, keyHashHead + "once = true\n", "once"},
	"splay":                  {keyHashHead, strings.Replace(keyHashHead, `splay       = "0s"`, "", 1), "splay"},
	"splay of a second":      {keyHashHead, strings.Replace(keyHashHead, `"0s"`, `"1s"`, 1), "splay"},
	"env":                    {keyHashHead, strings.Replace(keyHashHead, "env         = true", "", 1), "ENGINE_KEY_HASH"},
	"another variable":       {`"ENGINE_KEY_HASH={{`, `"KEY_HASH={{`, "ENGINE_KEY_HASH"},
	"no checksum":            {`ENGINE_KEY_CHECKSUM={{`, `KEY_CHECKSUM={{`, "ENGINE_KEY_CHECKSUM"},
	"key hash change_mode":   {keyHashHead, strings.Replace(keyHashHead, `var.key_reload == "signal" ? "noop" : "restart"`, `"noop"`, 1), `change_mode "restart"`},
	"provider change_mode":   {providerHead, "          env = true\n", "provider key template"},
	"provider quoting":       {`{{ $v | toJSON }}`, `{{ $v }}`, "toJSON"},
	"vault change_mode":      {vaultBlock, "          env          = false", "vault"},
	"two services":           {`      service {`, "service {\n name = \"other\"\n port = \"http\"\n }\n      service {", "exactly one service, found 2"},
	"nomad's own services":   {`provider = "consul"`, `provider = "nomad"`, "provider"},
	"service port":           {servicePort, "", "port"},
	"check path":             {checkPath, strings.Replace(checkPath, "/health", "/", 1), "/health"},
	"check type":             {`type                     = "http"` + "\n" + checkPath, `type = "tcp"` + "\n", "/health"},
	"disconnect":             {disconnectBlock, "", "lost_after"},
}

func TestBrokenRuleIsNamed(t *testing.T) {
	for name, c := range brokenRules {
		t.Run(name, func(t *testing.T) {
			s := settings(Docker)
			s.HCL, s.NeedsChecksum = edited(t, c.old, c.by), name == "no checksum"
			_, err := Parse(t.Context(), nomadClient(t), s)
			var rules *RulesError
			if !errors.As(err, &rules) {
				t.Fatalf("got %v, want a *RulesError", err)
			}
			if len(rules.Problems) != 1 && name != "disconnect" || !strings.Contains(rules.Problems[0], c.names) {
				t.Errorf("problems are %q, want one that names %q", rules.Problems, c.names)
			}
			if !strings.Contains(err.Error(), rules.Problems[0]) {
				t.Errorf("the error does not contain its problem: %v", err)
			}
		})
	}
}

// TestMockDriver: without a process no key is read, but all other rules apply.
func TestMockDriver(t *testing.T) {
	s := settings(Mock)
	hash := s.HCL[strings.Index(s.HCL, "      # Relied on: the hash of the engine's key"):strings.Index(s.HCL, "      dynamic \"template\" {\n        for_each = var.key_reload")]
	s.HCL = edited(t, hash, "")
	parsed(t, s)
	s.HCL = strings.Replace(s.HCL, updateBlock, "", 1)
	_, err := Parse(t.Context(), nomadClient(t), s)
	if err == nil || !strings.Contains(err.Error(), "max_parallel") {
		t.Errorf("got %v, want an error that names max_parallel", err)
	}
	s.Driver = Docker
	_, err = Parse(t.Context(), nomadClient(t), s)
	if err == nil || !strings.Contains(err.Error(), "ENGINE_KEY_HASH") {
		t.Errorf("docker: got %v, want an error that names ENGINE_KEY_HASH", err)
	}
}

// TestAllBrokenRulesAtOnce: all problems are reported together.
func TestAllBrokenRulesAtOnce(t *testing.T) {
	s := settings(Docker)
	for _, block := range []string{mountBlock, updateBlock, restartBlock, rescheduleBlock, disconnectBlock} {
		s.HCL = strings.Replace(s.HCL, block, "", 1)
	}
	_, err := Parse(t.Context(), nomadClient(t), s)
	for _, word := range []string{"/data", "max_parallel", "restart {", "reschedule {", "lost_after", "replace"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not named: %v", word, err)
		}
	}
}

// TestNomadCannotParse: Nomad's message about the file reaches the operator.
func TestNomadCannotParse(t *testing.T) {
	for name, hcl := range map[string]string{"syntax": "job {", "empty": "", "unknown block": edited(t, "  group \"engine\" {", "  no_such_block {}\n  group \"engine\" {")} {
		t.Run(name, func(t *testing.T) {
			s := settings(Docker)
			s.HCL = hcl
			_, err := Parse(t.Context(), nomadClient(t), s)
			var rules *RulesError
			if !errors.As(err, &rules) || !strings.Contains(err.Error(), "Nomad cannot parse it") {
				t.Errorf("got %v, want a *RulesError", err)
			}
		})
	}
	t.Run("ErrUnreachable", func(t *testing.T) {
		c, err := api.NewClient(&api.Config{Address: "http://127.0.0.1:1"}) // nothing listens there
		if err != nil {
			t.Fatal(err)
		}
		_, err = Parse(t.Context(), c, settings(Docker))
		var rules *RulesError
		if err == nil || errors.As(err, &rules) {
			t.Errorf("got %v, want an error that is no *RulesError", err)
		}
	})
}

// TestTaskUser: the volume belongs to the user that the container runs as.
func TestTaskUser(t *testing.T) {
	if got := parsed(t, settings(Docker)).Owner(); got != (Owner{"65532", "65532"}) || got.Params()["uid"] != "65532" {
		t.Errorf("docker: %+v", got)
	}
	if got := parsed(t, settings(RawExec)).Owner(); got != (Owner{}) || got.Params()["mode"] != "0700" {
		t.Errorf("raw_exec: %+v", got)
	}
	s := settings(Docker)
	s.HCL = edited(t, `"65532:65532" : ""`, `"1000" : ""`)
	if got := parsed(t, s).Owner(); got != (Owner{"1000", "1000"}) || got.String() != "1000:1000" {
		t.Errorf("without a group: %+v", got)
	}
	s.HCL = edited(t, `"65532:65532" : ""`, `"nobody" : ""`)
	_, err := Parse(t.Context(), nomadClient(t), s)
	var rules *RulesError
	if !errors.As(err, &rules) || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("got %v, want a *RulesError", err)
	}
}
