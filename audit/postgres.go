package audit

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/septemberai/orch/internal/link"
)

const (
	// postgresConns of a replica: PostgreSQL allows 100 in all by default.
	postgresConns = 10
	// postgresConnLife lets a replica notice within minutes that its address
	// leads to another server, although the old one still takes writes.
	postgresConnLife = 5 * time.Minute
	// askEvery is how often a server that does not answer is asked: within a call's time
	// limit, so that half of the connections are left.
	askEvery = time.Second
)

var postgresDialect = &dialect{
	name:       "postgres",
	jsonObject: "json_build_object",
	forUpdate:  " FOR UPDATE",
	lockTx:     "SELECT pg_advisory_xact_lock(%d)",
	tryLockTx:  "SELECT pg_try_advisory_xact_lock(%d)",
	time:       func(t time.Time) any { return t },
	insert: func(ctx context.Context, db *sql.DB, query string, args ...any) (id int64, err error) {
		err = db.QueryRowContext(ctx, query+" RETURNING id", args...).Scan(&id)
		return id, err
	},
	unsent: func(err error) bool {
		var unconnected *pgconn.ConnectError
		if errors.As(err, &unconnected) || pgconn.SafeToRetry(err) {
			return true
		}
		// A pooler that lost its server says so in class 08: what the server did
		// is not known.
		code := sqlState(err)
		return code != "" && !strings.HasPrefix(code, "08")
	},
	damaged: func(error) bool { return false },
	turnedAway: func(err error) bool {
		var unconnected *pgconn.ConnectError
		return !errors.As(err, &unconnected) && takesNoWrites(sqlState(err))
	},
	operator: func(err error) bool {
		// Classes of SQLSTATE: refused login, no such database, no right to make
		// the tables (PostgreSQL documentation, appendix A).
		switch code := sqlState(err); {
		case strings.HasPrefix(code, "28"), strings.HasPrefix(code, "3D"), strings.HasPrefix(code, "42"):
			return true
		}
		return false
	},
}

// sqlState is the SQLSTATE that a server answered with, "" for none.
func sqlState(err error) string {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return ""
	}
	return refused.Code
}

// takesNoWrites says of a SQLSTATE that the server behind the connection carries
// out no change any more, while another one may: it is read-only, as a primary
// that was replaced is, or it is ending.
func takesNoWrites(code string) bool {
	switch code {
	case "25006", // read_only_sql_transaction
		"57P01", "57P02", "57P03", "57P05": // admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout
		return true
	}
	return false
}

// openPostgres opens a pool of connections to the server of a URL.
func openPostgres(address string, log hclog.Logger) (*database, error) {
	d := newDatabase(postgresDialect, log)
	u, err := url.Parse(address)
	if err != nil {
		// Its text quotes the part that cannot be read, which may be the password.
		return nil, errors.New("audit: the database URL cannot be read: want postgres://USER:PASSWORD@HOST:PORT/DATABASE, with %XX for what is not a letter or digit of the password")
	}
	d.secrets = secretsOf(u)
	config, err := pgx.ParseConfig(address)
	if err != nil {
		// Only the cause: the error itself carries the whole URL.
		cause := "an option is wrong"
		if inner := errors.Unwrap(err); inner != nil {
			cause = d.redact(inner).Error()
		}
		return nil, errors.New("audit: the database URL cannot be used: " + cause)
	}
	if config.Password != "" { // of the environment or a password file too
		d.secrets = append(d.secrets, config.Password)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout(config)
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "orch"
	}
	if !u.Query().Has("default_query_exec_mode") {
		// No prepared statements: behind a pooler a connection's next transaction may
		// be on another server connection, which does not have them.
		config.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	// Whatever target_session_attrs says: of several hosts the one that takes
	// writes, and a connection whose server takes none is closed.
	config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	keep := config.OnPgError
	config.OnPgError = func(c *pgconn.PgConn, err *pgconn.PgError) bool {
		return keep(c, err) && !takesNoWrites(err.Code)
	}
	d.writer = stdlib.OpenDB(*config)
	d.writer.SetMaxOpenConns(postgresConns)
	d.writer.SetMaxIdleConns(postgresConns)
	d.writer.SetConnMaxLifetime(postgresConnLife)
	d.reader = d.writer
	d.circuit = link.NewCircuit(d.writer.PingContext, func(away bool) {
		if away {
			d.dropIdle() // they lead to it; what follows may find another server
		}
	}, askEvery, CallTimeout)
	return d, nil
}

// connectTimeout shares a call's time limit between the hosts of the URL, so that
// each has its turn. A single one has all of it: a busy server can take seconds
// to begin a session.
func connectTimeout(config *pgx.ConnConfig) time.Duration {
	hosts := map[string]bool{net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))): true}
	for _, f := range config.Fallbacks { // the same host without TLS is one too
		hosts[net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port)))] = true
	}
	return CallTimeout / time.Duration(len(hosts))
}

// secretsOf are the passwords of a URL, as they are written and as they are meant.
func secretsOf(u *url.URL) []string {
	var secrets []string
	add := func(secret string) {
		if secret != "" {
			secrets = append(secrets, secret, url.QueryEscape(secret), url.PathEscape(secret))
		}
	}
	if password, ok := u.User.Password(); ok {
		add(password)
		_, written, _ := strings.Cut(u.User.String(), ":")
		add(written)
	}
	for _, name := range []string{"password", "sslpassword"} {
		add(u.Query().Get(name))
	}
	return secrets
}
