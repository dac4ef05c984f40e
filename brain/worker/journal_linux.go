package worker

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/url"
	"os"

	"github.com/septemberai/orch/brain"
	"github.com/septemberai/orch/brain/archive"
	"github.com/septemberai/orch/brain/transfer"
)

// journal is a file with a line for its upload and key, and a line for each part that is
// going to be sent, and that is stored. It is as secret as the copy of the brain beside it,
// and like that it is not made durable: after a crash of the machine both are begun anew, with
// another key.
type journal struct {
	file  *os.File
	key   archive.Key
	parts map[int]transfer.Part
}

// first is the first line.
type first struct {
	Upload string      `json:"upload"`
	Key    archive.Key `json:"key"`
}

// openJournal reads the journal of an upload. One of another upload is replaced, with a new
// key.
func openJournal(path string, o *brain.SnapshotOrder) (*journal, error) {
	j := &journal{parts: map[int]transfer.Part{}}
	upload, err := nameOf(o)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err == nil {
		j.file = f
		if j.read(upload) {
			return j, nil
		}
		_ = f.Close()
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if j.key, err = archive.NewKey(o.Recipient); err != nil {
		return nil, err
	}
	j.parts = map[int]transfer.Part{}
	line, err := json.Marshal(first{upload, j.key})
	if err == nil {
		err = writeVolatile(path, append(line, '\n'))
	}
	if err == nil {
		j.file, err = os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	}
	return j, err
}

// nameOf identifies an upload and everything on which its parts depend: not the signatures,
// which are new when an order is signed again.
func nameOf(o *brain.SnapshotOrder) (string, error) {
	u, err := url.Parse(o.Parts[0])
	if err != nil {
		return "", &brain.Error{Kind: brain.BadOrder, Message: "a part has no valid URL"}
	}
	text, err := json.Marshal([]any{u.Host, u.Path, u.Query().Get("uploadId"), o.PartBytes, o.Recipient})
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:]), err
}

// read reports whether the journal is that of an upload. The last line may be torn: what it
// notes did not happen yet. The journal then begins a new line.
func (j *journal) read(upload string) bool {
	lines := bufio.NewScanner(j.file)
	lines.Buffer(nil, 1<<20)
	lines.Split(complete)
	var f first
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &f) != nil || f.Upload != upload {
		return false
	}
	j.key = f.Key
	end := int64(len(lines.Bytes()))
	for lines.Scan() {
		var p transfer.Part
		if json.Unmarshal(lines.Bytes(), &p) != nil || p.Number < 1 {
			return false
		}
		j.parts[p.Number] = p
		end += int64(len(lines.Bytes()))
	}
	return lines.Err() == nil && j.file.Truncate(end) == nil
}

// complete splits lines with their ends. It omits a last one without an end.
func complete(data []byte, _ bool) (int, []byte, error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i+1], nil
	}
	return 0, nil, nil
}

// Part implements transfer.Journal.
func (j *journal) Part(number int) (transfer.Part, bool) {
	p, noted := j.parts[number]
	return p, noted
}

// Note implements transfer.Journal.
func (j *journal) Note(p transfer.Part) error {
	line, err := json.Marshal(p)
	if err == nil {
		_, err = j.file.Write(append(line, '\n'))
	}
	if err == nil {
		j.parts[p.Number] = p
	}
	return err
}

func (j *journal) close() { _ = j.file.Close() }
