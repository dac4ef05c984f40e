-- metadata is JSON and not JSONB, which refuses the character U+0000. A row is
-- changed once, in columns that no index has: fillfactor leaves it room to stay
-- on its page.
CREATE TABLE audit_entries (
  id          BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  timestamp   TIMESTAMPTZ NOT NULL,
  product_id  TEXT NOT NULL,
  user_id     TEXT NOT NULL,
  engine_id   TEXT NOT NULL,
  action      TEXT NOT NULL,
  actor       TEXT NOT NULL,
  request_id  TEXT NOT NULL,
  outcome     TEXT NOT NULL,
  metadata    JSON NOT NULL,
  duration_ms BIGINT,
  boot_ms     BIGINT, -- of metadata, for the mean of the boots
  reason      TEXT,   -- of metadata, of admit_denied alone: part of its key
  denials     BIGINT  -- of metadata ("count"), of admit_denied alone
) WITH (fillfactor = 80);

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
  total      BIGINT NOT NULL,
  PRIMARY KEY (product_id, action)
);
