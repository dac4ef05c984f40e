package audit

import (
	"context"
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
	// postgresConns is the number of connections per replica; PostgreSQL allows 100 in
	// total by default.
	postgresConns = 10
	// postgresConnLife makes a replica notice within minutes that the address leads to
	// another server, even if the old one still takes writes.
	postgresConnLife = 5 * time.Minute
	// askEvery is the interval of pings to a server that does not respond. Within a call's
	// time limit they occupy at most half of the connections.
	askEvery = time.Second
)

var postgresDialect = &dialect{
	name:       "postgres",
	jsonObject: "json_build_object",
	forUpdate:  " FOR UPDATE",
	lockTx:     "SELECT pg_advisory_xact_lock(%d)",
	tryLockTx:  "SELECT pg_try_advisory_xact_lock(%d)",
	time:       func(t time.Time) any { return t },
	insert: func(ctx context.Context, d *database, query string, args ...any) (id int64, err error) {
		err = d.writer.QueryRowContext(ctx, query+" RETURNING id", args...).Scan(&id)
		return id, err
	},
	unsent: func(err error) bool {
		var unconnected *pgconn.ConnectError
		if errors.As(err, &unconnected) || pgconn.SafeToRetry(err) {
			return true
		}
		// A pooler that lost its server reports it in class 08: it is unknown what the
		// server did.
		code := sqlState(err)
		return code != "" && !strings.HasPrefix(code, "08")
	},
	damaged: func(error) bool { return false },
	turnedAway: func(err error) bool {
		var unconnected *pgconn.ConnectError
		return !errors.As(err, &unconnected) && takesNoWrites(sqlState(err))
	},
	operator: func(err error) bool {
		// Classes of SQLSTATE: login refused, no such database, no permission to create
		// tables (PostgreSQL documentation, appendix A).
		switch code := sqlState(err); {
		case strings.HasPrefix(code, "28"), strings.HasPrefix(code, "3D"), strings.HasPrefix(code, "42"):
			return true
		}
		return false
	},
}

// sqlState returns the SQLSTATE of a server's response; "" if there was no response.
func sqlState(err error) string {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return ""
	}
	return refused.Code
}

// takesNoWrites reports whether a SQLSTATE means that this server executes no more changes,
// while another one may: it is read-only, such as a replaced primary, or it is shutting
// down.
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
		// The parser's error quotes the invalid part, which may be the password.
		return nil, errors.New("audit: the database URL is invalid: it must be postgres://USER:PASSWORD@HOST:PORT/DATABASE, with %XX for each character of the password that is not a letter or digit")
	}
	d.hide(secretsOf(u)...)
	config, err := pgx.ParseConfig(address)
	if err != nil {
		// Only the cause: the error itself contains the whole URL.
		cause := "an option is invalid"
		if inner := errors.Unwrap(err); inner != nil {
			cause = d.redact(inner).Error()
		}
		return nil, errors.New("audit: the database URL cannot be used: " + cause)
	}
	d.hide(config.Password) // also from the environment or a password file
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout(config)
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "orch"
	}
	if !u.Query().Has("default_query_exec_mode") {
		// No prepared statements: behind a pooler, the next transaction may be on another
		// server connection, which does not have them.
		config.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	// Overrides target_session_attrs: of several hosts, the one that takes writes is used,
	// and a connection whose server takes none is closed.
	config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	keep := config.OnPgError
	config.OnPgError = func(c *pgconn.PgConn, err *pgconn.PgError) bool {
		return keep(c, err) && !takesNoWrites(err.Code)
	}
	files := &postgresFiles{address: address, last: config}
	d.writer = stdlib.OpenDB(*config, stdlib.OptionBeforeConnect(func(_ context.Context, c *pgx.ConnConfig) error {
		d.hide(files.apply(c))
		return nil
	}))
	d.writer.SetMaxOpenConns(postgresConns)
	d.writer.SetMaxIdleConns(postgresConns)
	d.writer.SetConnMaxLifetime(postgresConnLife)
	d.reader = d.writer
	d.circuit = link.NewCircuit(d.writer.PingContext, func(away bool) {
		if away {
			d.dropIdle() // they lead to the silent server; new ones may reach another
		}
	}, askEvery, CallTimeout)
	return d, nil
}

// connectTimeout divides a call's time limit between the hosts of the URL. A single host
// gets all of it, because a busy server can take seconds to begin a session.
func connectTimeout(config *pgx.ConnConfig) time.Duration {
	hosts := map[string]bool{net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port))): true}
	for _, f := range config.Fallbacks { // the same host without TLS counts too
		hosts[net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port)))] = true
	}
	return CallTimeout / time.Duration(len(hosts))
}

// secretsOf returns the passwords of a URL, both as written and decoded.
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
