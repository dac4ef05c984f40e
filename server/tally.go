package server

import (
	"cmp"
	"maps"
	"slices"
)

// mostSources is how many sources a tally counts separately. All others are counted as
// otherSources.
const (
	mostSources  = 1000
	otherSources = "others"
)

// tally counts calls with wrong keys by their source. Its size is limited.
type tally map[string]*wrongCount

// wrongCount is the calls of a source with a wrong platform key or admin key, and how many of
// them were refused because there were too many.
type wrongCount struct {
	source                   string
	platform, admin, refused int
}

func (c *wrongCount) add(more wrongCount) {
	c.platform, c.admin, c.refused = c.platform+more.platform, c.admin+more.admin, c.refused+more.refused
}

func (t *tally) add(source string, more wrongCount) {
	if *t == nil {
		*t = tally{}
	}
	if (*t)[source] == nil && len(*t) >= mostSources {
		source = otherSources
	}
	c := (*t)[source]
	if c == nil {
		c = &wrongCount{source: source}
		(*t)[source] = c
	}
	c.add(more)
}

// most returns the n sources with the most calls, and the sum of all others.
func (t tally) most(n int) []*wrongCount {
	all := slices.SortedFunc(maps.Values(t), func(a, b *wrongCount) int {
		return cmp.Or(cmp.Compare(b.admin+b.platform, a.admin+a.platform), cmp.Compare(a.source, b.source))
	})
	if len(all) <= n {
		return all
	}
	rest := &wrongCount{source: otherSources}
	for _, c := range all[n:] {
		rest.add(*c)
	}
	return append(all[:n:n], rest)
}

// details returns the metadata of an audit entry.
func (t tally) details() map[string]any {
	sum, sources := wrongCount{}, []map[string]any{}
	for _, c := range t.most(auditedSources) {
		sum.add(*c)
		sources = append(sources, map[string]any{"source": c.source, "platform_key": c.platform, "admin_key": c.admin})
	}
	return map[string]any{"platform_key": sum.platform, "admin_key": sum.admin, "refused": sum.refused, "sources": sources}
}
