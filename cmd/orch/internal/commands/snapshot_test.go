package commands

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
)

const taken = `{"snapshot_id": "s1", "engine_id": "e1", "user_id": "u", "created_at": "2026-01-31T12:00:00Z", "bytes": 20971520, "stored_bytes": 900, "sha256": "abc", "engine_version": "i", "trigger": "call", "label": "before", "frozen_ms": 14}`

// TestSnapshots: what each command prints, as text and as JSON.
func TestSnapshots(t *testing.T) {
	page := `{"snapshots": [` + taken + `, ` + strings.Replace(taken, "s1", "s0", 1) + `]`
	for line, c := range map[string]struct {
		responses []string
		code      int
		want      string // in the output
		not       string
		err       string // in stderr
	}{
		"snapshot take|-label|before|u":      {[]string{`{"snapshot": ` + taken + `}`}, 0, "20.0 MiB", "", ""},
		"snapshot take|-json|u":              {[]string{`{"snapshot": ` + taken + `}`}, 0, `"frozen_ms": 14`, "", ""},
		"snapshot take|nobody":               {[]string{gone}, 1, "", "s1", "ENGINE_NOT_FOUND"},
		"snapshot list|u":                    {[]string{page + `, "next_cursor": "c"}`, page + `}`}, 0, "900 B", "", ""},
		"snapshot list|-n|1|u":               {[]string{page + `}`}, 0, "s1", "s0", ""},
		"snapshot list|none":                 {[]string{`{"snapshots": []}`}, 0, "no snapshots", "", ""},
		"snapshot delete|-yes|u|s1":          {[]string{`{"status": "deleted"}`}, 0, "s1", "", ""},
		"engine restore|-yes|u":              {[]string{engineOf("running", "")}, 0, engineKey, "", ""},
		"engine restore|-yes|-snapshot|s1|u": {[]string{engineOf("running", "")}, 0, "e1", "", ""},
		"engine fork|u|v":                    {[]string{engineOf("running", "")}, 0, engineKey, "", ""},
		"engine fork|-json|u|v":              {[]string{engineOf("running", "")}, 0, `"engine_id": "e1"`, "", ""},
	} {
		w := newWorld(t, "")
		scripted(t, w, c.responses...)
		name, rest, _ := strings.Cut(line, "|")
		code := w.run(name, strings.Split(rest, "|")...)
		out := w.out.String()
		if code != c.code || !strings.Contains(out, c.want) || c.not != "" && strings.Contains(out, c.not) || !strings.Contains(w.err.String(), c.err) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", line, code, out, w.err.String())
		}
	}
	w := newWorld(t, "")
	scripted(t, w, page+`, "next_cursor": "c"}`, page+`}`)
	var list client.SnapshotList
	if code := w.run("snapshot list", "-json", "u"); code != 0 || json.Unmarshal(w.out.Bytes(), &list) != nil || len(list.Snapshots) != 4 || list.NextCursor != "" {
		t.Errorf("exit code %d, %s", code, w.out.String())
	}
}

// TestImports: which engines are imported, and what becomes of each.
func TestImports(t *testing.T) {
	stored := func(id, status string) string {
		return `{"engine_id": "` + id + `", "product_id": "abcdefghijklmnopqrstuvwxyz", "user_id": "u-` + id + `", "status": "` + status + `", "why": "because", "snapshots": 2, "snapshot_id": "s1", "created_at": "2026-01-31T12:00:00Z", "bytes": 20971520, "stored_bytes": 900, "engine_version": "i"}`
	}
	engine := `{"engine_id": "e1", "product_id": "p", "user_id": "u", "status": "running"}`
	first, second := `{"engines": [`+stored("e1", "importable")+`], "next_cursor": "c"}`, `{"engines": [`+stored("e2", "present")+`]}`
	for line, c := range map[string]struct {
		responses []string
		code      int
		want, not string // in the output
		err       string // in stderr
	}{
		"-n":                         {[]string{first, second}, 0, "20.0 MiB", "imported", ""},
		"-dry-run|-json":             {[]string{first, second}, 0, `"status": "present"`, "outcome", ""},
		"-dry-run|-engine|engine-e2": {[]string{first, second}, 0, "e2", "e1", ""},
		"-dry-run|-engine|none":      {[]string{first, second}, 0, "no such engines", "e1", ""},
		"-parallel|1":                {[]string{first, second, engine}, 0, "imported", "", "1 imported, 1 skipped, 0 failed"},
		"-json":                      {[]string{first, second, engine}, 0, `"outcome": "skipped"`, "", ""},
		"-parallel|2|-timeout|0":     {[]string{first, second, gone}, 1, "failed", "", "ENGINE_NOT_FOUND"},
	} {
		w := newWorld(t, "")
		scripted(t, w, c.responses...)
		code := w.run("snapshot import", strings.Split(line, "|")...)
		out := w.out.String()
		if code != c.code || !strings.Contains(out, c.want) || c.not != "" && strings.Contains(out, c.not) || !strings.Contains(w.err.String(), c.err) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", line, code, out, w.err.String())
		}
	}
}

// TestRestoreAsks: the question names the snapshot, and without a yes nothing is called.
func TestRestoreAsks(t *testing.T) {
	for _, c := range [][]string{{"its newest snapshot", "alice"}, {"snapshot s1", "-snapshot", "s1", "alice"}} {
		w := newWorld(t, "n\n")
		w.InTTY = true
		if code := w.run("engine restore", c[1:]...); code != 1 || !strings.Contains(w.err.String(), "engine of alice onto the brain in "+c[0]) {
			t.Errorf("exit code %d, stderr %q", code, w.err.String())
		}
	}
}

// TestTakesLong: a change that takes longer than a call may wait is not reported as done.
func TestTakesLong(t *testing.T) {
	under := &client.UnderWay{Engine: &client.Engine{UserID: "v"}}
	if err := continues(under, "u"); !strings.Contains(err.Error(), "orch engine wait v") {
		t.Error(err)
	}
	if err := continues(client.ErrEngineBusy, "u"); !errors.Is(err, client.ErrEngineBusy) || errors.As(err, new(*client.UnderWay)) {
		t.Error(err)
	}
}

func TestSizeOf(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 20 << 20: "20.0 MiB", 10 << 30: "10.0 GiB", 3 << 40: "3.0 TiB", 5 << 50: "5120.0 TiB"} {
		if got := sizeOf(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
