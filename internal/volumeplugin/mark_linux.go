package volumeplugin

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A mark says that a volume was made, and lies apart from it: beside the plugin, which is
// to be on another filesystem than the volumes. When a node comes back without the disk of
// its volumes, Nomad asks for each of them to be made again. A directory that is missing
// although it has its mark is not made: an engine in it would begin without its memory,
// and the memory would be on the disk all the same.
type mark struct{ path string }

// marksDir is the directory of the marks in Nomad's host_volume_plugin_dir.
const marksDir = ".orch-volumes"

// leaving is what the name of a mark ends in while its volume is being deleted.
const leaving = ".deleting"

func markOf(plugins, id string) (mark, error) {
	if !filepath.IsAbs(plugins) {
		return mark{}, errors.New("DHV_PLUGIN_DIR is not an absolute path")
	}
	return mark{filepath.Join(plugins, marksDir, id)}, nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if os.IsNotExist(err) {
		return false, nil
	}
	return err == nil, err
}

// missing returns an error when the volume in dir was made before and is not there.
func (m mark) missing(dir string) error {
	there, err := exists(dir)
	if err != nil || there {
		return err
	}
	made, err := exists(m.path)
	if err == nil && made {
		err = fmt.Errorf("volume %[1]s was made before and is not in host_volumes_dir: mount its disk and restart the Nomad client, or, if the volume is lost for good, remove %[2]s/%[1]s in host_volume_plugin_dir", filepath.Base(m.path), marksDir)
	}
	return err
}

func (m mark) set() error {
	if made, err := exists(m.path); err != nil || made {
		return err
	}
	err := os.MkdirAll(filepath.Dir(m.path), 0o755)
	if err == nil {
		err = os.WriteFile(m.path, nil, 0o644)
	}
	return err
}

// leave says that the volume is being deleted: if that is cut short, it goes on although
// there is no directory any more.
func (m mark) leave() error {
	if made, err := exists(m.path); err != nil || !made {
		return err
	}
	return os.Rename(m.path, m.path+leaving)
}

func (m mark) clear() error {
	err := os.Remove(m.path + leaving)
	if os.IsNotExist(err) {
		err = nil
	}
	return err
}
