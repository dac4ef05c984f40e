package main

import (
	"bytes"
	"encoding/pem"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// user is the user of containers. It is numeric, because the images have no /etc/passwd.
const user = "65532:65532"

// authorities is the file that Go reads first.
const authorities = "etc/ssl/certs/ca-certificates.crt"

// image is a container image: a binary, and nothing else that runs.
type image struct {
	name        string // of the binary
	description string
	authorities bool
	port        string // on which it serves
}

var published = []image{
	// The service calls registries of images, and perhaps Vault, by HTTPS.
	{name: "orch", description: summary, authorities: true, port: "8000/tcp"},
	// It calls the store of snapshots by HTTPS.
	{name: "orch-brain", description: "the worker of orch that makes and restores snapshots", authorities: true},
	{name: "reference-engine", description: "the reference engine of orch", port: "8000/tcp"},
}

// images writes each image as an OCI layout in a tar, with an index of its platforms.
func (r release) images(builds []build, work string) error {
	for _, img := range published {
		index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
		for _, b := range builds {
			one, err := r.image(img, b, work)
			if err != nil {
				return err
			}
			index = mutate.AppendManifests(index, mutate.IndexAddendum{
				Add: one, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: b.os, Architecture: b.arch}},
			})
		}
		dir := filepath.Join(work, img.name+"_image")
		l, err := layout.Write(dir, empty.Index)
		if err != nil {
			return err
		}
		if err := l.AppendIndex(index, layout.WithAnnotations(map[string]string{
			"org.opencontainers.image.ref.name": r.plain(),
		})); err != nil {
			return err
		}
		files, err := filesBelow(dir)
		if err != nil {
			return err
		}
		if err := create(r.path(img.name+"_"+r.plain()+"_image.tar"), func(w io.Writer) error {
			return writeTar(w, files, r.date)
		}); err != nil {
			return err
		}
	}
	return nil
}

// image returns the image for one platform.
func (r release) image(img image, b build, work string) (v1.Image, error) {
	entries := []entry{{img.name, b.path(img.name), 0o755}}
	if img.authorities {
		file := filepath.Join(work, "authorities")
		if err := os.WriteFile(file, roots(), 0o600); err != nil {
			return nil, err
		}
		entries = append(entries, entry{authorities, file, 0o644})
	}
	var content bytes.Buffer
	if err := writeTar(&content, entries, r.date); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
	if err != nil {
		return nil, err
	}
	var ports map[string]struct{}
	if img.port != "" {
		ports = map[string]struct{}{img.port: {}}
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	base, err = mutate.ConfigFile(base, &v1.ConfigFile{
		OS: b.os, Architecture: b.arch, Created: v1.Time{Time: r.date},
		RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User: user, Entrypoint: []string{"/" + img.name}, ExposedPorts: ports,
			Labels: map[string]string{
				"org.opencontainers.image.title":       img.name,
				"org.opencontainers.image.description": img.description,
				"org.opencontainers.image.source":      homepage,
				"org.opencontainers.image.version":     r.version,
				"org.opencontainers.image.revision":    r.commit,
				"org.opencontainers.image.created":     r.date.Format(time.RFC3339),
				"org.opencontainers.image.licenses":    "MPL-2.0",
			},
		},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(base, mutate.Addendum{
		Layer: layer, MediaType: types.OCILayer, History: v1.History{Created: v1.Time{Time: r.date}, CreatedBy: "make release"},
	})
}

// roots returns Mozilla's authorities from a module of Go, whose version and checksum are
// pinned, in PEM format. It leaves out those that are trusted only for certificates from
// before some day, because a file cannot say so.
func roots() []byte {
	var all bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			all.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return all.Bytes()
}

// filesBelow lists the files of a directory as entries of an archive.
func filesBelow(dir string) ([]entry, error) {
	var all []entry
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		all = append(all, entry{filepath.ToSlash(name), path, 0o644})
		return err
	})
	return all, err
}
