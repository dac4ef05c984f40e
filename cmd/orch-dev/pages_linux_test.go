package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/septemberai/orch/internal/e2e/harness"
)

// TestPages runs what README and the quickstart show, word by word, against a system:
// each response has the fields and the words on the page. Variables that the page exports
// before the system starts are exported here, too: the quickstart's engines are containers
// of the image that "make engine-image" built before.
func TestPages(t *testing.T) {
	t.Parallel()
	for page, exports := range map[string][]string{"README.md": nil, "docs/quickstart.md": {"ORCH_ENGINE_DRIVER=docker"}} {
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(filepath.Join("..", "..", page))
			if err != nil {
				t.Fatal(err)
			}
			var shown []string
			for _, line := range export.FindAllStringSubmatch(string(text), -1) {
				shown = append(shown, line[1])
			}
			if !slices.Equal(shown, exports) {
				t.Fatalf("it exports %q before it starts, and this test %q", shown, exports)
			}
			if len(exports) > 0 {
				harness.NeedDocker(t)
			}
			dir := system(t)
			build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "bin", "orch"), "../orch")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("build orch: %v\n%s", err, out)
			}
			cmd, _ := startWith(t, dir, exports, "dev")
			t.Cleanup(func() {
				if err := errors.Join(cmd.Process.Signal(syscall.SIGINT), cmd.Wait()); err != nil {
					t.Error(err)
				}
			})
			awaitEnv(t, dir, nil)
			p, ran := &pageRun{t: t, dir: dir, now: map[string]string{}}, 0
			for _, block := range console.FindAllStringSubmatch(string(text), -1) {
				for _, step := range strings.Split("\n"+strings.ReplaceAll(block[1], "\\\n", ""), "\n$ ")[1:] {
					command, says, _ := strings.Cut(step, "\n")
					p.run(command, strings.TrimSpace(says))
					ran++
				}
			}
			if ran < 7 {
				t.Errorf("it shows %d commands", ran)
			}
		})
	}
}

var (
	console = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")
	export  = regexp.MustCompile(`(?m)^export (\S+)`)
)

// own are the fields whose values differ in each run. All other values must be those on
// the page, except for numbers.
var own = map[string]bool{"engine_id": true, "url": true, "api_key": true, "new_api_key": true, "created_at": true, "last_health_at": true}

// pageRun runs the commands of a page.
type pageRun struct {
	t   *testing.T
	dir string
	now map[string]string // the values of this run, by those on the page
}

func (p *pageRun) run(command, says string) {
	p.t.Helper()
	for shown, is := range p.now {
		command = strings.ReplaceAll(command, shown, is)
	}
	cmd := exec.CommandContext(p.t.Context(), "sh", "-ec", ". .dev/env\n"+strings.ReplaceAll(command, "curl -s ", "curl -sS --fail-with-body "))
	cmd.Dir = p.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s\n%v: %s", command, err, out)
	}
	if says == "" {
		return
	}
	var shown, got any
	if err := json.Unmarshal([]byte(says), &shown); err != nil {
		p.t.Fatalf("%s: the page shows no JSON: %v", command, err)
	}
	if err := json.Unmarshal(out, &got); err != nil {
		p.t.Fatalf("%s: %v: %s", command, err, out)
	}
	p.compare(command, "", shown, got)
}

// compare fails the test unless fields and words are those on the page, and stores the values
// that differ in this run.
func (p *pageRun) compare(where, field string, shown, got any) {
	p.t.Helper()
	switch shown := shown.(type) {
	case map[string]any:
		got, _ := got.(map[string]any)
		for name := range got {
			if _, there := shown[name]; !there {
				p.t.Errorf("%s: the page does not show the field %q", where, name)
			}
		}
		for name, value := range shown {
			if _, there := got[name]; !there {
				p.t.Errorf("%s: there is no field %q in the answer", where, name)
				continue
			}
			p.compare(where, name, value, got[name])
		}
	case string:
		is, _ := got.(string)
		if own[field] && is != "" {
			p.now[shown] = is
		} else if is != shown {
			p.t.Errorf("%s: %s is %v, and the page shows %q", where, field, got, shown)
		}
	case bool:
		if got != shown {
			p.t.Errorf("%s: %s is %v, and the page shows %t", where, field, got, shown)
		}
	}
}
