// Package traces makes spans of OpenTelemetry, and carries them across processes by the
// header traceparent (W3C Trace Context). Nothing is recorded unless the process exports
// traces (ops.ExportTraces).
package traces

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// header is the header of W3C Trace Context that names the caller's span.
const header = "traceparent"

var w3c propagation.TraceContext

// Span is one timed part of a trace. The zero Span can be failed and ended.
type Span struct{ span trace.Span }

// Start begins a span within that of the context. attributes are names and values in turn.
func Start(ctx context.Context, name string, attributes ...string) (context.Context, Span) {
	ctx, span := otel.Tracer("orch").Start(ctx, name, trace.WithAttributes(pairs(attributes)...))
	return ctx, Span{span}
}

// StartRequest begins the span of a request, within the one that its caller named.
func StartRequest(r *http.Request) (context.Context, Span) {
	ctx := r.Context()
	if r.Header.Get(header) != "" {
		ctx = w3c.Extract(ctx, propagation.HeaderCarrier(r.Header))
	}
	ctx, span := otel.Tracer("orch").Start(ctx, "request", trace.WithSpanKind(trace.SpanKindServer))
	return ctx, Span{span}
}

func pairs(attributes []string) []attribute.KeyValue {
	all := make([]attribute.KeyValue, 0, len(attributes)/2)
	for i := 0; i+1 < len(attributes); i += 2 {
		if attributes[i+1] != "" {
			all = append(all, attribute.String(attributes[i], attributes[i+1]))
		}
	}
	return all
}

// Recording reports whether the span is exported, so that it is worth describing it.
func (s Span) Recording() bool { return s.span != nil && s.span.IsRecording() }

// Name changes the span's name.
func (s Span) Name(name string) { s.span.SetName(name) }

// Set sets attributes: names and values in turn.
func (s Span) Set(attributes ...string) { s.span.SetAttributes(pairs(attributes)...) }

// SetStatus sets the status of the HTTP response.
func (s Span) SetStatus(status int) {
	s.span.SetAttributes(attribute.Int("http.response.status_code", status))
	if status >= http.StatusInternalServerError {
		s.span.SetStatus(codes.Error, "")
	}
}

// Fail marks the span as failed, with an error code.
func (s Span) Fail(code string) {
	if s.span != nil {
		s.span.SetStatus(codes.Error, code)
	}
}

// End ends the span.
func (s Span) End() {
	if s.span != nil {
		s.span.End()
	}
}

// Note sets attributes of the context's span: names and values in turn.
func Note(ctx context.Context, attributes ...string) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetAttributes(pairs(attributes)...)
	}
}

// Parent returns the context's span as a value of traceparent; "": it has none.
func Parent(ctx context.Context) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	carrier := propagation.MapCarrier{}
	w3c.Inject(ctx, carrier)
	return carrier[header]
}

// Within returns a context whose span is the one that Parent returned, possibly in another
// process.
func Within(ctx context.Context, parent string) context.Context {
	if parent == "" {
		return ctx
	}
	return w3c.Extract(ctx, propagation.MapCarrier{header: parent})
}

// Outgoing returns a request that tells its receiver the span of its context.
func Outgoing(req *http.Request) *http.Request {
	parent := Parent(req.Context())
	if parent == "" {
		return req
	}
	req = req.Clone(req.Context())
	req.Header.Set(header, parent)
	return req
}
