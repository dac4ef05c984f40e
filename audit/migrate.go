package audit

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
)

// migrations are the steps of the schema: a directory per kind of database and a file per
// step. The number in a file's name is the schema version after the step.
//
//go:embed migrations
var migrations embed.FS

// Numbers of the advisory locks of replicas in PostgreSQL: arbitrary, but they must never
// change.
const (
	lockMigrate = 7265120901
	lockRetain  = 7265120902
)

// errNewer: a newer version of the service created the schema.
var errNewer = errors.New("audit: a newer version of this service has written the database")

// prepare migrates the schema once; concurrent callers wait.
func (d *database) prepare(ctx context.Context) error {
	select {
	case d.preparing <- struct{}{}:
	case <-ctx.Done():
		return d.explain(ctx.Err())
	}
	defer func() { <-d.preparing }()
	if d.ready.Load() {
		return nil
	}
	reach, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	err := d.open(ctx, reach)
	if d.disk.isFull(err) && d.disk.giveUp() {
		err = d.open(ctx, reach)
		d.disk.extend()
	}
	switch {
	case errors.Is(err, errNewer):
		return err
	case err != nil && d.damaged(err):
		return unusable{fmt.Errorf("the file is damaged or not a SQLite database: replace it with a backup, or move it to start an empty log (engines do not depend on it): %w", err)}
	case err != nil:
		return d.explain(err)
	}
	d.ready.Store(true)
	return nil
}

// open connects to the database, checks its file, and migrates the schema.
func (d *database) open(ctx, reach context.Context) error {
	if err := d.writer.PingContext(reach); err != nil {
		return err
	}
	if err := d.checkFile(ctx); err != nil {
		return err
	}
	// There is no limit except the caller's: another replica may be migrating many rows.
	if err := d.transaction(ctx, d.migrate); err != nil {
		return err
	}
	return d.disk.pin(ctx, d.reader)
}

// checkFile checks a SQLite file for damage, for at most checkTimeout.
func (d *database) checkFile(ctx context.Context) error {
	if d.disk == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var found string
	err := d.writer.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&found)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		d.log.Info("the audit log's file is too large to be checked completely at the start", "file", d.disk.path, "after", checkTimeout.String())
		return nil
	}
	if err == nil && found != "ok" {
		return unusable{errors.New(found)}
	}
	return err
}

// migrate applies all missing steps, or none.
func (d *database) migrate(ctx context.Context, tx *sql.Tx) error {
	if d.lockTx != "" {
		if _, err := tx.ExecContext(ctx, fmt.Sprintf(d.lockTx, lockMigrate)); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS audit_migrations (version INTEGER PRIMARY KEY)`); err != nil {
		return err
	}
	var have int
	if err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(version), 0) FROM audit_migrations`).Scan(&have); err != nil {
		return err
	}
	steps, err := fs.Glob(migrations, path.Join("migrations", d.name, "*.sql"))
	if err != nil {
		return err
	}
	if have > len(steps) {
		return fmt.Errorf("%w (schema %d, this one knows %d)", errNewer, have, len(steps))
	}
	for i, step := range steps[have:] {
		script, err := fs.ReadFile(migrations, step)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, string(script)); err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO audit_migrations (version) VALUES ($1)`, have+i+1); err != nil {
			return err
		}
	}
	return nil
}

// away reports whether the database is only unreachable, so that the next call may reach
// it.
func (d *database) away(err error) bool {
	return errors.Is(err, ErrUnavailable) && !d.operator(err)
}
