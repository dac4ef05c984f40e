package archive

import (
	"errors"
	"io"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/tree"
)

// tarReader reads what tarWriter writes and nothing else: every deviation is an error of the
// kind brain.Corrupt. It keeps no list of what it has read.
type tarReader struct {
	from io.Reader
	left int64 // of the data of the present entry
	pad  int64
}

func corrupt(what string) error {
	return brain.Errorf(brain.Corrupt, "the archive is damaged: %s", what)
}

// full reads exactly len(b) bytes. The end of the archive before that means that it is
// truncated.
func (r *tarReader) full(b []byte) error {
	_, err := io.ReadFull(r.from, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("it ends too early")
	}
	return err
}

// next returns the next entry, or io.EOF after the last. The data of the present one must
// have been read.
func (r *tarReader) next() (*entry, error) {
	if r.left > 0 {
		return nil, errors.New("the data of an entry was not read")
	}
	var b [block]byte
	if err := r.full(b[:r.pad]); err != nil {
		return nil, err
	}
	r.pad = 0
	if err := r.full(b[:]); err != nil {
		return nil, err
	}
	if b == zeros {
		return nil, r.finish()
	}
	h, err := parseHeader(&b)
	if err != nil {
		return nil, err
	}
	if h.kind != typeRecords || h.size <= 0 || h.size > maxRecords {
		return nil, corrupt("an entry without records")
	}
	text := make([]byte, h.size+padding(h.size))
	if err := r.full(text); err != nil {
		return nil, err
	}
	text = text[:h.size]
	if err := r.full(b[:]); err != nil {
		return nil, err
	}
	if h, err = parseHeader(&b); err != nil {
		return nil, err
	}
	e := &entry{kind: h.kind, mode: uint32(h.mode)}
	size, err := e.parse(text, h.size)
	if err != nil {
		return nil, err
	}
	r.left, r.pad = size, padding(size)
	if e.sparse {
		err = r.sparseMap(e)
	}
	return e, err
}

// finish reads the second block of zeros that ends an archive, after which is nothing.
func (r *tarReader) finish() error {
	var b [block]byte
	if err := r.full(b[:]); err != nil {
		return err
	}
	if b != zeros {
		return corrupt("it has a hole")
	}
	n, err := io.ReadFull(r.from, b[:1])
	if n > 0 {
		return corrupt("it goes on after its end")
	}
	return err // io.EOF, or why nothing could be read
}

// Read reads data of the present entry: of a sparse file only its extents.
func (r *tarReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.from.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = nil
		if r.left > 0 {
			err = corrupt("it ends too early")
		}
	}
	return n, err
}

// sparseMap reads the list of a sparse file's extents, which is before its data.
func (r *tarReader) sparseMap(e *entry) error {
	var used int64
	count, err := r.number(&used)
	if err != nil {
		return err
	}
	if count < 1 || count > tree.MaxExtents+1 {
		return corrupt("a sparse file with too many parts")
	}
	end := int64(0)
	for range count {
		offset, err := r.number(&used)
		if err != nil {
			return err
		}
		length, err := r.number(&used)
		if err != nil {
			return err
		}
		if offset < end || offset > e.size || length > e.size-offset {
			return corrupt("a sparse file whose parts overlap or are outside of it")
		}
		end = offset + length
		if length > 0 {
			e.extents = append(e.extents, tree.Extent{Offset: offset, Length: length})
		}
	}
	rest := make([]byte, padding(used))
	if r.left < int64(len(rest)) {
		return corrupt("a sparse file without its list")
	}
	r.left -= int64(len(rest))
	if err := r.full(rest); err != nil {
		return err
	}
	if r.left != e.stored() {
		return corrupt("a sparse file with another size than its parts")
	}
	r.pad = padding(r.left)
	return nil
}

// number reads a decimal line of a sparse map.
func (r *tarReader) number(used *int64) (int64, error) {
	n, digits := int64(0), 0
	for {
		var c [1]byte
		if r.left == 0 || digits > 18 {
			return 0, corrupt("a sparse file without its list")
		}
		if err := r.full(c[:]); err != nil {
			return 0, err
		}
		r.left--
		*used++
		if c[0] == '\n' && digits > 0 {
			return n, nil
		}
		if c[0] < '0' || c[0] > '9' {
			return 0, corrupt("a sparse file without its list")
		}
		n = n*10 + int64(c[0]-'0')
		digits++
	}
}
