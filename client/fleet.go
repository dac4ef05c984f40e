package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// EngineFilter selects engines, and a page of them. A zero field does not filter.
type EngineFilter struct {
	Status string // one of the states
	Limit  int    // engines per page: 1 to 1000; 0: 100
	Offset int    // number of engines to skip; not with a cursor
	Cursor string // NextCursor of the previous page
}

// EngineList is one page of a product's engines, oldest first, without keys.
type EngineList struct {
	Engines    []Engine      `json:"engines"`
	Total      int           `json:"total"`                 // number of all matching engines
	NextCursor string        `json:"next_cursor,omitempty"` // empty: this is the last page
	Age        time.Duration `json:"-"`                     // age of the view that the list was read from
}

// Engines lists one page of the product's engines.
func (c *Client) Engines(ctx context.Context, f EngineFilter) (*EngineList, error) {
	q := query{}
	q.text("status", f.Status)
	q.number("limit", f.Limit)
	q.number("offset", f.Offset)
	q.text("cursor", f.Cursor)
	list := new(EngineList)
	return list, c.do(ctx, call{
		method: http.MethodGet, path: withQuery("/engines", url.Values(q)), keys: platform, out: list, repeatable: true,
		answered: func(h http.Header) { list.Age = viewAge(h) },
	})
}

// AllEngines iterates over the engines of all pages from the filter's page on. It ends
// after an error.
func (c *Client) AllEngines(ctx context.Context, f EngineFilter) iter.Seq2[Engine, error] {
	return walk(func(cursor string) ([]Engine, string, error) {
		if cursor != "" {
			f.Cursor, f.Offset = cursor, 0
		}
		list, err := c.Engines(ctx, f)
		return list.Engines, list.NextCursor, err
	})
}

// walk iterates over the items of all pages. page gets the cursor that the previous page
// returned; "" for the first page.
func walk[T any](page func(cursor string) (items []T, next string, err error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for cursor := ""; ; {
			items, next, err := page(cursor)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			cursor = next
		}
	}
}

// FleetStatus counts a product's engines, or all engines.
type FleetStatus struct {
	Total          int            `json:"total"`
	ByStatus       map[string]int `json:"by_status"`       // of all six states
	Health         string         `json:"health"`          // ok, degraded or critical
	UnhealthyCount int            `json:"unhealthy_count"` // failed engines, and running ones whose check fails
	Registry       string         `json:"registry"`        // ok or recovering
	Age            time.Duration  `json:"-"`               // age of the view that the counts were read from
	// Snapshots says how well the brains are protected by snapshots.
	Snapshots SnapshotStatus `json:"snapshots,omitzero"`

	// The fields below are set only for the admin, for all products together.
	Quarantined int `json:"quarantined"`  // engines that wait for an admin's decision
	KeysMissing int `json:"keys_missing"` // engines whose key Vault does not have
	// Unreadable counts the records of the registry that cannot be read.
	Unreadable         Unreadable `json:"unreadable,omitzero"`
	UnreachableVolumes int        `json:"unreachable_volumes"` // volumes of destroyed engines that could not be deleted yet
	PooledVolumes      int        `json:"pooled_volumes"`      // ready, empty host volumes
	WarmEngines        int        `json:"warm_engines"`        // engines without a user
	// WarmPools are the warm engines by kind; nil: not known yet.
	WarmPools []WarmPool `json:"warm_pools,omitzero"`
}

// SnapshotStatus says how well the brains of engines are protected by snapshots.
type SnapshotStatus struct {
	// RecoveryPointS is the age of the oldest newest snapshot, in seconds, among engines whose
	// policy asks for snapshots and which have changed since; 0: there is none.
	RecoveryPointS int64 `json:"recovery_point_s,omitempty"`
	Overdue        int   `json:"overdue"` // of these, without a snapshot of the last two intervals and 15 minutes
	Without        int   `json:"without"` // of these, without any snapshot
	// RecoveryTimeMS is how long the last restore or drill took, in milliseconds; 0: there was
	// none.
	RecoveryTimeMS int64 `json:"recovery_time_ms,omitempty"`
	FailedDrills   int   `json:"failed_drills"`  // engines whose last restore drill failed
	DrillsOverdue  int   `json:"drills_overdue"` // products without a successful drill for too long
	// DrilledAt is when a restore drill last succeeded; for the admin, the oldest of all
	// products.
	DrilledAt time.Time `json:"drilled_at,omitzero"`
	Advice    string    `json:"advice,omitempty"` // what to do about failed drills
}

// Unreadable counts the records of the registry that are damaged or were written by a newer
// version of the service.
type Unreadable struct {
	Engines  int `json:"engines"`
	Products int `json:"products"`
	Other    int `json:"other"` // unreachable volumes and entries of the volume pool
}

// WarmPool is the state of the warm engines of one kind.
type WarmPool struct {
	Fingerprint string    `json:"fingerprint"`
	Image       string    `json:"image"`
	CPUMHz      int       `json:"cpu_mhz"`
	MemoryMB    int       `json:"memory_mb"`
	NodePool    string    `json:"node_pool,omitempty"` // empty: the default node pool
	Wanted      int       `json:"wanted"`
	Ready       int       `json:"ready"`
	Making      int       `json:"making"`
	Error       string    `json:"error,omitempty"` // why no engine is created before RetryAt
	RetryAt     time.Time `json:"retry_at,omitzero"`
}

// Status counts the product's engines.
func (c *Client) Status(ctx context.Context) (*FleetStatus, error) { return c.status(ctx, platform) }

// Whole counts the engines of all products, with the admin key.
func (c *Client) Whole(ctx context.Context) (*FleetStatus, error) { return c.status(ctx, admin) }

func (c *Client) status(ctx context.Context, k keys) (*FleetStatus, error) {
	st := new(FleetStatus)
	return st, c.do(ctx, call{
		method: http.MethodGet, path: "/status", keys: k, out: st, repeatable: true,
		answered: func(h http.Header) { st.Age = viewAge(h) },
	})
}

// Metrics are a product's figures of the last hour and since its registration.
type Metrics struct {
	Provisions1h    int     `json:"provisions_1h"`
	Crashes1h       int     `json:"crashes_1h"`
	Restarts1h      int     `json:"restarts_1h"`
	AvgBootMS       float64 `json:"avg_boot_ms"` // of the boots of the last hour
	TotalProvisions int     `json:"total_provisions"`
	TotalDestroys   int     `json:"total_destroys"`
}

// Metrics reads the product's figures.
func (c *Client) Metrics(ctx context.Context) (*Metrics, error) {
	m := new(Metrics)
	return m, c.get(ctx, platform, "/metrics", m)
}

func viewAge(h http.Header) time.Duration {
	seconds, _ := strconv.ParseFloat(h.Get("X-View-Age"), 64)
	return time.Duration(seconds * float64(time.Second))
}

// query collects the parameters that are set.
type query url.Values

func (q query) text(name, value string) {
	if value != "" {
		url.Values(q).Set(name, value)
	}
}

func (q query) number(name string, value int) {
	if value != 0 {
		url.Values(q).Set(name, strconv.Itoa(value))
	}
}

func (q query) time(name string, value time.Time) {
	if !value.IsZero() {
		url.Values(q).Set(name, value.UTC().Format(time.RFC3339Nano))
	}
}
