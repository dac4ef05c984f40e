//go:build !faultpoints

package fault

// Hit does nothing.
func Hit(string) {}
