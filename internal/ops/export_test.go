package ops

import (
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// TestTracesOff: without an endpoint nothing is exported, and wrong variables are named.
func TestTracesOff(t *testing.T) {
	for _, c := range []struct {
		vars  []string
		wrong string
	}{
		{nil, ""},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_SDK_DISABLED=true"}, ""},
		{[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_TRACES_EXPORTER=none"}, ""},
		{[]string{"OTEL_TRACES_EXPORTER=zipkin"}, "OTEL_TRACES_EXPORTER"},
		{[]string{"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL"},
	} {
		environ := func(name string) string {
			i := slices.IndexFunc(c.vars, func(v string) bool { return strings.HasPrefix(v, name+"=") })
			if i < 0 {
				return ""
			}
			return c.vars[i][len(name)+1:]
		}
		stop, err := ExportTraces(t.Context(), environ, "test", hclog.NewNullLogger())
		if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%v: %v", c.vars, err)
		}
		if stop != nil {
			stop()
		}
	}
}
