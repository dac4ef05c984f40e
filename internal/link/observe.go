package link

import (
	"errors"
	"net/http"
	"time"
)

// CallKind is what a call is for.
type CallKind string

// The kinds of calls.
const (
	CallRead  CallKind = "read"
	CallWrite CallKind = "write"
	CallWait  CallKind = "wait" // its response may be delayed on purpose (Kind.Long)
	CallProbe CallKind = "probe"
)

// Result is how a call ended.
type Result string

// The results of calls.
const (
	ResultOK      Result = "ok"
	ResultLimited Result = "limited" // refused because of a limit; such calls are retried
	ResultDenied  Result = "denied"  // the token, or a right of it
	ResultClient  Result = "client_error"
	ResultServer  Result = "server_error"
	ResultSilent  Result = "no_response" // none in time, or the connection broke
	ResultAway    Result = "not_sent"    // because the store is known not to respond
)

// CallKinds and Results are all values, for those who must know them in advance.
var (
	CallKinds = []CallKind{CallRead, CallWrite, CallWait, CallProbe}
	Results   = []Result{ResultOK, ResultLimited, ResultDenied, ResultClient, ResultServer, ResultSilent, ResultAway}
)

// Observer is told about every call to a store: its kind and result, and how long its caller
// waited for the beginning of the response. For each attempt that a store refuses because of
// its limits, it is told ResultLimited, and at the end how the call ended.
type Observer func(store string, kind CallKind, result Result, took time.Duration)

// Observe sets who is told about every call. Call it before the first request.
func (l *Link) Observe(o Observer) { l.observer = o }

// Away reports whether the store does not respond, so that calls are not sent.
func (l *Link) Away() bool { return l.circuit.away() }

func (c *Circuit) away() bool {
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.back != nil
}

func (l *Link) kindOf(req *http.Request) CallKind {
	switch {
	case probing(req.Context()):
		return CallProbe
	case l.long != nil && l.kind.Long(req):
		return CallWait
	case req.Method == http.MethodGet || req.Method == http.MethodHead || req.Method == "LIST":
		return CallRead
	}
	return CallWrite
}

// observe tells the observer, if there is one.
func (l *Link) observe(req *http.Request, result Result, took time.Duration) {
	if l.observer != nil {
		l.observer(l.kind.Name, l.kindOf(req), result, took)
	}
}

func resultOf(resp *http.Response, err error) Result {
	switch {
	case errors.Is(err, ErrAway):
		return ResultAway
	case errors.Is(err, errRefused):
		return ResultLimited
	case err != nil:
		return ResultSilent
	case resp.StatusCode == http.StatusTooManyRequests:
		return ResultLimited
	case resp.StatusCode == http.StatusUnauthorized, resp.StatusCode == http.StatusForbidden:
		return ResultDenied
	case resp.StatusCode >= http.StatusInternalServerError:
		return ResultServer
	case resp.StatusCode >= http.StatusBadRequest:
		return ResultClient
	}
	return ResultOK
}
