package ops

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

const (
	exporterVar = "OTEL_TRACES_EXPORTER"
	// exportSaid is the minimum time between two log lines about traces that were not
	// exported, and exportEnd limits the export of the last ones.
	exportSaid = time.Minute
	exportEnd  = 5 * time.Second
)

// ExportTraces lets this process export traces by OTLP over HTTP, as the standard variables
// of OpenTelemetry (OTEL_*) say; environ returns the value of one. Without an endpoint, and
// without OTEL_TRACES_EXPORTER=otlp, it does nothing. stop exports what is left. The error
// names the variable that is wrong.
func ExportTraces(ctx context.Context, environ func(string) string, version string, log hclog.Logger) (stop func(), err error) {
	on, err := exports(environ)
	if err != nil || !on {
		return func() {}, err
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_*: %w", err)
	}
	// The last one wins: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
	described, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "orch"), attribute.String("service.version", version)), resource.WithHost(), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(described))
	otel.SetErrorHandler(&exportErrors{log: log})
	otel.SetTracerProvider(provider)
	return func() {
		otel.SetTracerProvider(noop.NewTracerProvider())
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exportEnd)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			log.Warn("the last traces were not exported", "error", err)
		}
	}, nil
}

// exports reports whether the variables turn the export on.
func exports(environ func(string) string) (bool, error) {
	if environ("OTEL_SDK_DISABLED") == "true" {
		return false, nil
	}
	switch environ(exporterVar) {
	case "otlp":
	case "none":
		return false, nil
	case "":
		if environ("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && environ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
			return false, nil
		}
	default:
		return false, fmt.Errorf("%s: must be otlp or none", exporterVar)
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if v := environ(name); v != "" && v != "http/protobuf" {
			return false, fmt.Errorf("%s: must be http/protobuf, the only protocol of this service", name)
		} else if v != "" {
			break
		}
	}
	return true, nil
}

// exportErrors logs why traces are not exported.
type exportErrors struct {
	log  hclog.Logger
	mu   sync.Mutex
	said time.Time
}

// Handle implements [otel.ErrorHandler].
func (e *exportErrors) Handle(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.said) >= exportSaid {
		e.said = time.Now()
		e.log.Warn("traces are not exported; further errors of the next minute are not logged", "error", err)
	}
}
