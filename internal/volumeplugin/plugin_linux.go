// Package volumeplugin is a Nomad plugin for dynamic host volumes. Like Nomad's own "mkdir"
// it creates a directory for each volume. It also limits the size of volumes with project
// quotas of the filesystem, and creates no empty directory for a volume whose disk is not
// mounted.
//
// Nomad runs it as root, with the operation as its argument and the details in DHV_*
// variables (https://developer.hashicorp.com/nomad/docs/architecture/storage/host-volumes),
// and calls create again for each volume when its client starts. All operations are
// idempotent.
package volumeplugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
)

// Version is the version that Nomad shows as an attribute of its nodes.
const Version = "1.0.0"

// QuotaParam is the volume parameter with the quota in MiB; absent or 0: no limit. The
// other parameters are those of mkdir: uid, gid and mode (octal).
const QuotaParam = "quota_mb"

// answer is the response that Nomad reads from standard output. Nomad shows Error to the
// client that requested the volume.
type answer struct {
	Version string `json:"version,omitempty"`
	Path    string `json:"path,omitempty"`
	Bytes   int64  `json:"bytes"`
	Error   string `json:"error,omitempty"`
}

// Run executes an operation of Nomad ("fingerprint", "create" or "delete") with the
// variables that getenv reads, writes the response, and returns the exit code.
func Run(operation string, getenv func(string) string, out io.Writer) int {
	a, err := run(operation, getenv)
	if err != nil {
		a = answer{Error: err.Error()}
	}
	if werr := json.NewEncoder(out).Encode(a); err != nil || werr != nil {
		return 1
	}
	return 0
}

func run(operation string, getenv func(string) string) (answer, error) {
	if operation == "fingerprint" {
		return answer{Version: Version}, nil
	}
	dir, err := directory(getenv("DHV_VOLUMES_DIR"), getenv("DHV_VOLUME_ID"))
	if err != nil {
		return answer{}, err
	}
	made, err := markOf(getenv("DHV_PLUGIN_DIR"), filepath.Base(dir))
	if err != nil {
		return answer{}, err
	}
	switch operation {
	case "create":
		p, err := parse(getenv("DHV_PARAMETERS"))
		if err == nil {
			err = made.missing(dir)
		}
		if err == nil {
			err = create(dir, p)
		}
		if err == nil {
			err = made.set()
		}
		return answer{Path: dir, Bytes: int64(p.quotaMB) << 20}, err
	case "delete":
		err := made.missing(dir)
		if err == nil {
			err = made.leave()
		}
		if err == nil {
			err = remove(dir)
		}
		if err == nil {
			err = made.clear()
		}
		return answer{}, err
	}
	return answer{}, fmt.Errorf("unknown operation %q: the operations are fingerprint, create and delete", operation)
}

var idPattern = regexp.MustCompile(`^[0-9a-fA-F-]{36}$`)

// directory returns the directory of a volume. It is the same as that of mkdir, so that
// volumes of mkdir can get a quota.
func directory(volumes, id string) (string, error) {
	if !filepath.IsAbs(volumes) {
		return "", errors.New("DHV_VOLUMES_DIR must be an absolute path")
	}
	if !idPattern.MatchString(id) { // it becomes part of a path that is deleted
		return "", errors.New("DHV_VOLUME_ID must be the id of a volume")
	}
	return filepath.Join(volumes, id), nil
}

type params struct {
	uid, gid int
	mode     os.FileMode
	quotaMB  uint32
}

func parse(text string) (params, error) {
	p, given := params{uid: -1, gid: -1, mode: 0o700}, map[string]string{}
	if text != "" {
		if err := json.Unmarshal([]byte(text), &given); err != nil {
			return p, fmt.Errorf("DHV_PARAMETERS must be a JSON object of strings: %w", err)
		}
	}
	for name, value := range given {
		var n uint64
		var err error
		switch name {
		case "mode":
			n, err = strconv.ParseUint(value, 8, 12)
			p.mode = os.FileMode(n)
		case "uid":
			p.uid, err = strconv.Atoi(value)
		case "gid":
			p.gid, err = strconv.Atoi(value)
		case QuotaParam:
			n, err = strconv.ParseUint(value, 10, 32)
			p.quotaMB = uint32(n)
		default:
			return p, fmt.Errorf("unknown parameter %q", name)
		}
		if err != nil {
			return p, fmt.Errorf("parameter %q: %w", name, err)
		}
	}
	return p, nil
}

// create creates the directory unless it exists, and sets its quota. On a filesystem
// without quotas it creates only volumes without a quota.
func create(dir string, p params) error {
	made, err := makeDir(dir, p)
	if err != nil {
		return err
	}
	switch err = enforced(dir); {
	case err == nil:
		err = limit(dir, p.quotaMB)
	case p.quotaMB == 0:
		err = nil
	}
	if err != nil && made {
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}

// halfMade is the suffix of a directory's name before it has its mode and owner.
const halfMade = ".new"

func makeDir(dir string, p params) (made bool, err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil { //nolint:gosec // the engine's user must get to its brain
		return false, err
	}
	// A directory of this name is finished, because it is renamed last. One that a crash left
	// unfinished is replaced.
	if _, err := os.Lstat(dir); err == nil || !os.IsNotExist(err) {
		return false, err
	}
	half := dir + halfMade
	if err := os.RemoveAll(half); err != nil {
		return false, err
	}
	if err := os.Mkdir(half, p.mode); err != nil {
		return false, err
	}
	err = os.Chmod(half, p.mode) // independent of the umask
	if err == nil {
		err = os.Chown(half, p.uid, p.gid)
	}
	if err == nil {
		err = os.Rename(half, dir)
	}
	if err != nil {
		return false, errors.Join(err, os.RemoveAll(half))
	}
	return true, nil
}

// remove deletes the directory with its content, and its quota.
func remove(dir string) error {
	if err := os.RemoveAll(dir + halfMade); err != nil {
		return err
	}
	if _, err := os.Lstat(dir); os.IsNotExist(err) {
		return nil
	}
	if enforced(dir) == nil {
		if err := unlimit(dir); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}
