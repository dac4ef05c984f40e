package server

import (
	"strings"
	"testing"

	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/secrets"
)

func TestPlatformKeyIsRefused(t *testing.T) {
	s := newCutOff(t)
	good := secrets.NewPlatformKey()
	for name, key := range map[string]string{
		"none": "", "word": "nonsense", "admin key": adminKey, "engine key": secrets.NewEngineKey(), "cut": good[:len(good)-1], "longer": good + "A",
		"spaces": " " + good + " ", "two": good + "," + good, "upper case": strings.ToUpper(good), "zero byte": good + "\x00", "not ASCII": good[:len(good)-1] + "é",
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct{ method, path, body string }{
				{"POST", "/engines/provision", `{"user_id": "u"}`}, {"POST", "/engines/provision", `no json`},
				{"GET", "/engines/u", ""}, {"GET", "/engines/%00", ""}, {"DELETE", "/engines/u", ""},
				{"POST", "/engines/u/start", "no json"}, {"POST", "/engines/u/stop", ""}, {"POST", "/engines/u/rotate-key", ""},
			} {
				headers := []string{"X-Admin-Key", adminKey}
				if key != "" {
					headers = append(headers, "X-Platform-Key", key)
				}
				want(t, s.send(c.method, c.path, c.body, headers...), 401, engine.InvalidPlatformKey)
			}
			if n := s.calls.Load(); n != 0 {
				t.Errorf("%d calls to the agents for a key that cannot be one", n)
			}
		})
	}
}

func TestAdminKeyIsRefused(t *testing.T) {
	s := newCutOff(t)
	for name, key := range map[string]string{
		"none": "", "word": "nonsense", "platform key": secrets.NewPlatformKey(), "cut": adminKey[:len(adminKey)-1], "longer": adminKey + "x",
		"upper case": strings.ToUpper(adminKey), "spaces": adminKey + " ", "two": adminKey + "," + adminKey,
	} {
		t.Run(name, func(t *testing.T) {
			headers := []string{"X-Platform-Key", secrets.NewPlatformKey()}
			if key != "" {
				headers = append(headers, "X-Admin-Key", key)
			}
			for _, body := range []string{goodProduct, "no json", "", strings.Repeat("x", 70<<10)} {
				want(t, s.send("POST", "/products/register", body, headers...), 401, engine.InvalidAdminKey)
			}
			if n := s.calls.Load(); n != 0 {
				t.Errorf("%d calls to the agents", n)
			}
		})
	}
	if strings.Contains(s.logs.String(), adminKey) {
		t.Error("the log has the admin key")
	}
}
