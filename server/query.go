package server

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/septemberai/orch/engine"
)

// query reads the parameters of a request's URL as strictly as decode reads a body: it
// refuses a parameter that is unknown, given twice, or empty.
type query struct {
	values url.Values
	err    error
}

func queryOf(r *http.Request, known ...string) *query {
	if r.URL.RawQuery == "" {
		return &query{}
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	q := &query{values: values}
	if err != nil {
		q.err = invalid("the query string is not validly encoded")
		return q
	}
	for name, given := range values {
		switch {
		case !slices.Contains(known, name):
			q.err = invalid("unknown parameter %s", strconv.QuoteToASCII(name[:min(len(name), 80)]))
		case len(given) > 1:
			q.err = invalid("parameter %s is given twice", name)
		case given[0] == "":
			q.err = invalid("parameter %s is empty; leave it out", name)
		case !utf8.ValidString(given[0]):
			q.err = invalid("parameter %s is not valid UTF-8", name)
		case strings.ContainsFunc(given[0], unicode.IsControl):
			q.err = invalid("parameter %s contains a control character", name)
		}
	}
	return q
}

func (q *query) text(name string) string { return q.values.Get(name) }

// number reads a whole number from min to max; def if the parameter is absent.
func (q *query) number(name string, def, min, max int) int {
	if !q.values.Has(name) {
		return def
	}
	n, err := strconv.Atoi(q.values.Get(name))
	if err != nil || n < min || n > max {
		q.err = invalid("parameter %s must be a whole number from %d to %d", name, min, max)
		return def
	}
	return n
}

// time reads a time in RFC 3339; the zero time if the parameter is absent.
func (q *query) time(name string) time.Time {
	if !q.values.Has(name) {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, q.values.Get(name))
	if err != nil {
		q.err = invalid("parameter %s must be a time in RFC 3339, such as 2026-01-31T12:00:00Z", name)
	}
	return t
}

// checkUserID checks the parameter user_id, if it is given. past: a user_id that was valid in
// an earlier version is accepted, too, because the admin can read what is left of such users.
func (q *query) checkUserID(past bool) {
	if !q.values.Has("user_id") {
		return
	}
	if err := engine.CheckUserID(q.text("user_id")); err != nil && !(past && errors.Is(err, engine.ErrDotSegment)) {
		q.err = invalid("parameter %v", err)
	}
}

// oneOf reads one of the given words; "" if the parameter is absent.
func oneOf[T ~string](q *query, name string, words ...T) T {
	word := T(q.values.Get(name))
	if q.values.Has(name) && !slices.Contains(words, word) {
		q.err = invalid("parameter %s must be one of %v", name, words)
	}
	return word
}
