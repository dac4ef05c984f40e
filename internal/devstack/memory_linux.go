package devstack

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// shared is the file system in memory that every process may use (shm_overview(7)).
	shared       = "/dev/shm"
	memoryPrefix = "orch-dev-"
	// memoryRoom is how much must be free there. A stack needs 70 to 200 MiB, of which 64 are
	// the first segment of Consul's log, and several stacks may start at the same time.
	memoryRoom = 2 << 30
)

// memoryDir returns the directory for the databases of the stack with this id in memory, or
// "" if there is no room.
func memoryDir(id string) string {
	var fs unix.Statfs_t
	if err := unix.Statfs(shared, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || fs.Bavail*uint64(fs.Bsize) < memoryRoom || unix.Access(shared, unix.W_OK) != nil {
		return ""
	}
	return filepath.Join(shared, memoryPrefix+id)
}

// removeMemory removes the databases in memory. It trusts no other path in a marker.
func removeMemory(id identity) error {
	if id.Memory == "" {
		return nil
	}
	if filepath.Dir(id.Memory) != shared || !strings.HasPrefix(filepath.Base(id.Memory), memoryPrefix) {
		return fmt.Errorf("%s is not a directory of a stack in memory", id.Memory)
	}
	return os.RemoveAll(id.Memory)
}

// DataDir returns the directory of the database of an agent. Those of the tasks and host
// volumes of a Nomad client are below Dir.
func (s *Stack) DataDir(c Component) string {
	if s.id.Memory != "" {
		return filepath.Join(s.id.Memory, string(c))
	}
	return s.path(c, "")
}

// nomadState is what a Nomad agent has below its DataDir.
func nomadState(c Component) string {
	if isNomadServer(c) {
		return "server"
	}
	return "client"
}
