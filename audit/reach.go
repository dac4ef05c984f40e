package audit

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// Reach returns nil if the database of a URL can be reached or, for SQLite, its file can be
// written or made. It changes nothing: unlike [Open], it creates and updates no tables.
func Reach(ctx context.Context, url string) error {
	if path, isFile := strings.CutPrefix(url, "sqlite://"); isFile {
		return writable(path)
	}
	db, err := openDatabase(url, hclog.NewNullLogger())
	if err != nil {
		return unusable{err}
	}
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	err = db.explain(db.writer.PingContext(ctx))
	_ = db.close()
	return err
}

// writable reports whether a file can be written, or made with the directories above it.
func writable(path string) error {
	path, err := filepath.Abs(path)
	for err == nil {
		if _, err = os.Stat(path); err == nil {
			if err = unix.Access(path, unix.W_OK); err != nil {
				err = fmt.Errorf("%s: %w", path, err)
			}
			return err
		}
		if !os.IsNotExist(err) {
			return err
		}
		path, err = filepath.Dir(path), nil
	}
	return err
}
