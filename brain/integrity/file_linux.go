package integrity

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"strings"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite" // also registers the driver "sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// What is known of a database after its check.
const (
	sound     = "sound"
	damaged   = "damaged"
	unchecked = "unchecked" // SQLite could not check it, which says nothing about it
)

// answer is what a process that checks one database writes.
type answer struct {
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
}

// heapLimit limits the memory of SQLite, in bytes: the job of a worker has 192 MB.
const heapLimit = "67108864"

// CheckFile checks the database at path, and writes an answer to out. It is all that its
// process does.
func CheckFile(ctx context.Context, path string, out io.Writer) error {
	// No core dump: it would hold parts of the brain.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	a := check(ctx, path)
	if len(a.Why) > 500 {
		a.Why = a.Why[:500]
	}
	return json.NewEncoder(out).Encode(a)
}

func check(ctx context.Context, path string) answer {
	db, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?mode=rw&_defensive=1")
	if err != nil {
		return answer{unchecked, err.Error()}
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return judged(err)
	}
	defer conn.Close()
	if _, err := sqlite.Limit(conn, sqlite3.SQLITE_LIMIT_ATTACHED, 0); err != nil {
		return answer{unchecked, err.Error()}
	}
	for _, pragma := range []string{
		"trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0", "hard_heap_limit=" + heapLimit, "temp_store=MEMORY",
		"locking_mode=EXCLUSIVE",      // no shared memory in a file
		"ignore_check_constraints=ON", // they are expressions of a stranger
	} {
		if _, err := conn.ExecContext(ctx, "PRAGMA "+pragma); err != nil {
			return answer{unchecked, err.Error()}
		}
	}
	a := integrity(ctx, conn, "1")
	if a.State == unchecked && a.Why != "" {
		return eachTable(ctx, conn, a)
	}
	return a
}

// integrity checks a database ("1": up to the first mistake) or one table of it.
func integrity(ctx context.Context, conn *sql.Conn, what string) answer {
	var said string
	err := conn.QueryRowContext(ctx, "PRAGMA integrity_check("+what+")").Scan(&said)
	switch {
	case err != nil:
		return judged(err)
	case said != "ok":
		return answer{damaged, said}
	}
	return answer{State: sound}
}

// eachTable checks the tables one by one, because something in the schema needs an extension
// that this program does not have.
func eachTable(ctx context.Context, conn *sql.Conn, whole answer) answer {
	names, err := tables(ctx, conn)
	if err != nil {
		return judged(err)
	}
	for _, name := range names {
		if a := integrity(ctx, conn, `"`+strings.ReplaceAll(name, `"`, `""`)+`"`); a.State == damaged {
			return a
		}
	}
	return whole
}

func tables(ctx context.Context, conn *sql.Conn) ([]string, error) {
	rows, err := conn.QueryContext(ctx, "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var names []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, rows.Err()
}

// judged says what an error of SQLite means.
func judged(err error) answer {
	var e *sqlite.Error
	if errors.As(err, &e) {
		if code := e.Code() & 0xff; code == sqlite3.SQLITE_CORRUPT || code == sqlite3.SQLITE_NOTADB {
			return answer{damaged, err.Error()}
		}
	}
	return answer{unchecked, err.Error()}
}
