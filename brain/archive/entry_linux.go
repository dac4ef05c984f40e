package archive

import (
	"github.com/septemberai/orch/brain/tree"
)

// The types of entries (POSIX pax, "typeflag"), as far as archives here have them.
const (
	typeFile    = '0'
	typeLink    = '1' // a hard link
	typeSymlink = '2'
	typeDir     = '5'
	typeFIFO    = '6'
	typeRecords = 'x' // the records of the next entry
)

const (
	block = 512
	// maxRecords limits the records of an entry, as GNU tar and Go's archive/tar do.
	maxRecords = 1 << 20
	// maxName limits the length of a path.
	maxName = 256 * (tree.MaxDepth + 2)
	// maxSize limits the size of a file, holes included, so that each number has 18 digits.
	maxSize = 1e18 - 1
)

// The keys of records. Names are bytes as they are, UTF-8 or not: GNU tar does the same.
const (
	keyPath     = "path"
	keyLink     = "linkpath"
	keySize     = "size"
	keyModified = "mtime"
	keyUID      = "uid"
	keyGID      = "gid"
	keyXattr    = "SCHILY.xattr."
	// GNU tar's format of sparse files, version 1.0:
	// https://www.gnu.org/software/tar/manual/html_node/PAX-1.html
	keyMajor  = "GNU.sparse.major"
	keyMinor  = "GNU.sparse.minor"
	keySparse = "GNU.sparse.name"
	keyReal   = "GNU.sparse.realsize"
)

// entry is what an archive says about a file.
type entry struct {
	kind     byte
	name     string
	link     string // target of a link
	mode     uint32 // 07777
	uid, gid uint32
	seconds  int64 // of the last change
	nanos    int64
	size     int64 // of a file, with its holes
	sparse   bool
	extents  []tree.Extent // of a sparse file
	xattrs   []tree.Xattr
}

// stored is how long the data of a sparse file's extents is.
func (e *entry) stored() (n int64) {
	for _, x := range e.extents {
		n += x.Length
	}
	return n
}
