package volumeplugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// call runs an operation as Nomad does.
func call(t *testing.T, operation, volumes, id, params string) (answer, int) {
	t.Helper()
	vars := map[string]string{"DHV_VOLUMES_DIR": volumes, "DHV_PLUGIN_DIR": volumes + ".plugins", "DHV_VOLUME_ID": id, "DHV_PARAMETERS": params}
	var out bytes.Buffer
	code := Run(operation, func(name string) string { return vars[name] }, &out)
	var a answer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		t.Fatalf("%s: %v", out.Bytes(), err)
	}
	return a, code
}

// refuses creates volumes on a filesystem that enforces no quotas: one without a quota is
// created as by mkdir, one with a quota is refused.
func refuses(t *testing.T, on string) {
	volumes := filepath.Join(on, "volumes")
	a, code := call(t, "create", volumes, volumeID(1), `{"mode":"0750","quota_mb":"1"}`)
	if code != 1 || !strings.Contains(a.Error, "enforces no project quotas") {
		t.Errorf("a quota where there is none: %d, %+v", code, a)
	}
	if _, err := os.Stat(filepath.Join(volumes, volumeID(1))); !os.IsNotExist(err) {
		t.Errorf("what was refused is there: %v", err)
	}
	for range 2 {
		a, code = call(t, "create", volumes, volumeID(1), `{"mode":"0750"}`)
		i, err := os.Stat(a.Path)
		if code != 0 || err != nil || i.Mode() != os.ModeDir|0o750 {
			t.Fatalf("no quota: %d, %+v, %v, %v", code, a, i, err)
		}
	}
	if err := os.WriteFile(filepath.Join(a.Path, "brain"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if a, code = call(t, "create", volumes, volumeID(1), `{"quota_mb":"1"}`); code != 1 {
		t.Errorf("a quota later: %d, %+v", code, a)
	}
	if _, err := os.Stat(filepath.Join(volumes, volumeID(1), "brain")); err != nil {
		t.Errorf("a refused quota cost the brain: %v", err)
	}
	for range 2 {
		if a, code := call(t, "delete", volumes, volumeID(1), ""); code != 0 {
			t.Errorf("delete: %d, %+v", code, a)
		}
	}
	if left, err := os.ReadDir(volumes); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestDiskNotMounted removes the volumes' directory, like a node that comes back without
// their disk.
func TestDiskNotMounted(t *testing.T) {
	volumes := filepath.Join(t.TempDir(), "volumes")
	marks := func() int {
		found, _ := os.ReadDir(filepath.Join(volumes+".plugins", marksDir))
		return len(found)
	}
	refused := func(operation string, id int) {
		t.Helper()
		if a, code := call(t, operation, volumes, volumeID(id), ""); code != 1 || !strings.Contains(a.Error, "mount its disk") || strings.Contains(a.Error, volumes) {
			t.Errorf("%s: %d, %+v", operation, code, a)
		}
	}
	done := func(operation string, id int) {
		t.Helper()
		if a, code := call(t, operation, volumes, volumeID(id), ""); code != 0 {
			t.Fatalf("%s: %d, %+v", operation, code, a)
		}
	}
	done("create", 1)
	brain := filepath.Join(volumes, volumeID(1), "brain")
	if err := os.WriteFile(brain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(volumes, volumes+".away"); err != nil {
		t.Fatal(err)
	}
	refused("create", 1)
	refused("delete", 1)
	refused("create", 2) // the disk would hide it
	if _, err := os.Stat(volumes); !os.IsNotExist(err) {
		t.Fatalf("something was created: %v", err)
	}
	if err := os.Rename(volumes+".away", volumes); err != nil {
		t.Fatal(err)
	}
	done("create", 1)
	if _, err := os.Stat(brain); err != nil {
		t.Error(err)
	}
	// A volume from before there were marks gets one.
	if err := os.RemoveAll(filepath.Join(volumes+".plugins", marksDir)); err != nil {
		t.Fatal(err)
	}
	done("create", 1)
	// One lost volume of several does not prevent others from being created.
	done("create", 2)
	if err := os.RemoveAll(filepath.Join(volumes, volumeID(2))); err != nil {
		t.Fatal(err)
	}
	refused("create", 2)
	done("create", 3)
	done("delete", 3)
	if err := os.Remove(filepath.Join(volumes+".plugins", marksDir, volumeID(2))); err != nil {
		t.Fatal(err)
	}
	// An interrupted deletion continues, but not without the disk while others exist.
	done("create", 4)
	m4, err := markOf(volumes+".plugins", volumeID(4))
	if err == nil {
		err = errors.Join(m4.leave(), os.Rename(volumes, volumes+".away"))
	}
	if err != nil {
		t.Fatal(err)
	}
	refused("delete", 4)
	if err := os.Rename(volumes+".away", volumes); err != nil {
		t.Fatal(err)
	}
	done("delete", 4)
	m, err := markOf(volumes+".plugins", volumeID(1))
	if err == nil {
		err = errors.Join(m.leave(), os.RemoveAll(filepath.Dir(brain)))
	}
	if err != nil || marks() != 1 {
		t.Fatal(marks(), err)
	}
	done("delete", 1)
	done("delete", 1)
	if marks() != 0 {
		t.Errorf("%d marks are left", marks())
	}
}

func TestRun(t *testing.T) {
	t.Run("OKWithoutQuotas", func(t *testing.T) { refuses(t, "/dev/shm/"+filepath.Base(t.TempDir())) })
	t.Run("OKFingerprint", func(t *testing.T) {
		if a, code := call(t, "fingerprint", "", "", ""); code != 0 || a.Version != Version {
			t.Errorf("%d, %+v", code, a)
		}
	})
	volumes := t.TempDir()
	for name, c := range map[string]struct{ operation, volumes, id, params, want string }{
		"ErrOperation": {"resize", volumes, volumeID(1), "", "unknown operation"},
		"ErrPath":      {"delete", volumes, "..", "", "must be the id of a volume"},
		"ErrNoID":      {"delete", volumes, "", "", "must be the id of a volume"},
		"ErrRelative":  {"create", "volumes", volumeID(1), "", "must be an absolute path"},
		"ErrParams":    {"create", volumes, volumeID(1), "[]", "DHV_PARAMETERS"},
		"ErrUnknown":   {"create", volumes, volumeID(1), `{"quota":"1"}`, `unknown parameter "quota"`},
		"ErrQuota":     {"create", volumes, volumeID(1), `{"quota_mb":"-1"}`, `parameter "quota_mb"`},
		"ErrMode":      {"create", volumes, volumeID(1), `{"mode":"999"}`, `parameter "mode"`},
	} {
		t.Run(name, func(t *testing.T) {
			if a, code := call(t, c.operation, c.volumes, c.id, c.params); code != 1 || !strings.Contains(a.Error, c.want) {
				t.Errorf("%d, %+v", code, a)
			}
		})
	}
	if left, err := os.ReadDir(volumes); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
