package archive

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/septemberai/orch/brain/tree"
)

// header is what is used of a block in the format ustar. The rest is in the records.
type header struct {
	kind byte
	mode int64
	size int64
}

func parseHeader(b *[block]byte) (header, error) {
	h := header{kind: b[156]}
	sum, err := octal(b[148:156])
	if err != nil {
		return h, err
	}
	if sum != checksum(b) || string(b[257:265]) != "ustar\x0000" {
		return h, corrupt("a header with a wrong sum")
	}
	if h.mode, err = octal(b[100:108]); err != nil {
		return h, err
	}
	if h.size, err = octal(b[124:136]); err != nil {
		return h, err
	}
	if h.mode > 0o7777 {
		return h, corrupt("a mode that does not exist")
	}
	return h, nil
}

func octal(b []byte) (int64, error) {
	text := strings.TrimRight(string(b), "\x00 ")
	n, err := strconv.ParseUint(text, 8, 62)
	if err != nil {
		return 0, corrupt("a header without a number")
	}
	return int64(n), nil
}

// parse reads the records of an entry, and returns how much data follows it.
func (e *entry) parse(text []byte, size int64) (int64, error) {
	path, name, real, modified := "", "", int64(-1), false
	seen := map[string]bool{}
	for len(text) > 0 {
		key, value, rest, err := record(text)
		if err != nil {
			return 0, err
		}
		if seen[key] {
			return 0, corrupt("a record is given twice")
		}
		seen[key], text = true, rest
		switch {
		case key == keyPath:
			path = value
		case key == keyLink:
			e.link = value
		case key == keySize:
			size, err = decimal(value)
		case key == keyModified:
			modified = true
			e.seconds, e.nanos, err = parseTime(value)
		case key == keySparse:
			name = value
		case key == keyReal:
			real, err = decimal(value)
		case key == keyMajor && value == "1", key == keyMinor && value == "0":
		case key == keyUID, key == keyGID: // what is restored belongs to who restores it
		case strings.HasPrefix(key, keyXattr+"user."):
			e.xattrs = append(e.xattrs, tree.Xattr{Name: key[len(keyXattr):], Value: value})
		default:
			return 0, corrupt("an unknown record")
		}
		if err != nil {
			return 0, err
		}
	}
	e.sparse = seen[keyMajor]
	if e.sparse != seen[keyMinor] || e.sparse != seen[keySparse] || e.sparse != seen[keyReal] || !modified {
		return 0, corrupt("records are missing")
	}
	e.name, e.size = path, size
	if e.sparse {
		e.name, e.size = name, real
	}
	return size, e.check()
}

// check returns an error if the entry has a name outside of its archive, or is something
// that is never in one: a device, for example.
func (e *entry) check() error {
	switch e.kind {
	case typeFile:
		if e.size > maxSize {
			return corrupt("a file that is too large")
		}
	case typeLink, typeSymlink, typeDir, typeFIFO:
		if e.size != 0 || e.sparse {
			return corrupt("something that is no file has data")
		}
	default:
		return corrupt("an entry of a type that is never in an archive")
	}
	if e.kind == typeDir {
		var slash bool
		if e.name, slash = strings.CutSuffix(e.name, "/"); !slash {
			return corrupt("the name of a directory without its slash")
		}
	}
	isLink := e.kind == typeLink || e.kind == typeSymlink
	if isLink != (e.link != "") || strings.IndexByte(e.link, 0) >= 0 {
		return corrupt("a link without a target")
	}
	if e.name == "." && e.kind == typeDir {
		return nil
	}
	if !local(e.name) || e.kind == typeLink && !local(e.link) {
		return corrupt("a name that leads out of the archive")
	}
	return nil
}

// local reports whether a path has only names of files: it is not absolute, and has no
// "." and no "..". Names that a restore needs for itself are not local either.
func local(path string) bool {
	if len(path) > maxName || strings.HasPrefix(path, tree.Reserved) || strings.IndexByte(path, 0) >= 0 {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || len(part) > 255 {
			return false
		}
	}
	return true
}

// record splits the first record off.
func record(text []byte) (key, value string, rest []byte, err error) {
	digits, _, found := bytes.Cut(text[:min(len(text), 10)], []byte(" "))
	n, err := decimal(string(digits))
	if !found || err != nil || n > int64(len(text)) || n < int64(len(digits))+3 || text[n-1] != '\n' {
		return "", "", nil, corrupt("a record with a wrong length")
	}
	k, v, found := bytes.Cut(text[len(digits)+1:n-1], []byte("="))
	if !found {
		return "", "", nil, corrupt("a record without a value")
	}
	return string(k), string(v), text[n:], nil
}

func decimal(text string) (int64, error) {
	n, err := strconv.ParseUint(text, 10, 62)
	if err != nil {
		return 0, corrupt("a number is none")
	}
	return int64(n), nil
}

// parseTime is the reverse of timeText.
func parseTime(text string) (seconds, nanos int64, err error) {
	text, negative := strings.CutPrefix(text, "-")
	whole, fraction, _ := strings.Cut(text, ".")
	if len(fraction) != 9 {
		return 0, 0, corrupt("a time is none")
	}
	if seconds, err = decimal(whole); err == nil {
		nanos, err = decimal(fraction)
	}
	if negative {
		seconds = -seconds
		if nanos > 0 {
			seconds, nanos = seconds-1, 1e9-nanos
		}
	}
	return seconds, nanos, err
}
