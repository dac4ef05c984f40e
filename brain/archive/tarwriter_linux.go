package archive

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/septemberai/orch/brain"
)

// tarWriter writes archives in the format pax, which has times in nanoseconds. Go's
// archive/tar cannot write sparse files.
type tarWriter struct {
	to   io.Writer
	left int64 // of the data of the present entry
	pad  int64 // after it
}

var zeros [block]byte

// records builds the records of an entry. Each is "LENGTH KEY=VALUE\n"; LENGTH counts itself.
type records struct{ strings.Builder }

func (r *records) add(key, value string) {
	rest := len(key) + len(value) + len(" =\n")
	n := rest + len(strconv.Itoa(rest))
	if m := rest + len(strconv.Itoa(n)); m != n {
		n = m
	}
	_, _ = fmt.Fprintf(r, "%d %s=%s\n", n, key, value)
}

// begin writes the headers of an entry. The data of a file follows by Write: all of it, or
// of a sparse file its extents.
func (w *tarWriter) begin(e *entry) error {
	if err := w.end(); err != nil {
		return err
	}
	name := e.name
	if e.kind == typeDir {
		name += "/"
	}
	var r records
	size, sparseMap := int64(0), ""
	if e.kind == typeFile {
		size = e.size
	}
	if e.sparse {
		sparseMap = mapOf(e)
		size = int64(len(sparseMap)) + e.stored()
		r.add(keyMajor, "1")
		r.add(keyMinor, "0")
		r.add(keySparse, name)
		r.add(keyReal, strconv.FormatInt(e.size, 10))
		// What a tar that does not know the format extracts must not look like the file.
		name = "GNUSparseFile.0/" + name[strings.LastIndexByte(name, '/')+1:]
	}
	r.add(keyPath, name)
	if e.link != "" {
		r.add(keyLink, e.link)
	}
	if size >= 1<<33 {
		r.add(keySize, strconv.FormatInt(size, 10))
	}
	if e.uid >= 1<<21 || e.gid >= 1<<21 {
		r.add(keyUID, strconv.FormatUint(uint64(e.uid), 10))
		r.add(keyGID, strconv.FormatUint(uint64(e.gid), 10))
	}
	r.add(keyModified, timeText(e.seconds, e.nanos))
	for _, x := range e.xattrs {
		r.add(keyXattr+x.Name, x.Value)
	}
	if r.Len() > maxRecords {
		return brain.Errorf(brain.Unreadable, "names and attributes of an entry are longer than %d bytes", maxRecords)
	}
	if err := w.header(typeRecords, "PaxHeaders/"+lastPart(e.name), &entry{mode: 0o644}, int64(r.Len())); err != nil {
		return err
	}
	if _, err := io.WriteString(w.to, r.String()+string(zeros[:padding(int64(r.Len()))])); err != nil {
		return err
	}
	if err := w.header(e.kind, name, e, size); err != nil {
		return err
	}
	_, err := io.WriteString(w.to, sparseMap)
	w.left = size - int64(len(sparseMap))
	w.pad = padding(w.left)
	return err
}

// mapOf is the list of a sparse file's extents, padded to full blocks.
func mapOf(e *entry) string {
	var b strings.Builder
	extents := e.extents
	n := len(extents)
	last := n == 0 || extents[n-1].Offset+extents[n-1].Length < e.size
	if last { // GNU tar ends the list with the end of the file
		n++
	}
	_, _ = fmt.Fprintf(&b, "%d\n", n)
	for _, x := range extents {
		_, _ = fmt.Fprintf(&b, "%d\n%d\n", x.Offset, x.Length)
	}
	if last {
		_, _ = fmt.Fprintf(&b, "%d\n0\n", e.size)
	}
	b.Write(zeros[:padding(int64(b.Len()))])
	return b.String()
}

// timeText writes a time as decimal. The nanoseconds count forward, as in struct timespec;
// the text of a time before 1970 counts backward.
func timeText(seconds, nanos int64) string {
	sign := ""
	if seconds < 0 {
		sign, seconds = "-", -seconds
		if nanos > 0 {
			seconds, nanos = seconds-1, 1e9-nanos
		}
	}
	return fmt.Sprintf("%s%d.%09d", sign, seconds, nanos)
}

func lastPart(name string) string {
	name = name[strings.LastIndexByte(name, '/')+1:]
	return name[:min(len(name), 80)]
}

func padding(n int64) int64 { return -n & (block - 1) }

// header writes one block in the format ustar. What does not fit into it is in the records.
func (w *tarWriter) header(kind byte, name string, e *entry, size int64) error {
	var b [block]byte
	octal := func(at, width int, n int64) { copy(b[at:], fmt.Sprintf("%0*o", width-1, n)) }
	small := func(n uint32) int64 {
		if n >= 1<<21 {
			return 0
		}
		return int64(n)
	}
	copy(b[0:100], name)
	octal(100, 8, int64(e.mode))
	octal(108, 8, small(e.uid))
	octal(116, 8, small(e.gid))
	if size < 1<<33 {
		octal(124, 12, size)
	} else {
		octal(124, 12, 0)
	}
	octal(136, 12, max(0, min(e.seconds, 1<<33-1)))
	b[156] = kind
	copy(b[157:257], e.link)
	copy(b[257:], "ustar\x0000")
	copy(b[148:], fmt.Sprintf("%06o\x00 ", checksum(&b)))
	_, err := w.to.Write(b[:])
	return err
}

// checksum is the sum of a header's bytes, its own field counted as blanks.
func checksum(b *[block]byte) (sum int64) {
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int64(c)
	}
	return sum
}

// Write writes data of the present entry.
func (w *tarWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.left {
		return 0, brain.Errorf(brain.Unreadable, "a file has become longer")
	}
	n, err := w.to.Write(p)
	w.left -= int64(n)
	return n, err
}

// end completes the present entry.
func (w *tarWriter) end() error {
	if w.left > 0 {
		return brain.Errorf(brain.Unreadable, "a file has become shorter")
	}
	_, err := w.to.Write(zeros[:w.pad])
	w.pad = 0
	return err
}

// Close ends the archive.
func (w *tarWriter) Close() error {
	if err := w.end(); err != nil {
		return err
	}
	_, err := io.WriteString(w.to, string(zeros[:])+string(zeros[:]))
	return err
}
