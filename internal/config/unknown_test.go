package config

import (
	"slices"
	"testing"
)

func TestUnknown(t *testing.T) {
	environ := []string{"PATH=/bin", "ORCH_WARMPOOL=2", "ORCH_FOO=", "ORCH_URL=http://h", "ORCH_TEST_LOG=1"}
	for _, v := range Variables() {
		environ = append(environ, v.Name+"=x")
	}
	if got, want := Unknown(environ), []string{"ORCH_FOO", "ORCH_WARMPOOL"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
