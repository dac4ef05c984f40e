package images

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

const someDigest = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

// fakeRegistry responds to requests for one manifest.
func fakeRegistry(t *testing.T, manifest http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			if _, _, ok := r.BasicAuth(); !ok {
				w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
				w.WriteHeader(http.StatusUnauthorized)
			}
			return
		}
		manifest(w, r)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func found(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
	w.Header().Set("Content-Length", "100")
	w.Header().Set("Docker-Content-Digest", someDigest)
}

// asked sends a request with a new asker, within a time limit.
func asked(t *testing.T, image string, within time.Duration) (string, error) {
	t.Helper()
	ref, err := parse(image)
	if err != nil {
		t.Fatal(err)
	}
	a := newAsker()
	t.Cleanup(a.transport.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return a.head(ctx, ref)
}

// dockerConfig sets the Docker configuration of this process.
func dockerConfig(t *testing.T, text string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("HOME", dir)
}

func TestCredentials(t *testing.T) {
	var tokens []string
	other := fakeRegistry(t, func(w http.ResponseWriter, r *http.Request) {
		tokens = append(tokens, "elsewhere: "+r.Header.Get("Authorization"))
		found(w)
	})
	var moved bool
	registry := fakeRegistry(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		tokens = append(tokens, user+":"+password)
		if moved {
			http.Redirect(w, r, "http://"+other+r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		found(w)
	})
	dockerConfig(t, `{"auths": {"`+registry+`": {"username": "u", "password": "hush"}}}`)
	if digest, err := asked(t, registry+"/a/e:1", time.Minute); err != nil || digest != someDigest {
		t.Errorf("got %q, %v", digest, err)
	}
	moved = true
	if digest, err := asked(t, registry+"/a/e:1", time.Minute); err != nil || digest != someDigest {
		t.Errorf("got %q, %v", digest, err)
	}
	if digest, err := asked(t, other+"/a/e:1", time.Minute); err != nil || digest != someDigest {
		t.Errorf("got %q, %v", digest, err)
	}
	if got := fmt.Sprint(tokens); got != "[u:hush u:hush elsewhere:  elsewhere: ]" {
		t.Errorf("the registries got %s", got)
	}
}

// No error contains what a server sent, because that may repeat a secret.
func TestErrors(t *testing.T) {
	status, wait := http.StatusNotFound, time.Duration(0)
	registry := fakeRegistry(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(wait):
		case <-r.Context().Done():
		}
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"errors": [{"code": "hush", "message": "hush"}]}`)
	})
	dockerConfig(t, `{"auths": {"`+registry+`": {"username": "u", "password": "hush"}}}`)
	for _, c := range []struct {
		what   string
		status int
		answer bool
	}{
		{"no such image", http.StatusNotFound, true},
		{"not for this service", http.StatusForbidden, true},
		{"no credentials", http.StatusUnauthorized, true},
		{"no HEAD", http.StatusMethodNotAllowed, true},
		{"a broken registry", http.StatusServiceUnavailable, false},
		{"too many questions", http.StatusTooManyRequests, false},
		{"no digest", http.StatusOK, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			status = c.status
			_, err := asked(t, registry+"/a/e:1", time.Minute)
			var answer *answerError
			if err == nil || strings.Contains(err.Error(), "hush") || errors.As(err, &answer) != c.answer {
				t.Errorf("got %v", err)
			}
		})
	}
	wait = time.Minute
	began := time.Now()
	if _, err := asked(t, registry+"/a/e:1", 200*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("got %v after %s", err, time.Since(began))
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	if _, err := asked(t, strings.TrimPrefix(gone.URL, "http://")+"/e", time.Minute); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %v", err)
	}
}

// Plain HTTP is used only to loopback addresses, even if a registry redirects.
func TestPlainHTTP(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.1.2.3": true, "::1": true, "localhost": true,
		"10.0.0.1": false, "192.168.1.1": false, "registry.local": false, "localhost.example": false, "127.0.0.1.example": false, "": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("%q: %t", host, got)
		}
	}
	var sent []string
	g := guarded{roundTripper(func(r *http.Request) (*http.Response, error) {
		sent = append(sent, r.URL.String())
		return nil, errors.New("no network")
	})}
	for _, registry := range []string{"10.0.0.1:5000", "registry.local", "r.example", "localhost:5000", "127.1.2.3:5000", "[::1]:5000"} {
		ref, err := parse(registry + "/e:1")
		if err != nil {
			t.Fatal(err)
		}
		sent = nil
		_, err = headWith(t, g, ref)
		loopback := isLoopback(hostOf(registry))
		if err == nil || strings.Contains(fmt.Sprint(sent), "http:") != loopback {
			t.Errorf("%s: %v, %v", registry, sent, err)
		}
	}
	registry := fakeRegistry(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://registry.invalid/v2/", http.StatusTemporaryRedirect)
	})
	dockerConfig(t, `{}`)
	if _, err := asked(t, registry+"/e", time.Minute); !errors.Is(err, errPlainHTTP) {
		t.Errorf("got %v", err)
	}
}

// A credential helper that hangs costs the time of one request, and its output is never
// shown.
func TestCredentialHelper(t *testing.T) {
	registry := fakeRegistry(t, func(w http.ResponseWriter, r *http.Request) { found(w) })
	bin := t.TempDir()
	helper := func(script string) {
		if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	dockerConfig(t, `{"credHelpers": {"`+registry+`": "test"}}`)
	helper(`echo '{"Username": "u", "Secret": "hush"}'`)
	if digest, err := asked(t, registry+"/e", time.Minute); err != nil || digest != someDigest {
		t.Errorf("got %q, %v", digest, err)
	}
	helper(`echo hush; exit 1`)
	if _, err := asked(t, registry+"/e", time.Minute); err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("got %v", err)
	}
	end := filepath.Join(bin, "end")
	helper(`while [ ! -e ` + end + ` ]; do sleep 0.02; done; exit 1`)
	a := newAsker()
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, err := a.credentials(ctx, repository(t, registry)); err == nil {
			t.Error("there are credentials")
		}
		cancel()
	}
	if err := os.WriteFile(end, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a.helper <- struct{}{} // it has ended
}

func repository(t *testing.T, registry string) name.Repository {
	t.Helper()
	ref, err := parse(registry + "/e")
	if err != nil {
		t.Fatal(err)
	}
	return ref.Context()
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func headWith(t *testing.T, transport http.RoundTripper, ref name.Reference) (string, error) {
	t.Helper()
	return head(t.Context(), transport, authn.Anonymous, ref)
}
