-- Events are hashed into chains. What is removed because of its age is the beginning of a chain, and a checkpoint stands
-- for it.

CREATE TABLE audit_checkpoints (
  chain     TEXT    NOT NULL PRIMARY KEY CHECK (chain <> ''),
  seq       INTEGER NOT NULL CHECK (seq >= 1), -- the last event that was removed
  hash      BLOB    NOT NULL CHECK (length(hash) = 32), -- that event's
  chain_key TEXT    NOT NULL, -- the chain's
  time      INTEGER NOT NULL,
  key       TEXT    NOT NULL, -- what mac was made with
  mac       BLOB    NOT NULL CHECK (length(mac) = 32)
) STRICT, WITHOUT ROWID;

-- To find the last link.
CREATE INDEX audit_links ON audit (time) WHERE type = 'chain.linked';

CREATE TRIGGER audit_insert BEFORE INSERT ON audit WHEN length(NEW.prev_hash) IS NOT 32 OR length(NEW.hash) IS NOT 32
BEGIN SELECT RAISE(ABORT, 'an event is in a chain'); END;

DROP TRIGGER audit_delete;

CREATE TRIGGER audit_delete BEFORE DELETE ON audit
WHEN NOT EXISTS (SELECT 1 FROM audit_checkpoints AS p WHERE p.chain = OLD.chain AND p.seq >= OLD.seq)
BEGIN SELECT RAISE(ABORT, 'the audit trail does not change'); END;

CREATE TRIGGER audit_checkpoints_insert BEFORE INSERT ON audit_checkpoints
WHEN NOT EXISTS (SELECT 1 FROM audit AS a WHERE a.chain = NEW.chain AND a.seq = NEW.seq AND a.hash = NEW.hash)
BEGIN SELECT RAISE(ABORT, 'a checkpoint is of an event'); END;

CREATE TRIGGER audit_checkpoints_update BEFORE UPDATE ON audit_checkpoints
WHEN NEW.chain <> OLD.chain OR NEW.seq <= OLD.seq
  OR NOT EXISTS (SELECT 1 FROM audit AS a WHERE a.chain = NEW.chain AND a.seq = NEW.seq AND a.hash = NEW.hash)
BEGIN SELECT RAISE(ABORT, 'a checkpoint only goes on, to an event'); END;

CREATE TRIGGER audit_checkpoints_delete BEFORE DELETE ON audit_checkpoints
BEGIN SELECT RAISE(ABORT, 'the audit trail does not change'); END;
