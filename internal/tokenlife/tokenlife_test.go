package tokenlife

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// TestWarns: the log warns in the last fifth of a token's life, once, and not of a token that
// was replaced or never expires. If the store does not respond, what it said last counts.
func TestWarns(t *testing.T) {
	from := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	life, fails := Life{from, from.Add(10 * time.Hour)}, error(nil)
	var log bytes.Buffer
	w := New(hclog.New(&hclog.LoggerOptions{Output: &log}), map[string]Ask{
		"consul": func(context.Context) (Life, error) { return life, fails },
		"nomad":  func(context.Context) (Life, error) { return Life{}, nil },
	})
	look := func(at time.Duration, wait time.Duration, says ...string) {
		t.Helper()
		log.Reset()
		if got := w.look(t.Context(), func() time.Time { return from.Add(at) }); got != wait {
			t.Errorf("at %s: looks again after %s, want %s", at, got, wait)
		}
		if text := log.String(); len(says) == 0 && text != "" {
			t.Errorf("at %s: %q", at, text)
		}
		for _, s := range says {
			if !strings.Contains(log.String(), s) {
				t.Errorf("at %s: %q, want %q", at, log.String(), s)
			}
		}
	}
	look(7*time.Hour, time.Minute)
	look(8*time.Hour+time.Minute, time.Minute, "[WARN]", "store=consul", "2030-01-01T10:00:00Z")
	look(9*time.Hour, time.Minute)
	if ends := w.Ends(); len(ends) != 1 || !ends["consul"].Equal(life.Ends) {
		t.Errorf("they end at %v", ends)
	}
	fails = errors.New("no response")
	look(33*time.Hour, time.Minute, "[ERROR]", "has expired")
	fails, life = nil, Life{from.Add(34 * time.Hour), from.Add(34*time.Hour + 50*time.Second)}
	look(34*time.Hour, time.Second)
	look(34*time.Hour+45*time.Second, time.Second, "[WARN]")
	life = Life{}
	look(35*time.Hour, time.Minute)
	if ends := w.Ends(); len(ends) != 0 {
		t.Errorf("they end at %v", ends)
	}
}

func TestOfJWT(t *testing.T) {
	jwt := func(claims string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	}
	for text, want := range map[string]struct {
		life Life
		ok   bool
	}{
		jwt(`{"iat":1000,"exp":4600}`):         {Life{time.Unix(1000, 0), time.Unix(4600, 0)}, true},
		jwt(`{"iat":1000}`):                    {Life{}, true},
		jwt(`no`):                              {Life{}, false},
		"a.b.c":                                {Life{}, false},
		"1bfa1d2e-0000-4000-8000-000000000000": {Life{}, false},
		"":                                     {Life{}, false},
	} {
		if life, ok := OfJWT(text); life != want.life || ok != want.ok {
			t.Errorf("%s: %v, %v", text, life, ok)
		}
	}
}
