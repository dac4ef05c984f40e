package release

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// testImages unpacks the images and runs them with nothing else: as their user, in a root file
// system of their own.
func testImages(t *testing.T, out string) {
	for name, runs := range map[string]struct {
		arg, want   string
		authorities bool
	}{
		"orch": {"version", "orch v1.0.0", true}, "reference-engine": {"-help", "A small engine", false},
		// Without an order it says that it has none.
		"orch-brain": {"", `"kind":"bad_order"`, true},
	} {
		t.Run(name, func(t *testing.T) {
			packed := one(t, out, name+"_*_image.tar")
			// "1.0.0", or "1.0.0-dirty" if there are changes.
			version := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(packed), name+"_"), "_image.tar")
			// A program of others reads it by the name that docs/releases.md gives.
			skopeo := output(t, "skopeo", "inspect", "--format={{.Os}}/{{.Architecture}}", "oci-archive:"+packed+":"+version)
			if skopeo != "linux/"+runtime.GOARCH {
				t.Errorf("skopeo inspect: %s", skopeo)
			}
			dir := t.TempDir()
			output(t, "tar", "-C", dir, "-xf", packed)
			top, err := layout.ImageIndexFromPath(dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Index(top); err != nil {
				t.Error(err)
			}
			manifest, err := top.IndexManifest()
			if err != nil {
				t.Fatal(err)
			}
			index, err := top.ImageIndex(manifest.Manifests[0].Digest)
			if err != nil {
				t.Fatal(err)
			}
			if manifest, err = index.IndexManifest(); err != nil {
				t.Fatal(err)
			}
			if p := manifest.Manifests[0].Platform; p == nil || p.String() != "linux/"+runtime.GOARCH {
				t.Errorf("the platform is %v", p)
			}
			image, err := index.Image(manifest.Manifests[0].Digest)
			if err != nil {
				t.Fatal(err)
			}
			config, err := image.ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			if config.Config.User != "65532:65532" {
				t.Errorf("the user is %q", config.Config.User)
			}
			root := t.TempDir()
			unpack(t, mutate.Extract(image), root)
			run := exec.CommandContext(t.Context(), config.Config.Entrypoint[0], runs.arg)
			run.Dir, run.Env = "/", []string{}
			run.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
			if printed, err := run.CombinedOutput(); !strings.Contains(string(printed), runs.want) {
				t.Errorf("%v\n%s", err, printed)
			}
			_, err = os.Stat(filepath.Join(root, "etc/ssl/certs/ca-certificates.crt"))
			if runs.authorities != (err == nil) {
				t.Errorf("authorities: %v", err)
			}
		})
	}
}

// unpack writes the files of an image.
func unpack(t *testing.T, image io.ReadCloser, root string) {
	t.Helper()
	defer func() { _ = image.Close() }()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(image); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(root, header.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, header.FileInfo().Mode())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(f, r); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
