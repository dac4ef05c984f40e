package audit

import (
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"
)

// postgresFiles are the certificates, and the password file, of a database URL. They are
// read again for each connection.
type postgresFiles struct {
	address string

	mu   sync.Mutex
	last *pgx.ConnConfig // the last that could be read
}

// apply makes a new connection use what is in the files now, and returns the password. What
// cannot be read stays as it was: files are replaced one after the other.
func (f *postgresFiles) apply(c *pgx.ConnConfig) (password string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now, err := pgx.ParseConfig(f.address); err == nil && len(now.Fallbacks) == len(c.Fallbacks) {
		if now.Password == "" { // also if the file is missing or has no line for this server
			now.Password = f.last.Password
		}
		f.last = now
	}
	c.Password, c.TLSConfig = f.last.Password, f.last.TLSConfig
	c.Fallbacks = slices.Clone(c.Fallbacks) // shared by all connections
	for i, from := range f.last.Fallbacks {
		to := *c.Fallbacks[i]
		to.TLSConfig = from.TLSConfig
		c.Fallbacks[i] = &to
	}
	return f.last.Password
}
