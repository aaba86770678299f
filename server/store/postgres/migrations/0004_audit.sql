-- Events are hashed into chains. What is removed because of its age is the beginning of a chain, and a checkpoint stands
-- for it.

CREATE TABLE audit_checkpoints (
  chain     text        COLLATE "C" NOT NULL PRIMARY KEY CHECK (chain <> ''),
  seq       bigint      NOT NULL CHECK (seq >= 1), -- the last event that was removed
  hash      bytea       NOT NULL CHECK (octet_length(hash) = 32), -- that event's
  chain_key text        COLLATE "C" NOT NULL, -- the chain's
  time      timestamptz NOT NULL,
  key       text        COLLATE "C" NOT NULL, -- what mac was made with
  mac       bytea       NOT NULL CHECK (octet_length(mac) = 32)
);

-- To find the last link.
CREATE INDEX audit_links ON audit (time) WHERE type = 'chain.linked';

-- Not of events that were there before.
ALTER TABLE audit ADD CONSTRAINT audit_hashed
  CHECK (prev_hash IS NOT NULL AND hash IS NOT NULL AND octet_length(prev_hash) = 32 AND octet_length(hash) = 32) NOT VALID;

DROP TRIGGER audit_change ON audit;

CREATE TRIGGER audit_update BEFORE UPDATE ON audit FOR EACH ROW
EXECUTE FUNCTION refuse('the audit trail does not change');

CREATE FUNCTION audit_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT 1 FROM audit_checkpoints AS p WHERE p.chain = OLD.chain AND p.seq >= OLD.seq) THEN
    RAISE EXCEPTION 'the audit trail does not change' USING ERRCODE = 'ES001';
  END IF;
  RETURN OLD;
END
$$;

CREATE TRIGGER audit_delete BEFORE DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_delete();

CREATE FUNCTION audit_checkpoint() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT 1 FROM audit AS a WHERE a.chain = NEW.chain AND a.seq = NEW.seq AND a.hash = NEW.hash) THEN
    RAISE EXCEPTION 'a checkpoint is of an event' USING ERRCODE = 'ES001';
  END IF;
  RETURN NEW;
END
$$;

CREATE TRIGGER audit_checkpoints_event BEFORE INSERT OR UPDATE ON audit_checkpoints FOR EACH ROW EXECUTE FUNCTION audit_checkpoint();

CREATE TRIGGER audit_checkpoints_update BEFORE UPDATE ON audit_checkpoints FOR EACH ROW WHEN (NEW.chain <> OLD.chain OR NEW.seq <= OLD.seq)
EXECUTE FUNCTION refuse('a checkpoint only goes on');

CREATE TRIGGER audit_checkpoints_delete BEFORE DELETE ON audit_checkpoints FOR EACH ROW
EXECUTE FUNCTION refuse('the audit trail does not change');

CREATE TRIGGER audit_checkpoints_truncate BEFORE TRUNCATE ON audit_checkpoints FOR EACH STATEMENT
EXECUTE FUNCTION refuse('the audit trail does not change');
