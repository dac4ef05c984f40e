package engine

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// fullRow returns a row with every field set.
func fullRow() *Row {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)
	return &Row{
		EngineID: "id1", ProductID: "p1", ProductSlug: "slug", UserID: "user", State: Running, Desired: Stopped, Image: "image:1",
		Resources: Resources{CPUMHz: 100, MemoryMB: 256}, NodePool: "pool", KeyVersion: 3, NodeID: "node", VolumeID: "vol",
		VolumePath: "/vol", AllocID: "alloc", URL: "http://127.0.0.1:1", CreatedAt: at, LastHealthAt: at, Reason: "crashed",
		Op: &Operation{
			ID: "op", Kind: OpStart, Step: "boot", Owner: "me", BeganAt: at, Deadline: at, From: Failed, Undo: "BOOT_TIMEOUT",
			Reason: "boot_timeout", Message: "too late", KeyVersion: 4, JobIndex: 7, Supersedes: "other", AuditID: 8, RequestID: "req",
		},
		Last:         &Ended{ID: "before", Kind: OpStop, BeganAt: at, EndedAt: at, Code: "STOP_UNCONFIRMED", Message: "silent"},
		SleepPending: "attempt", KeepAwakeUntil: at,
		Idempotency: &IdempotencyRef{Key: "key", Body: "body", CreatedAt: at},
		Index:       9, Stored: Running,
	}
}

func TestEngineClone(t *testing.T) {
	e := fullRow()
	c := e.Clone()
	if diff := cmp.Diff(e, c); diff != "" {
		t.Fatalf("the clone differs (-want +got):\n%s", diff)
	}
	c.Op.Step, c.State, c.Idempotency.Key, c.Last.Code = "register", Failed, "another", ""
	if e.Op.Step != "boot" || e.Last.Code == "" || e.State != Running || e.Idempotency.Key != "key" {
		t.Fatalf("a change of the clone reached the original: %+v", e)
	}
	if c := (&Row{}).Clone(); c.Op != nil {
		t.Fatal("the clone of a row without an operation has one")
	}
}

// TestEngineFormat pins the field names of rows: other versions of the service read them.
func TestEngineFormat(t *testing.T) {
	const want = `{"engine_id":"id1","product_id":"p1","product_slug":"slug","user_id":"user","state":"running","desired":"stopped",` +
		`"image":"image:1","resources":{"cpu_mhz":100,"memory_mb":256},"node_pool":"pool","key_version":3,"node_id":"node","volume_id":"vol",` +
		`"volume_path":"/vol","alloc_id":"alloc","url":"http://127.0.0.1:1","created_at":"2026-01-02T03:04:05.006Z",` +
		`"last_health_at":"2026-01-02T03:04:05.006Z","reason":"crashed","op":{"id":"op","kind":"start","step":"boot","owner":"me",` +
		`"began_at":"2026-01-02T03:04:05.006Z","deadline":"2026-01-02T03:04:05.006Z","from":"failed","undo":"BOOT_TIMEOUT","reason":"boot_timeout","message":"too late","key_version":4,"job_index":7,` +
		`"supersedes":"other","audit_id":8,"request_id":"req"},` +
		`"last":{"id":"before","kind":"stop","began_at":"2026-01-02T03:04:05.006Z","ended_at":"2026-01-02T03:04:05.006Z","code":"STOP_UNCONFIRMED","message":"silent"},"sleep_pending":"attempt","keep_awake_until":"2026-01-02T03:04:05.006Z","idempotency":{"key":"key","body":"body","created_at":"2026-01-02T03:04:05.006Z"}}`
	got, err := json.Marshal(fullRow())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Fatalf("row (-want +got):\n%s", diff)
	}
	var back Row
	if err := json.Unmarshal(got, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fullRow(), &back, cmpopts.IgnoreFields(Row{}, "Index", "Stored")); diff != "" {
		t.Fatalf("read back (-want +got):\n%s", diff)
	}
}
