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
	opts := scheduler.AdmitOptions{AutoProvision: body.AutoProvision, AutoWake: body.AutoWake}
	crowded, _ := r.Context().Value(onlyRunning{}).(bool)
	if crowded {
		opts = scheduler.AdmitOptions{}
	}
	admission, rate, err := s.scheduler.Admit(r.Context(), c, opts)
	if rate != nil {
		rateHeaders(w, rate)
	}
	if err != nil {
		return err
	}
	if crowded && admission.Engine == nil && wouldBoot(body, admission.Denial) {
		return errOverloaded
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

// wouldBoot reports whether an admit would have waited for a boot if it might.
func wouldBoot(body admitBody, denial scheduler.Denial) bool {
	switch denial {
	case scheduler.DenialNotFound:
		return body.AutoProvision
	case scheduler.DenialSleeping:
		return body.AutoWake
	case scheduler.DenialProvisioning:
		return body.AutoProvision || body.AutoWake
	}
	return false
}

// rateHeaders reports the rate limit and what remains of it (docs/api.md), in whole
// calls and whole seconds.
func rateHeaders(w http.ResponseWriter, rate *scheduler.Rate) {
	w.Header().Set("RateLimit-Limit", strconv.Itoa(rate.Limit))
	w.Header().Set("RateLimit-Remaining", strconv.Itoa(max(rate.Remaining, 0)))
	w.Header().Set("RateLimit-Reset", strconv.Itoa(wholeSeconds(rate.Reset)))
}

func wholeSeconds(d time.Duration) int { return int(math.Ceil(max(d, 0).Seconds())) }
