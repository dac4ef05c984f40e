package server

import (
	"bytes"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/septemberai/orch/docs"
)

func TestDocs(t *testing.T) {
	s := newCutOff(t)
	w := s.send(http.MethodGet, "/openapi.yaml", "")
	if w.Code != 200 || !bytes.Equal(w.Body.Bytes(), docs.OpenAPI) || w.Header().Get("Content-Type") != "application/yaml" {
		t.Errorf("GET /openapi.yaml: %d, %d bytes of %s", w.Code, w.Body.Len(), w.Header().Get("Content-Type"))
	}
	w = s.send(http.MethodGet, "/docs", "")
	page := w.Body.String()
	if w.Code != 200 || w.Header().Get("Content-Security-Policy") == "" {
		t.Fatalf("GET /docs: %d, %v", w.Code, w.Header())
	}
	// The page contains every operation, with an example call. It loads nothing from other
	// hosts, and runs no script.
	for _, id := range regexp.MustCompile(`operationId: (\w+)`).FindAllStringSubmatch(string(docs.OpenAPI), -1) {
		if !strings.Contains(page, `id="`+id[1]+`"`) {
			t.Errorf("%s is not on the page", id[1])
		}
	}
	for _, want := range []string{"curl -s -X POST $ORCH_URL/engines/alice@example.com/admit", "ENGINE_BOOT_FAILED", "auto_provision", "next_cursor"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is not on the page", want)
		}
	}
	// A response that is one of two objects links to both, and each link leads somewhere.
	if want := `<a href="#schema-Admitted">Admitted</a> or <a href="#schema-Denied">Denied</a>`; !strings.Contains(page, want) {
		t.Errorf("%s is not on the page", want)
	}
	for _, to := range regexp.MustCompile(`href="#(schema-\w+)"`).FindAllStringSubmatch(page, -1) {
		if !strings.Contains(page, `id="`+to[1]+`"`) {
			t.Errorf("%s is not on the page", to[1])
		}
	}
	for _, bad := range []string{"<script", "src=", "url(", "@import", "<no value>", "ZgotmplZ", "&lt;nil&gt;"} {
		if strings.Contains(page, bad) {
			t.Errorf("%q is on the page", bad)
		}
	}
}

func TestMarkdown(t *testing.T) {
	for in, want := range map[string]string{
		"a `b` <c>":    "<p>a <code>b</code> &lt;c&gt;</p>",
		"- one\n- two": "<ul><li>one</li><li>two</li></ul>",
		"a\n\nb":       "<p>a</p><p>b</p>",
	} {
		if got := string(markdown(in)); got != want {
			t.Errorf("%q: got %s", in, got)
		}
	}
}
