package server

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/septemberai/orch/engine"
)

// contract is every code in docs/openapi.yaml with its status, even if no handler returns it
// yet.
var contract = map[engine.Code]int{
	"INVALID_REQUEST": 400, "INVALID_PLATFORM_KEY": 401, "INVALID_ADMIN_KEY": 401, "POLICY_DENIED": 403, "ADMIN_KEY_READ_ONLY": 403,
	"NOT_FOUND": 404, "ENGINE_NOT_FOUND": 404, "PRODUCT_NOT_FOUND": 404, "VOLUME_NOT_FOUND": 404, "QUARANTINE_NOT_FOUND": 404, "METHOD_NOT_ALLOWED": 405,
	"ENGINE_ALREADY_EXISTS": 409, "ENGINE_ALREADY_RUNNING": 409, "ENGINE_NOT_RUNNING": 409, "ENGINE_BUSY": 409, "ENGINE_DESTROYED": 409,
	"ENGINE_QUARANTINED":  409,
	"PRODUCT_SLUG_EXISTS": 409, "PRODUCT_HAS_ENGINES": 409,
	"POLICY_CHANGED":    412,
	"REQUEST_TOO_LARGE": 413, "UNSUPPORTED_MEDIA_TYPE": 415, "IDEMPOTENCY_KEY_REUSED": 422,
	"QUOTA_EXCEEDED": 429, "RATE_LIMITED": 429, "TOO_MANY_WRONG_KEYS": 429,
	"INTERNAL_ERROR": 500, "ENGINE_BOOT_FAILED": 502, "BACKEND_ERROR": 502, "BACKEND_REFUSED": 502,
	"PORT_EXHAUSTION": 503, "CAPACITY_EXHAUSTED": 503, "BACKEND_UNAVAILABLE": 503, "REGISTRY_RECOVERING": 503, "RECORD_UNREADABLE": 503, "OVERLOADED": 503,
	"SNAPSHOT_NOT_FOUND": 404, "SNAPSHOT_CORRUPT": 422, "SNAPSHOT_STORE_UNAVAILABLE": 503, "SNAPSHOT_FAILED": 507,
	"BOOT_TIMEOUT": 504, "STOP_UNCONFIRMED": 504, "ROTATION_UNCONFIRMED": 504,
}

// TestStatusTable: the codes of the domain and of the table are the same, and each
// has the status of the contract.
func TestStatusTable(t *testing.T) {
	declared := codesOf(t, filepath.Join("..", "engine"))
	if len(declared) < 20 {
		t.Fatalf("found only %d codes in the domain's source: the search is blind", len(declared))
	}
	tabled := map[engine.Code]bool{}
	for code := range maps.Keys(status) {
		tabled[code] = true
	}
	if diff := cmp.Diff(declared, tabled); diff != "" {
		t.Errorf("codes of the domain (-) and of the table (+):\n%s", diff)
	}
	for code, got := range status {
		if want, known := contract[code]; !known || got != want {
			t.Errorf("%s is %d, the contract says %d", code, got, want)
		}
	}
}

// codesOf reads the constants of type Code from a package's source.
func codesOf(t *testing.T, dir string) map[engine.Code]bool {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[engine.Code]bool{}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, entry.Name()), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if name, ok := spec.Type.(*ast.Ident); !ok || name.Name != "Code" {
				return true
			}
			for _, v := range spec.Values {
				lit, ok := v.(*ast.BasicLit)
				if !ok {
					t.Errorf("%s: %v is not a literal", entry.Name(), spec.Names)
					continue
				}
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				codes[engine.Code(text)] = true
			}
			return true
		})
	}
	return codes
}
