package reload

import (
	"crypto/x509"
	"testing"
	"time"
)

// A certificate that is not valid now does not replace one that is.
func TestReplaces(t *testing.T) {
	now := time.Now()
	lasts := func(from, to time.Duration) *x509.Certificate {
		return &x509.Certificate{NotBefore: now.Add(from), NotAfter: now.Add(to)}
	}
	valid, expired, early := lasts(-time.Hour, time.Hour), lasts(-2*time.Hour, -time.Hour), lasts(time.Hour, 2*time.Hour)
	for name, tc := range map[string]struct {
		old, next *x509.Certificate
		ok        bool
	}{
		"the first":              {nil, expired, true},
		"a valid one":            {valid, valid, true},
		"an expired one":         {valid, expired, false},
		"one of the future":      {valid, early, false},
		"both have expired":      {expired, expired, true},
		"the one of before does": {expired, valid, true},
	} {
		if err := Replaces(tc.old, tc.next, now); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
