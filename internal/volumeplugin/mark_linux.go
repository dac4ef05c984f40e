package volumeplugin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A mark records that a volume was created. It is stored beside the plugin, which should be
// on another filesystem than the volumes. When a node comes back without the disk of its
// volumes, Nomad requests that each volume be created again. A volume that has a mark but
// no directory is not created: an engine in it would start without its memory, although the
// memory still exists on the disk. While all volumes with a mark are missing, nothing is
// created or deleted, because that would happen below the disk's mount point.
type mark struct{ path string }

// marksDir is the directory of the marks in Nomad's host_volume_plugin_dir.
const marksDir = ".orch-volumes"

// leaving is the suffix of a mark's name while its volume is being deleted.
const leaving = ".deleting"

// markOf returns the mark of a volume, or an error if marks cannot be written.
func markOf(plugins, id string) (mark, error) {
	if !filepath.IsAbs(plugins) {
		return mark{}, errors.New("DHV_PLUGIN_DIR is not an absolute path")
	}
	dir := filepath.Join(plugins, marksDir)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = unix.Access(dir, unix.W_OK)
	}
	if err != nil {
		return mark{}, fmt.Errorf("%s in host_volume_plugin_dir cannot be written: %w", marksDir, err)
	}
	return mark{filepath.Join(dir, id)}, nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if os.IsNotExist(err) {
		return false, nil
	}
	return err == nil, err
}

// missing returns an error if the volume in dir was created before and is missing, or if
// all volumes that were created before are missing.
func (m mark) missing(dir string) error {
	there, err := exists(dir)
	if err != nil || there {
		return err
	}
	made, err := exists(m.path)
	if err != nil {
		return err
	}
	if made {
		return fmt.Errorf("volume %[1]s was created before but is not in host_volumes_dir: mount its disk and restart the Nomad client, or, if the volume is lost, remove %[2]s/%[1]s in host_volume_plugin_dir", filepath.Base(m.path), marksDir)
	}
	return m.mounted(filepath.Dir(dir))
}

// mounted returns an error if there are marks, but the volumes of all marks are missing.
func (m mark) mounted(volumes string) error {
	marks, err := os.ReadDir(filepath.Dir(m.path))
	if err != nil {
		return err
	}
	missing := 0
	for _, e := range marks {
		if strings.HasSuffix(e.Name(), leaving) {
			continue
		}
		there, err := exists(filepath.Join(volumes, e.Name()))
		if err != nil || there {
			return err
		}
		missing++
	}
	if missing == 0 {
		return nil
	}
	return fmt.Errorf("none of the %d volumes that were created before is in host_volumes_dir: mount its disk and restart the Nomad client, or, if they are lost, remove their marks (%s in host_volume_plugin_dir)", missing, marksDir)
}

// set records that the volume was created. The mark is on disk when it returns.
func (m mark) set() error {
	if made, err := exists(m.path); err != nil || made {
		return err
	}
	f, err := os.OpenFile(m.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), m.sync())
}

// leave records that the volume is being deleted, so that an interrupted deletion can
// continue although the directory no longer exists.
func (m mark) leave() error {
	if made, err := exists(m.path); err != nil || !made {
		return err
	}
	if err := os.Rename(m.path, m.path+leaving); err != nil {
		return err
	}
	return m.sync()
}

func (m mark) clear() error {
	err := os.Remove(m.path + leaving)
	if os.IsNotExist(err) {
		err = nil
	}
	return err
}

// sync writes the names of the marks to disk.
func (m mark) sync() error {
	dir, err := os.Open(filepath.Dir(m.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
