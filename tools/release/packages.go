package main

import (
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // registers the format
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm" // as above
)

const (
	homepage   = "https://github.com/septemberai/orch"
	summary    = "control plane for private, stateful engines"
	maintainer = "orch maintainers <orch@example.com>"
)

// packages writes the packages for Debian and RPM of a platform.
func (r release) packages(b build) error {
	for _, format := range []string{"deb", "rpm"} {
		packager, err := nfpm.Get(format)
		if err != nil {
			return err
		}
		contents, err := r.contents(b)
		if err != nil {
			return err
		}
		info := nfpm.WithDefaults(r.describe(b, contents))
		if format == "rpm" {
			// Their packages have different names in each distribution.
			info.Depends = []string{"/usr/bin/getent", "/usr/sbin/useradd"}
		}
		if err := nfpm.PrepareForPackager(info, format); err != nil {
			return err
		}
		if err := create(r.path(packager.ConventionalFileName(info)), func(w io.Writer) error {
			return packager.Package(info, w)
		}); err != nil {
			return err
		}
	}
	return nil
}

// describe returns what is in a package besides its files. MTime is in it, because nfpm takes
// the current time otherwise.
func (r release) describe(b build, contents files.Contents) *nfpm.Info {
	script := func(name string) string { return filepath.Join(r.root, "tools/release/package", name) }
	return &nfpm.Info{
		Name: "orch", Arch: b.arch, Platform: b.os, Version: r.version, Release: "1", MTime: r.date,
		Section: "admin", Priority: "optional", Maintainer: maintainer, Homepage: homepage, License: "MPL-2.0",
		Description:     "orch: " + summary + "\nGives every user of a product an engine: a process with its own persistent volume and\nits own API key, on Nomad, Consul and Vault.",
		DisableGlobbing: true,
		Overridables: nfpm.Overridables{
			Umask: 0o022, Contents: contents,
			// Registries of images and stores may have certificates of public authorities.
			Recommends: []string{"ca-certificates"},
			Scripts: nfpm.Scripts{
				PreInstall: script("preinstall.sh"), PostInstall: script("postinstall.sh"),
				PreRemove: script("preremove.sh"), PostRemove: script("postremove.sh"),
			},
			// The first script creates the user, before anything else is unpacked.
			Deb: nfpm.Deb{Predepends: []string{"passwd"}},
			RPM: nfpm.RPM{Group: "System Environment/Daemons", Summary: "orch: " + summary, BuildHost: "localhost"},
		},
	}
}

// contents lists the files of a package.
func (r release) contents(b build) (files.Contents, error) {
	file := func(from, to string, mode fs.FileMode) *files.Content {
		return &files.Content{Source: from, Destination: to, FileInfo: &files.ContentFileInfo{Mode: mode}}
	}
	root := func(name string) string { return filepath.Join(r.root, name) }
	all := files.Contents{
		file(b.path("orch"), "/usr/bin/orch", 0o755),
		// Nomad's raw_exec runs it on the nodes of engines.
		file(b.path("orch-brain"), "/usr/bin/orch-brain", 0o755),
		// Operators copy it to the plugin directory of their Nomad clients, in which it writes.
		file(b.path("orch-quota"), "/usr/lib/orch/orch-quota", 0o755),
		file(root("deploy/systemd/orch.service"), "/usr/lib/systemd/system/orch.service", 0o644),
		file(root("LICENSE"), "/usr/share/doc/orch/copyright", 0o644),
		file(root("README.md"), "/usr/share/doc/orch/README.md", 0o644),
		file(root("CHANGELOG.md"), "/usr/share/doc/orch/CHANGELOG.md", 0o644),
		{Destination: "/etc/orch", Type: files.TypeDir, FileInfo: &files.ContentFileInfo{Mode: 0o750, Group: "orch"}},
		{
			Source: root("deploy/systemd/orch.env"), Destination: "/etc/orch/orch.env", Type: files.TypeConfigNoReplace,
			FileInfo: &files.ContentFileInfo{Mode: 0o640, Group: "orch"},
		},
	}
	deployed, err := r.deployed()
	if err != nil {
		return nil, err
	}
	for _, e := range deployed {
		if strings.HasPrefix(e.name, "deploy/systemd/") {
			continue // they have places of their own
		}
		all = append(all, file(e.from, "/usr/share/orch/"+strings.TrimPrefix(e.name, "deploy/"), 0o644))
	}
	return all, nil
}
