// Package discover replaces github.com/hashicorp/go-discover in the builds of the agents
// for development. That module finds servers through the APIs of clouds, which are a quarter
// to a third of the code of an agent. The agents of the dev stack join by address, so this
// package has only the functions that they call, and no providers.
package discover

import (
	"fmt"
	"log"
)

// Provider finds addresses through one API.
type Provider interface {
	Addrs(args map[string]string, l *log.Logger) ([]string, error)
	Help() string
}

// Providers are the known providers: none.
var Providers = map[string]Provider{}

// Discover finds addresses.
type Discover struct{ Providers map[string]Provider }

// Option is an option of New.
type Option func(*Discover) error

// New returns a Discover.
func New(...Option) (*Discover, error) { return &Discover{}, nil }

// WithUserAgent changes nothing.
func WithUserAgent(string) Option { return nil }

// WithProviders changes nothing.
func WithProviders(map[string]Provider) Option { return nil }

// Addrs returns an error: no provider is known.
func (*Discover) Addrs(cfg string, _ *log.Logger) ([]string, error) { return nil, unknown(cfg) }

// Help returns the help text.
func (*Discover) Help() string { return "This build finds no servers through clouds; join by address." }

// Names returns the names of the providers.
func (*Discover) Names() []string { return nil }

// Config is a parsed configuration.
type Config map[string]string

// Parse returns an error: no provider is known.
func Parse(cfg string) (Config, error) { return nil, unknown(cfg) }

// String returns the configuration as text.
func (Config) String() string { return "" }

func unknown(cfg string) error {
	return fmt.Errorf("discover: this build finds no servers through clouds, as in %q; join by address", cfg)
}
