package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// server handles the engine's requests.
type server struct {
	cfg     Config
	brain   *Brain
	keys    *keyring
	log     *slog.Logger
	started time.Time       // has a monotonic reading, so that uptime ignores changes of the clock
	stop    <-chan struct{} // closed when draining begins; ends hanging probes
	exit    func(code int)  // os.Exit, except in tests
	work    atomic.Int64    // POST /work: busy until this long after started
	failing atomic.Bool     // result of the last probe, so that only changes are logged
}

// apiError is an error whose text is shown to the caller.
type apiError struct {
	status  int
	code    string
	message string
}

func (e *apiError) Error() string { return e.message }

func invalid(err error) error {
	return &apiError{http.StatusBadRequest, "INVALID_REQUEST", err.Error()}
}

// routes maps a path and a method to its handler.
func (s *server) routes() map[string]map[string]func(http.ResponseWriter, *http.Request) error {
	type methods = map[string]func(http.ResponseWriter, *http.Request) error
	return map[string]methods{
		"/health":        {http.MethodGet: s.health},
		"/execute":       {http.MethodPost: s.execute},
		"/memory/export": {http.MethodGet: s.export},
		"/catalog":       {http.MethodGet: s.catalog},
		"/env":           {http.MethodGet: s.environment},
		"/info":          {http.MethodGet: s.info},
		"/work":          {http.MethodPost: s.setWork},
		"/crash":         {http.MethodPost: s.crash},
	}
}

// handler checks the key before the path: orch proves keys on a path that does not exist,
// where 404 means that the key is valid, and 401 that it is not. http.ServeMux cannot be
// used, because it redirects unclean paths.
func (s *server) handler() http.Handler {
	routes := s.routes()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		methods, ok := routes[r.URL.Path]
		early, never := !ok && s.cfg.Switches.RouteFirst, !ok && s.cfg.Switches.Unknown401
		if r.URL.Path != "/health" && !early && (never || !s.keys.admits(r)) {
			s.writeError(w, &apiError{http.StatusUnauthorized, "INVALID_ENGINE_KEY", keyHeader + " is missing or wrong"})
			return
		}
		if !ok {
			s.writeError(w, &apiError{http.StatusNotFound, "NOT_FOUND", "there is nothing at this path"})
			return
		}
		h, ok := methods[r.Method]
		if !ok {
			for m := range methods { // there is exactly one
				w.Header().Set("Allow", m)
			}
			s.writeError(w, &apiError{http.StatusMethodNotAllowed, "METHOD_NOT_ALLOWED", "this path needs another method"})
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		if err := h(w, r); err != nil {
			s.writeError(w, err)
		}
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // an error means that the caller has left
}

// writeError shows an apiError to the caller, and logs any other error instead.
func (s *server) writeError(w http.ResponseWriter, err error) {
	var e *apiError
	if !errors.As(err, &e) {
		s.log.Error("request failed", "err", err)
		e = &apiError{http.StatusInternalServerError, "INTERNAL_ERROR", "the engine failed; see its log"}
	}
	writeJSON(w, e.status, map[string]any{"error": map[string]string{"code": e.code, "message": e.message}})
}

// health responds to the health check (docs/tutorial-engine.md).
func (s *server) health(w http.ResponseWriter, r *http.Request) error {
	if s.cfg.Switches.Hang {
		select {
		case <-r.Context().Done():
		case <-s.stop:
		}
		panic(http.ErrAbortHandler)
	}
	up := time.Since(s.started)
	// The limit is shorter than the timeout of any probe, so that a stuck brain gets a
	// response.
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	err, failing := s.brain.Probe(ctx), "brain"
	if err == nil {
		failing, err = s.pretendFailure(up)
	}
	if r.Context().Err() == nil && s.failing.Swap(err != nil) != (err != nil) {
		s.log.Warn("health changed", "failing", err != nil, "err", err)
	}
	status, word, subsystems := http.StatusOK, "ok", map[string]string{"brain": "ok"}
	if err != nil {
		status, word, subsystems[failing] = http.StatusServiceUnavailable, "failing", "failing"
	}
	answer := map[string]any{
		"status":         word,
		"uptime_seconds": up.Seconds(),
		"subsystems":     subsystems,
	}
	if up < time.Duration(s.work.Load()) || up < s.cfg.Switches.Busy {
		answer["busy"] = true
	}
	writeJSON(w, status, answer)
	return nil
}

// pretendFailure implements the switches fail-health and fail-health-file. The file names
// the subsystem that fails; an empty file means the brain.
func (s *server) pretendFailure(up time.Duration) (subsystem string, err error) {
	sw := s.cfg.Switches
	if sw.FailHealth >= 0 && up >= sw.FailHealth {
		return "brain", errors.New("switch fail-health")
	}
	if sw.FailFile {
		if name, err := os.ReadFile(filepath.Join(filepath.Dir(s.cfg.BrainPath), switchFile)); err == nil {
			return cmp.Or(strings.TrimSpace(string(name)), "brain"), errors.New("switch fail-health-file")
		}
	}
	return "", nil
}

// execute responds after it has stored the input, because a response is a promise.
func (s *server) execute(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(r)
	if err != nil {
		return err
	}
	input, err := decodeExecute(body)
	if err != nil {
		return invalid(err)
	}
	id, err := s.brain.Remember(r.Context(), input)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"id": id, "output": "I will remember: " + input})
	return nil
}

// readBody reads a JSON body of at most [maxBody] bytes.
func readBody(r *http.Request) ([]byte, error) {
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if t, _, err := mime.ParseMediaType(ct); err != nil || t != "application/json" {
			return nil, &apiError{http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE", "the body must be application/json"}
		}
	}
	body, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &apiError{http.StatusRequestEntityTooLarge, "BODY_TOO_LARGE", "the body is too large"}
	case err != nil:
		return nil, invalid(errors.New("the body ended early"))
	}
	return body, nil
}

func (s *server) export(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	cw := &countingWriter{w: w}
	err := s.brain.Export(r.Context(), cw)
	if err != nil && cw.n > 0 {
		// The status 200 has been sent. Only a broken connection can still report that the
		// export is incomplete.
		s.log.Error("export aborted", "err", err)
		panic(http.ErrAbortHandler)
	}
	return err
}

type countingWriter struct {
	w io.Writer
	n int
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += n
	return n, err
}

func (s *server) setWork(w http.ResponseWriter, r *http.Request) error {
	body, err := readBody(r)
	if err != nil {
		return err
	}
	seconds, err := decodeWork(body)
	if err != nil {
		return invalid(err)
	}
	s.work.Store(int64(time.Since(s.started) + time.Duration(seconds)*time.Second))
	writeJSON(w, http.StatusOK, map[string]any{"busy": seconds > 0})
	return nil
}

func (s *server) crash(http.ResponseWriter, *http.Request) error {
	s.log.Error("crashing on request")
	s.exit(1)
	return nil
}

func (s *server) info(w http.ResponseWriter, _ *http.Request) error {
	host, _ := os.Hostname()
	writeJSON(w, http.StatusOK, map[string]any{
		"pid":        os.Getpid(),
		"host":       host,
		"version":    s.cfg.Switches.Version,
		"switches":   slices.Concat([]string{}, s.cfg.Switches.Names),
		"started_at": s.started.UTC(),
	})
	return nil
}

// queryNames splits the list in ?names=.
func queryNames(r *http.Request) []string {
	return strings.FieldsFunc(r.URL.Query().Get("names"), func(c rune) bool { return c == ',' })
}
