package registry

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

const (
	// someProduct is as long as product ids are.
	someProduct = "abcdefghijklmnopqrstuvwxyz"
	// maxConsulKey is the longest key that tools around Consul take for granted.
	maxConsulKey = 512
)

var rowNamePattern = regexp.MustCompile(`^[0-9a-f]{2}/[^/]+/[A-Za-z0-9_-]*$`)

// checkRowName fails unless a user_id is one key, and the key that user_id.
func checkRowName(t interface {
	Helper()
	Fatalf(string, ...any)
}, user string) {
	t.Helper()
	name := rowName(someProduct, user)
	if !rowNamePattern.MatchString(name) {
		t.Fatalf("the row name of %q is %q: not a shard 00..ff, the product and one segment", user, name)
	}
	product, got, err := parseRowName(name)
	if err != nil || product != someProduct || got != user {
		t.Fatalf("row name %q of user %q says product %q, user %q, %v", name, user, product, got, err)
	}
	s := New(nil, "orch/")
	if key := s.engineKey(someProduct, user); len(user) <= maxUserIDBytes && len(key) > maxConsulKey {
		t.Fatalf("the key of a user_id of %d bytes is %d bytes long", len(user), len(key))
	}
	if change := s.changeKey(someProduct, user); !regexp.MustCompile(`^orch/changes/[0-9a-f]{2}$`).MatchString(change) {
		t.Fatalf("the change key of %q is %q", user, change)
	}
}

func TestRowName(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) { checkRowName(t, rapid.String().Draw(t, "user")) })
	})
	t.Run("Longest", func(t *testing.T) {
		for _, user := range []string{strings.Repeat("x", maxUserIDBytes), strings.Repeat("\U0001F600", maxUserIDBytes/4)} {
			checkRowName(t, user)
		}
	})
	t.Run("NoTwoUsersShareARow", func(t *testing.T) {
		rapid.Check(t, func(t *rapid.T) {
			a, b := rapid.String().Draw(t, "a"), rapid.String().Draw(t, "b")
			if (a == b) != (rowName(someProduct, a) == rowName(someProduct, b)) {
				t.Fatalf("users %q and %q: row names %q and %q", a, b, rowName(someProduct, a), rowName(someProduct, b))
			}
		})
	})
	t.Run("NoTwoProductsShareARow", func(t *testing.T) {
		if rowName("a", "user") == rowName("b", "user") {
			t.Fatal("one row for a user of two products")
		}
	})
	t.Run("ShardsAreAllUsed", func(t *testing.T) {
		seen := map[string]bool{}
		for i := range 10_000 {
			seen[shard(someProduct, string(rune(i+0x10000)))] = true
		}
		if len(seen) != 256 {
			t.Fatalf("10,000 users are in %d of 256 shards", len(seen))
		}
	})
	good := rowName(someProduct, "user-1")
	for name, bad := range map[string]string{
		"ErrParts":       "00/only-two",
		"ErrFourParts":   good + "/more",
		"ErrEmpty":       "",
		"ErrBase64":      good[:len(good)-1] + "!",
		"ErrOtherShard":  map[bool]string{true: "00", false: "01"}[good[:2] != "00"] + good[2:],
		"ErrOtherUser":   good[:3] + someProduct + "/" + "dXNlci0y",
		"ErrNotExactly":  nonCanonical(t),
		"ErrUnusualLine": good[:len(good)-2] + "\n" + good[len(good)-2:],
	} {
		t.Run(name, func(t *testing.T) {
			if product, user, err := parseRowName(bad); err == nil {
				t.Fatalf("row name %q is taken for user %q of %q", bad, user, product)
			}
		})
	}
}

// nonCanonical is a row name whose last character has bits that say nothing:
// a second key for one user.
func nonCanonical(t *testing.T) string {
	t.Helper()
	name := rowName(someProduct, "a") // "YQ"
	if !strings.HasSuffix(name, "/YQ") {
		t.Fatalf("row name of \"a\" is %q", name)
	}
	return strings.TrimSuffix(name, "YQ") + "YR"
}

func FuzzRowName(f *testing.F) {
	for _, user := range []string{"", "a", "user@example.com", "auth0|123", "a/b c", "provision", "..", "\U0001F600", "\xff\xfe", strings.Repeat("ü", 128)} {
		f.Add(user)
	}
	f.Fuzz(func(t *testing.T, user string) { checkRowName(t, user) })
}

// FuzzParseRowName: what is accepted is exactly the name of that row.
func FuzzParseRowName(f *testing.F) {
	f.Add(rowName(someProduct, "user-1"))
	f.Add("00/product/YR")
	f.Add("//")
	f.Fuzz(func(t *testing.T, name string) {
		product, user, err := parseRowName(name)
		if err == nil && rowName(product, user) != name {
			t.Fatalf("%q is taken for %q", name, rowName(product, user))
		}
	})
}

func TestCheckUserID(t *testing.T) {
	for name, id := range map[string]string{
		"OK": "user-1", "OKOneByte": "x", "OKLongest": strings.Repeat("x", 256), "OKLongestInRunes": strings.Repeat("ü", 128),
		"OKMail": "user+tag@example.com", "OKAuth0": "auth0|123", "OKSlashes": "a/b//c/", "OKSpaces": " a b ",
		"OKProvision": "provision", "OKDots": "...", "OKDotInSegment": "a/.b/c./..d", "OKEmoji": "\U0001F468\u200d\U0001F469\u200d\U0001F467", "OKInterpolation": "${node.unique.id}",
	} {
		t.Run(name, func(t *testing.T) {
			if err := CheckUserID(id); err != nil {
				t.Fatalf("%q: %v", id, err)
			}
		})
	}
	const dots = `user_id has a segment "." or ".." between slashes, which clients and proxies take out of paths`
	for name, tt := range map[string]struct{ id, want string }{
		"ErrEmpty":      {"", "user_id is empty"},
		"ErrTooLong":    {strings.Repeat("x", 257), "user_id is 257 bytes long; at most 256 are allowed"},
		"ErrTooWide":    {strings.Repeat("ü", 129), "user_id is 258 bytes long; at most 256 are allowed"},
		"ErrUTF8":       {"a\xffb", "user_id is not valid UTF-8"},
		"ErrNull":       {"a\x00b", "user_id contains a control character"},
		"ErrNewline":    {"a\nb", "user_id contains a control character"},
		"ErrTab":        {"a\tb", "user_id contains a control character"},
		"ErrDelete":     {"a\x7fb", "user_id contains a control character"},
		"ErrC1":         {"a\u0085b", "user_id contains a control character"},
		"ErrCarriage":   {"\r", "user_id contains a control character"},
		"ErrDot":        {".", dots},
		"ErrDots":       {"..", dots},
		"ErrDotFirst":   {"./a", dots},
		"ErrDotsInside": {"x/../victim", dots},
		"ErrDotLast":    {"a//.", dots},
	} {
		t.Run(name, func(t *testing.T) {
			got := "nil"
			if err := CheckUserID(tt.id); err != nil {
				got = err.Error()
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatalf("%q (-want +got):\n%s", tt.id, diff)
			}
		})
	}
}

func FuzzCheckUserID(f *testing.F) {
	f.Add("user-1")
	f.Add("\xff")
	f.Add("a\u009fb")
	f.Add("a/../b")
	f.Add("./.")
	dots := regexp.MustCompile(`(^|/)\.\.?(/|$)`)
	f.Fuzz(func(t *testing.T, id string) {
		want := len(id) >= 1 && len(id) <= 256 && utf8.ValidString(id) && !dots.MatchString(id)
		for _, r := range id {
			want = want && !unicode.In(r, unicode.Cc)
		}
		if err := CheckUserID(id); (err == nil) != want {
			t.Fatalf("%q: %v, want allowed %v", id, err, want)
		}
	})
}

// fullEngine has every field set.
func fullEngine() *Engine {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6_000_000, time.UTC)
	return &Engine{
		EngineID: "id1", ProductID: "p1", ProductSlug: "slug", UserID: "user", State: Running, Desired: Stopped, Image: "image:1",
		Resources: Resources{CPUMHz: 100, MemoryMB: 256}, NodePool: "pool", KeyVersion: 3, NodeID: "node", VolumeID: "vol",
		VolumePath: "/vol", AllocID: "alloc", URL: "http://127.0.0.1:1", CreatedAt: at, LastHealthAt: at, Reason: "crashed",
		Op: &Op{
			ID: "op", Kind: OpStart, Step: "boot", Owner: "me", BeganAt: at, Deadline: at, From: Failed, Undo: "BOOT_TIMEOUT",
			Reason: "boot_timeout", Message: "too late", KeyVersion: 4, JobIndex: 7, Supersedes: "other", AuditID: 8, RequestID: "req",
		},
		Last:         &Ended{ID: "before", Kind: OpStop, BeganAt: at, EndedAt: at, Code: "STOP_UNCONFIRMED", Message: "silent"},
		SleepPending: "attempt", KeepAwakeUntil: at,
		Idempotency: &RecordRef{Key: "key", Body: "body", CreatedAt: at},
		Index:       9, stored: Running,
	}
}

func TestEngineClone(t *testing.T) {
	e := fullEngine()
	c := e.Clone()
	if diff := cmp.Diff(e, c, cmp.AllowUnexported(Engine{})); diff != "" {
		t.Fatalf("the clone differs (-want +got):\n%s", diff)
	}
	c.Op.Step, c.State, c.Idempotency.Key, c.Last.Code = "register", Failed, "another", ""
	if e.Op.Step != "boot" || e.Last.Code == "" || e.State != Running || e.Idempotency.Key != "key" {
		t.Fatalf("a change of the clone reached the original: %+v", e)
	}
	if c := (&Engine{}).Clone(); c.Op != nil {
		t.Fatal("the clone of a row without an operation has one")
	}
}

// TestEngineFormat keeps the names in the rows: another version of the service
// reads what this one wrote.
func TestEngineFormat(t *testing.T) {
	const want = `{"engine_id":"id1","product_id":"p1","product_slug":"slug","user_id":"user","state":"running","desired":"stopped",` +
		`"image":"image:1","resources":{"cpu_mhz":100,"memory_mb":256},"node_pool":"pool","key_version":3,"node_id":"node","volume_id":"vol",` +
		`"volume_path":"/vol","alloc_id":"alloc","url":"http://127.0.0.1:1","created_at":"2026-01-02T03:04:05.006Z",` +
		`"last_health_at":"2026-01-02T03:04:05.006Z","reason":"crashed","op":{"id":"op","kind":"start","step":"boot","owner":"me",` +
		`"began_at":"2026-01-02T03:04:05.006Z","deadline":"2026-01-02T03:04:05.006Z","from":"failed","undo":"BOOT_TIMEOUT","reason":"boot_timeout","message":"too late","key_version":4,"job_index":7,` +
		`"supersedes":"other","audit_id":8,"request_id":"req"},` +
		`"last":{"id":"before","kind":"stop","began_at":"2026-01-02T03:04:05.006Z","ended_at":"2026-01-02T03:04:05.006Z","code":"STOP_UNCONFIRMED","message":"silent"},"sleep_pending":"attempt","keep_awake_until":"2026-01-02T03:04:05.006Z","idempotency":{"key":"key","body":"body","created_at":"2026-01-02T03:04:05.006Z"}}`
	got := encode(fullEngine())
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Fatalf("row (-want +got):\n%s", diff)
	}
	var back Engine
	if err := json.Unmarshal(got, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fullEngine(), &back, cmpopts.IgnoreUnexported(Engine{}), cmpopts.IgnoreFields(Engine{}, "Index")); diff != "" {
		t.Fatalf("read back (-want +got):\n%s", diff)
	}
}

func TestJobID(t *testing.T) {
	if got := (&Engine{EngineID: "abc"}).JobID(); got != "engine-abc" {
		t.Fatalf("got %q, want engine-abc (DESIGN section 1)", got)
	}
}

// TestVolumeNames: a name says whose volume it is, and none is chosen twice.
func TestVolumeNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := &Engine{EngineID: rapid.StringMatching(`[a-z2-7]{26}`).Draw(t, "engine_id")}
		seen := map[string]bool{}
		for n := 1; n < 30; n++ {
			name := e.Volume()
			if id, registration := VolumeOf(name); id != e.EngineID || seen[name] || n == 1 && registration != 1 {
				t.Fatalf("name %d is %q: of %q, registration %d", n, name, id, registration)
			}
			seen[name] = true
			for range rapid.IntRange(1, 3).Draw(t, "tries") {
				next := e.FreshVolumeName()
				if seen[next] {
					t.Fatalf("%q was chosen before", next)
				}
				seen[next], e.NextVolume = true, next
			}
			delete(seen, e.NextVolume)
			e.VolumeName = e.NextVolume
		}
	})
	for _, name := range []string{"", "engine-", "catalog", "engine-x.r1", "engine-x.r0", "engine-x.r02", "engine-x.r", "engine-x.r2.r3", "engine-x.ra", "engine-.r2"} {
		if id, n := VolumeOf(name); n != 0 || id != "" {
			t.Errorf("%q is volume %d of %q", name, n, id)
		}
	}
}
