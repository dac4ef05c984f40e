package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

const (
	providerKey = "sk-provider-secret-of-the-tests"
	storeKey    = "key-of-the-snapshot-store"
)

// TestSecretsAreNotPrinted: no way of printing a Config shows secrets.
func TestSecretsAreNotPrinted(t *testing.T) {
	c := mustLoad(t, least("ORCH_ENGINE_ENV_PASSTHROUGH=LLM_API_KEY", "LLM_API_KEY="+providerKey, "VAULT_TOKEN="+providerKey,
		"ORCH_SNAPSHOT_ACCESS_KEY="+storeKey, "ORCH_SNAPSHOT_SECRET_KEY="+storeKey))
	var log bytes.Buffer
	for _, asJSON := range []bool{false, true} {
		l := hclog.New(&hclog.LoggerOptions{Output: &log, JSONFormat: asJSON})
		l.Info("configured", "config", c, "value", *c)
	}
	encoded, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]string{"hclog": log.String(), "json": string(encoded), "String": c.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t"} {
		shown[verb], shown[verb+" of a value"] = fmt.Sprintf(verb, c), fmt.Sprintf(verb, *c)
		shown[verb+" within"] = fmt.Sprintf(verb, []any{struct{ C *Config }{c}})
	}
	for how, text := range shown {
		for _, secret := range []string{adminKey, providerKey, storeKey} {
			if strings.Contains(text, secret) || strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", secret)) {
				t.Errorf("%s shows a secret: %s", how, text)
			}
		}
	}
	if !strings.Contains(shown["%v"], "registry/engine:1") {
		t.Errorf("%%v shows nothing of use: %s", shown["%v"])
	}
}

// TestMistakesDoNotShowValues: a key in the wrong variable is not logged.
func TestMistakesDoNotShowValues(t *testing.T) {
	for _, v := range Variables() {
		switch v.Name {
		case "ORCH_ENGINE_JOB_FILE", "ORCH_ENGINE_CA_FILE", "ORCH_SNAPSHOT_CA_FILE", "ORCH_SNAPSHOT_ACCESS_KEY_FILE", "ORCH_SNAPSHOT_SECRET_KEY_FILE":
			continue // its error names the file
		}
		for _, value := range []string{providerKey + " \x01", "LLM_API_KEY=" + providerKey} {
			if _, err := Load(least(v.Name + "=" + value)); err != nil && strings.Contains(err.Error(), providerKey) {
				t.Errorf("%s: %v", v.Name, err)
			}
		}
	}
}
