package config

import (
	"errors"
	"path"
	"strings"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/store"
	"github.com/septemberai/orch/internal/reload"
	"github.com/septemberai/orch/jobs"
	"github.com/septemberai/orch/scheduler"
)

// workerName is the executable that makes snapshots, in the directory of engines'
// executables.
const workerName = "orch-brain"

// SnapshotStore returns the store of snapshots, which is not looked at.
func (c *Config) SnapshotStore() (store.Store, error) {
	return store.Open(c.SnapshotURL, store.Credentials{AccessKey: c.SnapshotAccessKey, SecretKey: c.SnapshotSecretKey, CA: c.snapshotCA})
}

// LocalSnapshots reports whether snapshots are in a directory, which suits one machine only.
func (c *Config) LocalSnapshots() bool { return strings.HasPrefix(c.SnapshotURL, "file:") }

// snapshots returns the scheduler's settings for snapshots, without the store.
func (c *Config) snapshots() scheduler.Snapshots {
	worker := c.SnapshotWorker
	if worker == "" && jobs.Driver(c.EngineDriver) == jobs.RawExec {
		worker = path.Join(c.EngineBinDir, workerName)
	}
	return scheduler.Snapshots{CA: c.snapshotCA, Worker: worker, PerNode: c.SnapshotsPerNode, BytesPerSecond: int64(c.SnapshotBytesPerS), DrillsPerDay: c.DrillsPerDay}
}

// checkSnapshots reads the files of the snapshot store's keys and authorities, and reports
// the mistakes in its settings. No message contains a value, because it may be a key.
func (c *Config) checkSnapshots(bad func(ok bool, name, format string, args ...any)) {
	read := func(key *string, file, name string) {
		if file == "" {
			return
		}
		bad(*key == "", name+"_FILE", "and %s are both set; set only one of them", name)
		if *key == "" {
			text, err := reload.Token(file)
			bad(err == nil, name+"_FILE", "%v", err)
			*key = text
		}
	}
	const access, secret = "ORCH_SNAPSHOT_ACCESS_KEY", "ORCH_SNAPSHOT_SECRET_KEY" //nolint:gosec // G101: names of variables
	read(&c.SnapshotAccessKey, c.SnapshotAccessKeyFile, access)
	read(&c.SnapshotSecretKey, c.SnapshotSecretKeyFile, secret)
	switch plain := isPlain(c.SnapshotAccessKey) && isPlain(c.SnapshotSecretKey); {
	case !plain:
		bad(isPlain(c.SnapshotAccessKey), access, "must be ASCII characters without blanks")
		bad(isPlain(c.SnapshotSecretKey), secret, "must be ASCII characters without blanks")
	case c.SnapshotSecretKey == "" && c.SnapshotSecretKeyFile == "":
		bad(c.SnapshotAccessKey == "", access, "is set, so %s or %s_FILE must be set, too", secret, secret)
	case c.SnapshotAccessKey == "" && c.SnapshotAccessKeyFile == "":
		bad(c.SnapshotSecretKey == "", secret, "is set, so %s or %s_FILE must be set, too", access, access)
	}
	if c.SnapshotCAFile != "" {
		text, err := reload.Authorities(c.SnapshotCAFile)
		bad(err == nil, "ORCH_SNAPSHOT_CA_FILE", "%v", err)
		c.snapshotCA = string(text)
	}
	_, err := store.Open(c.SnapshotURL, store.Credentials{AccessKey: c.SnapshotAccessKey, SecretKey: c.SnapshotSecretKey})
	if why := new(brain.Error); errors.As(err, &why) {
		err = errors.New(why.Message)
	}
	bad(err == nil, "ORCH_SNAPSHOT_URL", "%v", err)
	if worker := c.SnapshotWorker; worker != "" {
		if jobs.Driver(c.EngineDriver) == jobs.RawExec {
			bad(isJobPath(worker), "ORCH_SNAPSHOT_WORKER", "must be an absolute path with raw_exec, "+plainPath)
		} else {
			bad(scheduler.CheckImage(jobs.Driver(c.EngineDriver), worker) == nil, "ORCH_SNAPSHOT_WORKER", "is not an image")
		}
	}
}

// isPlain reports whether s can be a key of a store.
func isPlain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
