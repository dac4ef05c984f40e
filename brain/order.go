package brain

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// OrderEnv is the environment variable with the path of the worker's order, a JSON file.
// The order contains secrets; the path does not.
const OrderEnv = "ORCH_BRAIN_ORDER"

// Order is all that a worker gets to know. Exactly one of Snapshot and Restore is set.
type Order struct {
	// ID names the order. A worker that starts again with the same id and the same work
	// directory continues; what lies there of another order is removed.
	ID string `json:"id"`
	// Work is a directory that outlives a restart of the worker, and that it has for itself.
	// Best on the file system of the brain, because only there a copy shares its blocks.
	Work     string         `json:"work"`
	Snapshot *SnapshotOrder `json:"snapshot,omitempty"`
	Restore  *RestoreOrder  `json:"restore,omitempty"`

	// CA is in PEM; empty: the authorities of the system.
	CA string `json:"ca,omitempty"`
	// BytesPerSecond limits the transfer; 0: no limit.
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	// GiveUpS is for how long a store that is away is tried, in seconds; default 900. It
	// begins anew with every success.
	GiveUpS int64 `json:"give_up_s,omitempty"`
	// StallS is after how many seconds without progress a connection is given up; default 60.
	StallS int64 `json:"stall_s,omitempty"`
}

// SnapshotOrder asks for a snapshot.
type SnapshotOrder struct {
	Brain     string `json:"brain"` // the directory to copy
	Recipient string `json:"recipient"`
	// Parts are pre-signed URLs, in the order of the parts of the upload.
	Parts     URLs  `json:"parts"`
	PartBytes int64 `json:"part_bytes"` // size of each part but the last
	// Listen is an address on which the worker waits for the request to copy, because only
	// its caller knows when the engine is frozen. Empty: it copies at once.
	Listen string `json:"listen,omitempty"`
	Token  string `json:"token,omitempty"`
	WaitS  int64  `json:"wait_s,omitempty"` // for how long it waits, in seconds; default 300
}

// RestoreOrder asks for a restore into an empty directory.
type RestoreOrder struct {
	Volume   string `json:"volume"`   // the directory to fill
	Identity string `json:"identity"` // the secret key (age)
	URL      string `json:"url"`      // pre-signed
	// Drill: the volume is removed afterwards, and what is in it is checked before.
	Drill   bool `json:"drill,omitempty"`
	Content `json:"content"`
}

const (
	// MinPart is the smallest part that S3 takes, but for the last one of an upload.
	MinPart = 5 << 20
	// MaxPart limits the worker's memory, which holds two parts.
	MaxPart = 128 << 20
	// maxURLs is how much text a list of URLs may have; S3 has 10,000 parts at most.
	maxURLs = 32 << 20
)

// GiveUp returns GiveUpS or its default.
func (o *Order) GiveUp() time.Duration { return seconds(o.GiveUpS, 900) }

// Stall returns StallS or its default.
func (o *Order) Stall() time.Duration { return seconds(o.StallS, 60) }

// Wait returns WaitS or its default.
func (s *SnapshotOrder) Wait() time.Duration { return seconds(s.WaitS, 300) }

func seconds(n, otherwise int64) time.Duration {
	if n <= 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

// ReadOrder reads the file at path and checks it. Errors have the kind BadOrder, and quote
// nothing of the file.
func ReadOrder(path string) (*Order, error) {
	if path == "" {
		return nil, Errorf(BadOrder, "%s is not set", OrderEnv)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, Errorf(BadOrder, "the order cannot be read: %w", err)
	}
	var o Order
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return nil, &Error{Kind: BadOrder, Message: "the order is not valid JSON of a known order", Err: err}
	}
	return &o, o.check()
}

func (o *Order) check() error {
	s, r := o.Snapshot, o.Restore
	switch {
	case !IsID(o.ID) || o.Work == "":
		return Errorf(BadOrder, "the order has no id or no work directory")
	case (s == nil) == (r == nil):
		return Errorf(BadOrder, "the order must have one of snapshot and restore")
	case s != nil && (s.Brain == "" || s.Recipient == "" || len(s.Parts) == 0):
		return Errorf(BadOrder, "brain, recipient or parts are missing")
	case s != nil && (s.PartBytes < MinPart || s.PartBytes > MaxPart):
		return Errorf(BadOrder, "part_bytes must be from %d to %d", MinPart, MaxPart)
	case s != nil && s.Listen != "" && len(s.Token) < 16:
		return Errorf(BadOrder, "a listening worker needs a token of at least 16 characters")
	case r != nil && (r.Volume == "" || r.Identity == "" || r.URL == ""):
		return Errorf(BadOrder, "volume, identity or url are missing")
	}
	if r != nil {
		if err := r.Content.Check(); err != nil {
			return &Error{Kind: BadOrder, Message: err.Error(), Err: err}
		}
	}
	return nil
}

// URLs is a list of URLs. In JSON it is one compressed string, because a Nomad variable
// holds 64 KiB and pre-signed URLs of one upload repeat one another: 400 bytes become 55.
type URLs []string

// MarshalJSON implements json.Marshaler.
func (u URLs) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	for _, one := range u {
		if strings.Contains(one, "\n") {
			return nil, fmt.Errorf("a URL has a line break")
		}
		_, _ = io.WriteString(z, one+"\n")
	}
	_ = z.Close()
	return json.Marshal(base64.StdEncoding.EncodeToString(b.Bytes()))
}

// UnmarshalJSON implements json.Unmarshaler.
func (u *URLs) UnmarshalJSON(text []byte) error {
	var packed []byte // encoding/json decodes base64
	if err := json.Unmarshal(text, &packed); err != nil {
		return err
	}
	z, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	all, err := io.ReadAll(io.LimitReader(z, maxURLs+1))
	if err != nil {
		return err
	}
	if len(all) > maxURLs {
		return fmt.Errorf("more than %d bytes of URLs", maxURLs)
	}
	*u = strings.Split(strings.TrimSuffix(string(all), "\n"), "\n")
	if len(all) == 0 {
		*u = nil
	}
	return nil
}
