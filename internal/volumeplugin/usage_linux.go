package volumeplugin

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"unsafe"
)

// Usage lists the volumes in a directory, with the usage that their filesystem counts, and
// the quota. It reads no files of volumes, so it is fast. Volumes that are not projects are
// omitted: mkdir created them, and they never had a quota.
func Usage(volumes string, out io.Writer) error {
	if err := enforced(volumes); err != nil {
		return err
	}
	entries, err := os.ReadDir(volumes)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "VOLUME\tMIB\tQUOTA\tFILES")
	for _, e := range entries {
		if !e.IsDir() || !idPattern.MatchString(e.Name()) {
			continue
		}
		q, err := usageOf(filepath.Join(volumes, e.Name()))
		switch {
		case os.IsNotExist(err): // deleted meanwhile
			continue
		case err != nil:
			return fmt.Errorf("volume %s: %w", e.Name(), err)
		case q == nil:
			continue
		}
		limit := "none"
		if q.blocks > 0 {
			limit = fmt.Sprint(q.blocks >> 10)
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t%d\n", e.Name(), q.bytes>>20, limit, q.isUsed)
	}
	return table.Flush()
}

// usageOf returns what is counted for a volume; nil: nothing is counted.
func usageOf(dir string) (*quota, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	a, err := attributesOf(d)
	if err != nil || a.project == 0 {
		return nil, err
	}
	q := new(quota)
	return q, quotactl(d, getQuota, a.project, unsafe.Pointer(q))
}
