-- timestamp is in microseconds since 1970, UTC.
CREATE TABLE audit_entries (
  id          INTEGER PRIMARY KEY AUTOINCREMENT,
  timestamp   INTEGER NOT NULL,
  product_id  TEXT NOT NULL,
  user_id     TEXT NOT NULL,
  engine_id   TEXT NOT NULL,
  action      TEXT NOT NULL,
  actor       TEXT NOT NULL,
  request_id  TEXT NOT NULL,
  outcome     TEXT NOT NULL,
  metadata    TEXT NOT NULL CHECK (json_valid(metadata)),
  duration_ms INTEGER,
  boot_ms     INTEGER, -- of metadata, for the mean of the boots
  reason      TEXT,    -- of metadata, of admit_denied alone: part of its key
  denials     INTEGER  -- of metadata ("count"), of admit_denied alone
) STRICT;

-- Each ends in (timestamp, id): the order of every list.
CREATE INDEX audit_entries_time ON audit_entries (timestamp, id);
CREATE INDEX audit_entries_user ON audit_entries (user_id, timestamp, id);
CREATE INDEX audit_entries_action ON audit_entries (action, timestamp, id);
CREATE INDEX audit_entries_product ON audit_entries (product_id, timestamp, id);
CREATE INDEX audit_entries_product_user ON audit_entries (product_id, user_id, timestamp, id);
CREATE INDEX audit_entries_product_action ON audit_entries (product_id, action, timestamp, id);
-- One row per product, user, reason and minute.
CREATE UNIQUE INDEX audit_entries_denied ON audit_entries (product_id, user_id, reason, timestamp)
  WHERE action = 'admit_denied';

-- Lifetime totals, which retention does not touch.
CREATE TABLE audit_totals (
  product_id TEXT NOT NULL,
  action     TEXT NOT NULL,
  total      INTEGER NOT NULL,
  PRIMARY KEY (product_id, action)
) STRICT, WITHOUT ROWID;
