#!/usr/bin/env python3
"""An engine that keeps its user's notes. docs/tutorial-engine.md explains it, line by line."""
import hashlib, hmac, json, os, signal, sqlite3, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

started = time.monotonic()
key_hash = os.environ["ENGINE_KEY_HASH"]

# The brain. One connection and one lock: a note is on the disk before it is answered.
brain = sqlite3.connect(os.environ["SQLITE_DB_PATH"], check_same_thread=False)
brain.execute("PRAGMA journal_mode = WAL")
brain.execute("PRAGMA synchronous = FULL")
brain.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
lock = threading.Lock()


class Engine(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10  # seconds that a slow client may take

    def answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def allowed(self):
        key = self.headers.get("X-Engine-Key", "")
        if hmac.compare_digest(hashlib.sha256(key.encode()).hexdigest(), key_hash):
            return True
        self.close_connection = True  # nobody has read the request's body
        self.answer(401, {"error": "X-Engine-Key is missing or wrong"})
        return False

    def do_GET(self):
        if self.path == "/health":
            with lock:
                brain.execute("SELECT 1 FROM notes LIMIT 1").fetchall()  # an error here: no answer, unhealthy
            self.answer(200, {"status": "ok", "uptime_seconds": time.monotonic() - started, "subsystems": {"brain": "ok"}})
        elif self.allowed():
            with lock:
                notes = [text for (text,) in brain.execute("SELECT text FROM notes ORDER BY id")]
            self.answer(200, {"notes": notes}) if self.path == "/notes" else self.answer(404, {"error": "not found"})

    def do_POST(self):
        if self.allowed():
            text = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            with lock, brain:
                brain.execute("INSERT INTO notes (text) VALUES (?)", (text,))
            self.answer(201, {"kept": text})


server = ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Engine)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
with lock:  # nobody writes any more
    brain.close()
