package testpg

import (
	"fmt"
	"os"
	"time"
)

// Standby starts another server on this host that replicates s until [Server.Promote].
func (s *Server) Standby() (*Server, error) {
	standby, err := s.Spare()
	if err != nil {
		return standby, err
	}
	return standby, standby.Follow(s)
}

// Spare prepares another server on this host; [Server.Follow] starts it.
func (s *Server) Spare() (*Server, error) {
	spare := &Server{bin: s.bin, host: s.host, port: s.port + 1, on: s.on}
	if s.on == nil { // others may have that port
		var err error
		if spare.port, err = freePort(); err != nil {
			return spare, err
		}
	}
	return spare, spare.makeDir()
}

// Follow starts a server as the standby of another one, with a copy of its data only.
func (s *Server) Follow(primary *Server) error {
	if err := os.RemoveAll(s.data()); err != nil {
		return err
	}
	copied := s.command("pg_basebackup", "-D", s.data(), "-d", primary.URL("postgres"), "-R", "-X", "stream", "--checkpoint=fast", "--no-sync")
	if out, err := copied.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	return s.Start()
}

// Promote makes a standby accept writes, and waits for that.
func (s *Server) Promote() error { return s.Exec("SELECT pg_promote()") }

// ReadOnly makes a server refuse writes, or accept them again. Reads keep working.
func (s *Server) ReadOnly(is bool) error {
	on := map[bool]string{true: "on", false: "off"}[is]
	for _, statement := range []string{"ALTER SYSTEM SET default_transaction_read_only = " + on, "SELECT pg_reload_conf()"} {
		if err := s.Exec(statement); err != nil {
			return err
		}
	}
	// A new session has the setting only after the existing ones have it.
	return s.until("current_setting('default_transaction_read_only') = '" + on + "'")
}

// FailOver promotes the standby of s once it has all data of s. s keeps running and accepts
// no writes.
func (s *Server) FailOver(standby *Server) error {
	if err := s.ReadOnly(true); err != nil {
		return err
	}
	// Transactions from before may still write.
	if err := s.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"); err != nil {
		return err
	}
	if err := s.until("NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND backend_xid IS NOT NULL)" +
		" AND (SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication)"); err != nil {
		return err
	}
	return standby.Promote()
}

// until waits until a condition is true for a new session.
func (s *Server) until(condition string) error {
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = s.Exec("DO $$ BEGIN ASSERT (" + condition + "); END $$"); err == nil {
			return nil
		}
	}
	return fmt.Errorf("PostgreSQL does not reach %s: %w", condition, err)
}
