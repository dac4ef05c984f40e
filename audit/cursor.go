package audit

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"
)

// position is the position of a row in the order of all lists.
type position struct {
	timestamp time.Time
	id        int64
}

// A cursor is base64url of a version byte, the time in microseconds, the id, and a checksum
// of these and of whose rows the list contains. It is not secret. The checksum only detects
// cursors that are from other lists, made up or truncated.
const (
	cursorVersion = 1
	cursorLength  = 1 + 8 + 8 + 4
)

func (p position) cursor(productID string) string {
	b := make([]byte, 0, cursorLength)
	b = append(b, cursorVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(p.timestamp.UnixMicro()))
	b = binary.BigEndian.AppendUint64(b, uint64(p.id))
	b = binary.BigEndian.AppendUint32(b, cursorSum(productID, b))
	return base64.RawURLEncoding.EncodeToString(b)
}

func cursorSum(productID string, place []byte) uint32 {
	return crc32.ChecksumIEEE(append([]byte(productID+"/"), place...))
}

func parseCursor(productID, cursor string) (position, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) != cursorLength || b[0] != cursorVersion ||
		binary.BigEndian.Uint32(b[17:]) != cursorSum(productID, b[:17]) {
		return position{}, fmt.Errorf("%w: %.40q", ErrCursor, cursor)
	}
	return position{
		timestamp: time.UnixMicro(int64(binary.BigEndian.Uint64(b[1:]))).UTC(),
		id:        int64(binary.BigEndian.Uint64(b[9:])),
	}, nil
}
