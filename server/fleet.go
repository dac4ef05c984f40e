package server

import (
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/septemberai/orch/audit"
	"github.com/septemberai/orch/engine"
	"github.com/septemberai/orch/registry"
	"github.com/septemberai/orch/scheduler"
)

const (
	// Limits of a page, in items.
	defaultLimit = 100
	maxLimit     = 1000
)

// product authenticates a product's call that does not concern a single user.
func (s *Server) product(r *http.Request) (*scheduler.Caller, error) {
	c, err := s.scheduler.Authenticate(r.Context(), r.Header.Get("X-Platform-Key"), "")
	if err == nil {
		knownAs(r, c.Product.Slug)
	}
	return c, err
}

// fleet authenticates a call whose response is read from the in-memory view.
func (s *Server) fleet(r *http.Request) (*scheduler.Fleet, error) {
	c, err := s.product(r)
	if err != nil {
		return nil, err
	}
	return s.scheduler.Fleet(c)
}

// viewAge sets the header that reports how old the view was, in seconds.
func viewAge(w http.ResponseWriter, age time.Duration) {
	w.Header().Set("X-View-Age", strconv.FormatFloat(age.Seconds(), 'f', 3, 64))
}

// pageOf reads from the query which part of a list is requested.
func pageOf(r *http.Request) (registry.PageQuery, error) {
	q := queryOf(r, "status", "limit", "offset", "cursor")
	ask := registry.PageQuery{
		State: oneOf(q, "status", engine.States...), Limit: q.number("limit", defaultLimit, 1, maxLimit),
		Offset: q.number("offset", 0, 0, math.MaxInt32), Cursor: q.text("cursor"),
	}
	if q.err == nil && ask.Cursor != "" && q.values.Has("offset") {
		q.err = invalid("give cursor or offset, not both")
	}
	return ask, q.err
}

// listEngines lists a product's engines or, for the admin, those of all products.
func (s *Server) listEngines(w http.ResponseWriter, r *http.Request, _ string) error {
	if r.Header.Get("X-Admin-Key") != "" {
		return s.listAllEngines(w, r)
	}
	f, err := s.fleet(r)
	if err != nil {
		return err
	}
	ask, err := pageOf(r)
	if err != nil {
		return err
	}
	rows, total, next, err := f.Page(ask)
	if err != nil {
		return err
	}
	answer := struct {
		Engines []listedEngine `json:"engines"`
		Total   int            `json:"total"`
		Next    string         `json:"next_cursor,omitempty"`
	}{make([]listedEngine, 0, len(rows)), total, next}
	for _, e := range rows {
		answer.Engines = append(answer.Engines, s.showEngine(e))
	}
	viewAge(w, f.Age)
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// statusAnswer counts a fleet. The fields from Quarantined on are only for the admin.
type statusAnswer struct {
	Total              int                    `json:"total"`
	ByStatus           map[engine.State]int   `json:"by_status"`
	Health             scheduler.Health       `json:"health"`
	Unhealthy          int                    `json:"unhealthy_count"`
	Registry           registry.RegistryState `json:"registry"`
	Snapshots          snapshotsStatus        `json:"snapshots"`
	Quarantined        *int                   `json:"quarantined,omitempty"`
	KeysMissing        *int                   `json:"keys_missing,omitempty"`
	Unreadable         *unreadableCounts      `json:"unreadable,omitempty"`
	UnreachableVolumes *int                   `json:"unreachable_volumes,omitempty"`
	PooledVolumes      *int                   `json:"pooled_volumes,omitempty"`
	WarmEngines        *int                   `json:"warm_engines,omitempty"`
	WarmPools          []warmPool             `json:"warm_pools,omitzero"`
}

// unreadableCounts counts the registry's records that cannot be read.
type unreadableCounts struct {
	Engines  int `json:"engines"`
	Products int `json:"products"`
	Other    int `json:"other"`
}

// warmPool is the state of the warm engines of one kind.
type warmPool struct {
	Fingerprint string `json:"fingerprint"`
	Image       string `json:"image"`
	CPUMHz      int    `json:"cpu_mhz"`
	MemoryMB    int    `json:"memory_mb"`
	NodePool    string `json:"node_pool,omitempty"`
	Wanted      int    `json:"wanted"`
	Ready       int    `json:"ready"`
	Making      int    `json:"making"`
	Error       string `json:"error,omitempty"`
	RetryAt     string `json:"retry_at,omitempty"`
}

func showWarm(kinds []scheduler.WarmKind) []warmPool {
	if kinds == nil {
		return nil
	}
	pools := make([]warmPool, 0, len(kinds))
	for _, k := range kinds {
		p := warmPool{
			Fingerprint: k.Fingerprint, Image: k.Image, CPUMHz: k.Resources.CPUMHz, MemoryMB: k.Resources.MemoryMB, NodePool: k.NodePool,
			Wanted: k.Wanted, Ready: k.Ready, Making: k.Making, Error: k.Error,
		}
		if k.Error != "" {
			p.RetryAt = timestamp(k.RetryAt)
		}
		pools = append(pools, p)
	}
	return pools
}

func (s *Server) showStatus(f *scheduler.Fleet, p scheduler.Protection) statusAnswer {
	st := f.Status()
	return statusAnswer{
		Total: st.Total, ByStatus: st.ByState, Health: st.Health, Unhealthy: st.Unhealthy, Registry: s.scheduler.RegistryState(), Snapshots: showProtection(p),
	}
}

// fleetStatus counts a product's engines or, for the admin, all engines.
func (s *Server) fleetStatus(w http.ResponseWriter, r *http.Request, _ string) error {
	if r.Header.Get("X-Admin-Key") != "" {
		return s.wholeStatus(w, r)
	}
	f, err := s.fleet(r)
	if err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	viewAge(w, f.Age)
	writeJSON(w, http.StatusOK, s.showStatus(f, f.Protection()))
	return nil
}

func (s *Server) wholeStatus(w http.ResponseWriter, r *http.Request) error {
	if err := s.admin(r); err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	f, err := s.scheduler.Whole()
	if err != nil {
		return err
	}
	left, err := s.scheduler.Leftovers(r.Context())
	if err != nil {
		return err
	}
	recorded, err := s.scheduler.Registry(r.Context())
	if err != nil {
		return err
	}
	answer := s.showStatus(f, left.Protection)
	answer.Registry, answer.Quarantined, answer.KeysMissing = stateOf(recorded), &recorded.Quarantined, &recorded.KeysMissing
	answer.UnreachableVolumes, answer.PooledVolumes, answer.WarmEngines = &left.UnreachableVolumes, &left.PooledVolumes, &left.WarmEngines
	answer.Unreadable = &unreadableCounts{left.Unreadable.Engines, left.Unreadable.Products, left.Unreadable.Other}
	answer.WarmPools = showWarm(left.WarmKinds)
	viewAge(w, f.Age)
	writeJSON(w, http.StatusOK, answer)
	return nil
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request, _ string) error {
	c, err := s.product(r)
	if err != nil {
		return err
	}
	if q := queryOf(r); q.err != nil {
		return q.err
	}
	n, err := s.scheduler.Numbers(r.Context(), c)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, struct {
		Provisions1h    int64   `json:"provisions_1h"`
		Crashes1h       int64   `json:"crashes_1h"`
		Restarts1h      int64   `json:"restarts_1h"`
		AvgBootMS       float64 `json:"avg_boot_ms"`
		TotalProvisions int64   `json:"total_provisions"`
		TotalDestroys   int64   `json:"total_destroys"`
	}{int64(n.Provisions1h), int64(n.Crashes1h), int64(n.Restarts1h), float64(n.AvgBootMS), int64(n.TotalProvisions), int64(n.TotalDestroys)})
	return nil
}

// auditLog returns a product its own rows, and the admin all rows.
func (s *Server) auditLog(w http.ResponseWriter, r *http.Request, _ string) error {
	known := []string{"user_id", "action", "since", "until", "limit", "cursor"}
	productID := ""
	if r.Header.Get("X-Admin-Key") != "" {
		if err := s.admin(r); err != nil {
			return err
		}
		known = append(known, "product_id")
	} else {
		c, err := s.product(r)
		if err != nil {
			return err
		}
		productID = c.Product.ProductID
	}
	q := queryOf(r, known...)
	if productID == "" {
		productID = q.text("product_id")
	}
	ask := audit.Query{
		ProductID: productID, UserID: q.text("user_id"), Action: oneOf(q, "action", audit.Actions...),
		Since: q.time("since"), Until: q.time("until"), Limit: q.number("limit", defaultLimit, 1, maxLimit), Cursor: q.text("cursor"),
	}
	q.checkUserID(r.Header.Get("X-Admin-Key") != "")
	if q.err != nil {
		return q.err
	}
	page, err := s.scheduler.Audit(r.Context(), ask)
	if err != nil {
		return err
	}
	answer := struct {
		Entries []auditEntry `json:"entries"`
		Next    string       `json:"next_cursor,omitempty"`
	}{make([]auditEntry, 0, len(page.Entries)), page.NextCursor}
	for _, e := range page.Entries {
		answer.Entries = append(answer.Entries, showEntry(e))
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// auditEntry is a row of the audit log in a response.
type auditEntry struct {
	ID         int64          `json:"id"`
	Timestamp  string         `json:"timestamp"`
	ProductID  string         `json:"product_id"`
	UserID     string         `json:"user_id"`
	EngineID   string         `json:"engine_id"`
	Action     string         `json:"action"`
	Actor      string         `json:"actor"`
	RequestID  string         `json:"request_id"`
	Outcome    string         `json:"outcome"`
	Metadata   map[string]any `json:"metadata"`
	DurationMS *int64         `json:"duration_ms"`
}

func showEntry(e audit.Entry) auditEntry {
	if e.Metadata == nil {
		e.Metadata = map[string]any{}
	}
	return auditEntry{
		ID: e.ID, Timestamp: timestamp(e.Timestamp), ProductID: e.ProductID, UserID: e.UserID, EngineID: e.EngineID, Action: e.Action,
		Actor: e.Actor, RequestID: e.RequestID, Outcome: e.Outcome, Metadata: e.Metadata, DurationMS: e.DurationMS,
	}
}
