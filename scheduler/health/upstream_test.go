package health

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/septemberai/orch/scheduler/boot"
)

func TestUpstreams(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   []string
	}{
		"OK":               {200, `{"status":"ok","subsystems":{"provider":"down"}}`, nil},
		"provider":         {503, `{"status":"failing","subsystems":{"brain":"ok","provider":"down","tools":"timeout"}}`, []string{"provider", "tools"}},
		"with a status":    {200, `{"status":"degraded","subsystems":{"provider":{"status":"down","since":1}}}`, []string{"provider"}},
		"its own":          {503, `{"status":"failing","subsystems":{"brain":"failing"}}`, nil},
		"both":             {503, `{"status":"failing","subsystems":{"brain":"failing","provider":"down"}}`, nil},
		"none":             {503, `{"status":"failing"}`, nil},
		"all well":         {503, `{"status":"failing","subsystems":{"brain":"ok"}}`, nil},
		"of another form":  {503, `{"status":"failing","subsystems":["provider"]}`, nil},
		"without a status": {503, `{"status":"failing","subsystems":{"provider":{"up":false},"n":1}}`, nil},
		"no JSON":          {502, `<html>`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			}))
			defer engine.Close()
			err := boot.NewProber(time.Minute, nil).Health(t.Context(), engine.URL)
			if (err == nil) != (name == "OK") {
				t.Fatalf("health: %v", err)
			}
			if got := upstreams(err, []string{"brain"}); !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if got := upstreams(err, []string{"*"}); got != nil {
				t.Errorf("restarts are requested whatever fails: %v", got)
			}
		})
	}
	if got := upstreams(errors.New("it does not answer"), nil); got != nil {
		t.Errorf("without a response: %v", got)
	}
}
