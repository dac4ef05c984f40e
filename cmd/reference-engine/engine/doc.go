// Package engine is the reference engine: one user's private, stateful process
// as docs/tutorial-engine.md describes it, small enough to read at one sitting.
//
// # Environment
//
//	ENGINE_KEY_HASH       lower-case hex SHA-256 of the engine's key
//	ENGINE_KEY_HASH_FILE  a file with the same; takes precedence over the variable, read again on SIGHUP
//	ENGINE_TLS_FILE       certificate, chain and key in one PEM file, to serve TLS; read again when it changes. Not set: plain HTTP
//	SQLITE_DB_PATH        the brain, required; its directory must exist
//	CATALOG_DIR           shared read-only files, optional
//	PORT, HOST            where to listen; 8000 and every interface (PORT=0: any free port, see the log)
//	ENGINE_SWITCHES       test switches, see below
//
// # API
//
// Everything but /health requires X-Engine-Key, and the key is checked before the
// path. Errors are {"error":{"code","message"}}.
//
//	GET  /health         open: 200 "ok", 503 "failing"; "busy": true while it works between requests
//	POST /execute        {"input": "..."} is stored, then the response is: {"id": 1, "output": "..."}
//	GET  /memory/export  {"memories":[{"id","input","at"}],"runs":[{"id","pid","host","started_at","ended_at"}]}
//	GET  /catalog        {"files":[{"name","size"}],"writable":false}
//	GET  /env?names=A,B  {"variables":{"A":{"set":true,"sha256":"..."}}}, never a value
//	GET  /info           {"pid","host","version","switches","started_at"}
//	POST /work           {"seconds": 30}: busy for that long, 0 ends it
//	POST /crash          the process exits 1 at once, without a response
//
// # The brain
//
// An SQLite file in WAL mode with synchronous=FULL: what was acknowledged
// survives kill -9 and a power failure. The process holds an exclusive flock on a file
// beside it (".lock") until it ends, so a second process on the same brain notices it and
// exits at once. Every process writes its beginning and its end into the table runs; a
// killed process has no end.
//
// # Test switches
//
// An engine gets a fixed environment from orch, so a switch can also be on
// the command line (a docker image's ENTRYPOINT) or in the executable's own
// name (raw_exec, where an image is a file name): reference-engine.ignore-sigterm,
// reference-engine.v2.slow-boot-5s. [Help] lists them. Durations are Go's
// (5s, 300ms); the forms name-5s, name=5s and --name=5s mean the same.
package engine
