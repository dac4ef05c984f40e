package volumeplugin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A mark says that a volume was made, and lies apart from it: beside the plugin, which is
// to be on another filesystem than the volumes. When a node comes back without the disk of
// its volumes, Nomad asks for each of them to be made again. A directory that is missing
// although it has its mark is not made: an engine in it would begin without its memory,
// and the memory would be on the disk all the same. And while none of the volumes with a
// mark is there, nothing is made or deleted: it would be beneath the disk's mount point.
type mark struct{ path string }

// marksDir is the directory of the marks in Nomad's host_volume_plugin_dir.
const marksDir = ".orch-volumes"

// leaving is what the name of a mark ends in while its volume is being deleted.
const leaving = ".deleting"

// markOf is the mark of a volume. It fails where marks cannot be written.
func markOf(plugins, id string) (mark, error) {
	if !filepath.IsAbs(plugins) {
		return mark{}, errors.New("DHV_PLUGIN_DIR is not an absolute path")
	}
	dir := filepath.Join(plugins, marksDir)
	err := os.MkdirAll(dir, 0o755)
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

// missing returns an error when the volume in dir was made before and is not there, or
// when none is that was made before.
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
		return fmt.Errorf("volume %[1]s was made before and is not in host_volumes_dir: mount its disk and restart the Nomad client, or, if the volume is lost for good, remove %[2]s/%[1]s in host_volume_plugin_dir", filepath.Base(m.path), marksDir)
	}
	return m.mounted(filepath.Dir(dir))
}

// mounted returns an error when there are marks, and the volume of none of them.
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
	return fmt.Errorf("none of the %d volumes that were made before is in host_volumes_dir: mount its disk and restart the Nomad client, or, if they are lost for good, remove their marks (%s in host_volume_plugin_dir)", missing, marksDir)
}

// set notes that the volume was made. The mark is on the disk when it returns.
func (m mark) set() error {
	if made, err := exists(m.path); err != nil || made {
		return err
	}
	f, err := os.OpenFile(m.path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close(), m.sync())
}

// leave says that the volume is being deleted: if that is interrupted, it goes on although
// there is no directory any more.
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

// sync brings the names of the marks to the disk.
func (m mark) sync() error {
	dir, err := os.Open(filepath.Dir(m.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
