-- What the lifetime totals have counted of each engine: a destroy counts when the
-- engine's provision ended well, whichever of the two is completed first. The row goes
-- when both are counted.
CREATE TABLE audit_lives (
  engine_id    TEXT NOT NULL,
  product_id   TEXT NOT NULL,
  provisioned  INTEGER NOT NULL, -- 1: its provision ended well
  destroyed_at INTEGER,          -- microseconds since 1970, UTC
  PRIMARY KEY (engine_id, product_id)
) STRICT, WITHOUT ROWID;
-- Those of provisions that did not end well go with retention.
CREATE INDEX audit_lives_over ON audit_lives (destroyed_at) WHERE provisioned = 0;

INSERT INTO audit_lives (engine_id, product_id, provisioned)
  SELECT DISTINCT engine_id, product_id, 1 FROM audit_entries p
  WHERE action = 'provision' AND outcome = 'ok' AND engine_id <> '' AND NOT EXISTS (
    SELECT 1 FROM audit_entries d
    WHERE d.product_id = p.product_id AND d.user_id = p.user_id AND d.engine_id = p.engine_id AND d.action = 'destroy' AND d.outcome = 'ok');
