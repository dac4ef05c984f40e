package server

import (
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/septemberai/orch/scheduler"
)

func (s *Server) admit(w http.ResponseWriter, r *http.Request, userID string) error {
	c, err := s.callerBy(s.scheduler.AuthenticateAdmit, r, userID)
	if err != nil {
		return err
	}
	defer c.Leave()
	var body admitBody
	if err := decode(w, r, &body); err != nil {
		return err
	}
	admission, rate, err := s.scheduler.Admit(r.Context(), c, scheduler.AdmitOptions{AutoProvision: body.AutoProvision, AutoWake: body.AutoWake})
	if rate != nil {
		rateHeaders(w, rate)
	}
	if err != nil {
		return err
	}
	answer := struct {
		Admitted bool             `json:"admitted"`
		Engine   *engineAnswer    `json:"engine"`
		Reason   scheduler.Denial `json:"reason,omitempty"`
	}{Reason: admission.Denial}
	if e := admission.Engine; e != nil {
		answer.Admitted, answer.Engine = true, &engineAnswer{s.showEngine(e), optional(admission.Key)}
		secret(w)
	}
	writeJSON(w, http.StatusOK, answer)
	return nil
}

// rateHeaders reports the rate limit and what remains of it (docs/api.md), in whole
// calls and whole seconds.
func rateHeaders(w http.ResponseWriter, rate *scheduler.Rate) {
	w.Header().Set("RateLimit-Limit", strconv.Itoa(rate.Limit))
	w.Header().Set("RateLimit-Remaining", strconv.Itoa(max(rate.Remaining, 0)))
	w.Header().Set("RateLimit-Reset", strconv.Itoa(wholeSeconds(rate.Reset)))
}

func wholeSeconds(d time.Duration) int { return int(math.Ceil(max(d, 0).Seconds())) }
