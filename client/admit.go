package client

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// AdmitOptions are what an admit may do for its user.
type AdmitOptions struct {
	AutoProvision bool `json:"auto_provision,omitempty"` // create an engine if there is none
	AutoWake      bool `json:"auto_wake,omitempty"`      // wake a sleeping one
}

// Reasons why a user is not admitted.
const (
	DeniedNotFound     = "engine_not_found"
	DeniedSleeping     = "engine_sleeping"
	DeniedStopped      = "engine_stopped" // stopped by a call; only a start starts it again
	DeniedProvisioning = "engine_provisioning"
	DeniedUnhealthy    = "engine_unhealthy"
	DeniedDestroying   = "engine_destroying"
)

// Admission is the result of an admit.
type Admission struct {
	Admitted bool    `json:"admitted"`
	Engine   *Engine `json:"engine"`           // with its key; nil: not admitted
	Reason   string  `json:"reason,omitempty"` // why the user was not admitted
	Rate     *Rate   `json:"-"`                // nil: the product has no rate limit
}

// Rate is the state of a product's rate limit.
type Rate struct {
	Limit     int           // admits per minute
	Remaining int           // admits left now
	Reset     time.Duration // until the whole burst is available again, in whole seconds
}

// Admit returns whether a user may use its engine now, and where it is. A denial is not an
// error.
func (c *Client) Admit(ctx context.Context, userID string, o AdmitOptions) (*Admission, error) {
	a := new(Admission)
	what := call{
		method: http.MethodPost, path: enginePath(userID) + "/admit", user: userID, keys: platform, out: a, repeatable: true,
		answered: func(h http.Header) { a.Rate = rateOf(h) },
	}
	if o != (AdmitOptions{}) { // an empty body means the defaults
		what.in = o
	}
	return a, c.do(ctx, what)
}

// rateOf reads the RateLimit headers of a response.
func rateOf(h http.Header) *Rate {
	limit, err := strconv.Atoi(h.Get("RateLimit-Limit"))
	if err != nil {
		return nil
	}
	remaining, _ := strconv.Atoi(h.Get("RateLimit-Remaining"))
	reset, _ := strconv.Atoi(h.Get("RateLimit-Reset"))
	return &Rate{Limit: limit, Remaining: remaining, Reset: time.Duration(reset) * time.Second}
}
