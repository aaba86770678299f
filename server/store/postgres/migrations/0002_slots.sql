-- A target's concurrency, shared by all replicas: one row a slot, held by one owner until its lease ends.

CREATE TABLE target_slots (
  target text        COLLATE "C" NOT NULL CHECK (target <> ''),
  slot   integer     NOT NULL CHECK (slot >= 0),
  owner  text        COLLATE "C",
  token  bigint      NOT NULL CHECK (token >= 0),
  until  timestamptz,
  PRIMARY KEY (target, slot),
  CHECK ((owner IS NULL) = (until IS NULL))
) WITH (fillfactor = 50); -- few rows, updated all the time

CREATE TRIGGER target_slots_token BEFORE UPDATE OF token ON target_slots FOR EACH ROW WHEN (NEW.token < OLD.token)
EXECUTE FUNCTION refuse('lease tokens only grow');
