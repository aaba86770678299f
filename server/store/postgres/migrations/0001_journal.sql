-- The journal. Lists and objects are JSON, kept as they were written (json, not jsonb); NULL stands for an empty one.
-- Strings compare byte by byte (COLLATE "C"), as they do everywhere else in the program.
--
-- The invariants of the domain are here once more, as checks and triggers, so that no bug above can write what must never
-- be read: a final state without an end, an answer to a run that has ended, a changed audit trail. What a trigger refuses
-- has the SQLSTATE ES001.

CREATE TABLE invalidations (
  id                 text        COLLATE "C" NOT NULL PRIMARY KEY CHECK (id <> ''),
  state              text        COLLATE "C" NOT NULL CHECK (state IN ('RUNNING', 'SUCCEEDED', 'PARTIALLY_SUCCEEDED', 'FAILED', 'CANCELLED')),
  revision           bigint      NOT NULL CHECK (revision >= 1),
  -- How many runs are in which state, and when the last of them ended: recording one answer need not look at the others.
  unfinished         integer     NOT NULL CHECK (unfinished >= 0),
  succeeded          integer     NOT NULL CHECK (succeeded >= 0),
  failed             integer     NOT NULL CHECK (failed >= 0),
  unsupported        integer     NOT NULL CHECK (unsupported >= 0),
  cancelled          integer     NOT NULL CHECK (cancelled >= 0),
  runs_complete_time timestamptz,
  allow_unsupported  boolean     NOT NULL,
  priority           smallint    NOT NULL CHECK (priority IN (0, 1)), -- normal, bulk
  create_time        timestamptz NOT NULL,
  complete_time      timestamptz,
  caller_kind        text        COLLATE "C" NOT NULL,
  caller_name        text        COLLATE "C" NOT NULL,
  request_id         text        COLLATE "C",
  request_digest     bytea,
  user_id            text        COLLATE "C",
  retry_of           text        COLLATE "C",
  selector           json        NOT NULL,
  call               json        NOT NULL, -- the call's other contents
  CHECK ((state = 'RUNNING') = (complete_time IS NULL)),
  CHECK ((state = 'RUNNING') = (unfinished > 0)),
  CHECK ((request_id IS NULL) = (request_digest IS NULL))
) WITH (fillfactor = 85); -- room for the revision to grow in place

CREATE UNIQUE INDEX invalidations_request ON invalidations (caller_kind, caller_name, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX invalidations_user ON invalidations (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX invalidations_caller ON invalidations (caller_name, id);
CREATE INDEX invalidations_state ON invalidations (state, id);
CREATE INDEX invalidations_created ON invalidations (create_time, id);
CREATE INDEX invalidations_completed ON invalidations (complete_time) WHERE complete_time IS NOT NULL;

CREATE TABLE labels (
  key             text COLLATE "C" NOT NULL,
  value           text COLLATE "C" NOT NULL,
  invalidation_id text COLLATE "C" NOT NULL REFERENCES invalidations (id) ON DELETE CASCADE,
  PRIMARY KEY (key, value, invalidation_id)
);

CREATE INDEX labels_invalidation ON labels (invalidation_id);

CREATE TABLE runs (
  invalidation_id    text        COLLATE "C" NOT NULL REFERENCES invalidations (id) ON DELETE CASCADE,
  idx                integer     NOT NULL CHECK (idx >= 0),
  target             text        COLLATE "C" NOT NULL CHECK (target <> ''),
  kind               text        COLLATE "C" NOT NULL,
  fingerprint        text        COLLATE "C" NOT NULL,
  priority           smallint    NOT NULL CHECK (priority IN (0, 1)), -- the invalidation's, for the index
  state              text        COLLATE "C" NOT NULL CHECK (state IN ('PENDING', 'RUNNING', 'RETRYING', 'SUCCEEDED', 'UNSUPPORTED', 'FAILED', 'CANCELLED')),
  open               boolean     NOT NULL,
  attempts           integer     NOT NULL CHECK (attempts >= 0),
  next_attempt_time  timestamptz,
  expire_time        timestamptz NOT NULL,
  start_time         timestamptz,
  complete_time      timestamptz,
  lease_owner        text        COLLATE "C",
  lease_token        bigint      NOT NULL CHECK (lease_token >= 0),
  lease_until        timestamptz,
  -- What the claim made of the run, so that it can be taken back: an attempt was begun from PENDING or RETRYING, or after
  -- a lost answer (LOST); one was continued (RUNNING); or nothing was changed (KEPT).
  lease_from         text        COLLATE "C" CHECK (lease_from IN ('PENDING', 'RETRYING', 'LOST', 'RUNNING', 'KEPT')),
  -- When the run can be claimed: NULL once it is final, -infinity at once.
  due_time           timestamptz GENERATED ALWAYS AS (CASE WHEN complete_time IS NULL THEN coalesce(lease_until, next_attempt_time, timestamptz '-infinity') END) STORED,
  counted            boolean     NOT NULL,
  count              bigint      NOT NULL CHECK (count >= 0),
  count_is_minimum   boolean     NOT NULL,
  verification       text        COLLATE "C" CHECK (verification IN ('CONFIRMED_BY_LIST', 'CONFIRMED_BY_REPEAT', 'UNVERIFIABLE')),
  sessions_truncated boolean     NOT NULL,
  operation          json, -- a string, in JSON because a target chose it: text cannot hold every character
  error              json,
  retry              json,
  resume             json,
  covered            json,
  warnings           json,
  sessions           json,
  selector           json, -- resolved
  PRIMARY KEY (invalidation_id, idx),
  CHECK ((state IN ('SUCCEEDED', 'UNSUPPORTED', 'FAILED', 'CANCELLED')) = (complete_time IS NOT NULL)),
  CHECK (complete_time IS NULL OR next_attempt_time IS NULL),
  CHECK (complete_time IS NULL OR lease_until IS NULL),
  CHECK ((lease_owner IS NULL) = (lease_until IS NULL) AND (lease_owner IS NULL) = (lease_from IS NULL)),
  CHECK (NOT open OR state = 'RUNNING'),
  CHECK (state <> 'PENDING' OR attempts = 0 AND start_time IS NULL),
  CHECK (state NOT IN ('RUNNING', 'RETRYING') OR attempts > 0 AND start_time IS NOT NULL),
  CHECK (counted OR count = 0)
);

CREATE UNIQUE INDEX runs_target ON runs (target, invalidation_id);
-- What can be claimed at a target, in order, and what is unfinished. The expire time is in it for claims of nothing else.
CREATE INDEX runs_due ON runs (target, priority, due_time, expire_time, invalidation_id) WHERE due_time IS NOT NULL;

CREATE TABLE target_pauses (
  target      text        COLLATE "C" NOT NULL PRIMARY KEY CHECK (target <> ''),
  caller_kind text        COLLATE "C" NOT NULL,
  caller_name text        COLLATE "C" NOT NULL,
  reason      text        COLLATE "C" NOT NULL,
  time        timestamptz NOT NULL
);

CREATE TABLE audit (
  chain           text        COLLATE "C" NOT NULL CHECK (chain <> ''), -- one per connection; they sort by time
  seq             bigint      NOT NULL CHECK (seq >= 1),
  time            timestamptz NOT NULL,
  type            text        COLLATE "C" NOT NULL CHECK (type <> ''),
  caller_kind     text        COLLATE "C" NOT NULL,
  caller_name     text        COLLATE "C" NOT NULL,
  invalidation_id text        COLLATE "C", -- no reference: events outlive what they tell of
  target          text        COLLATE "C",
  data            json,
  prev_hash       bytea,
  hash            bytea,
  PRIMARY KEY (chain, seq)
);

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'ES001';
END
$$;

CREATE TRIGGER invalidations_insert BEFORE INSERT ON invalidations FOR EACH ROW WHEN (NEW.revision <> 1)
EXECUTE FUNCTION refuse('a new invalidation has revision 1');

CREATE TRIGGER invalidations_identity
BEFORE UPDATE OF id, allow_unsupported, priority, create_time, caller_kind, caller_name, request_id, request_digest, user_id, retry_of, selector, call
ON invalidations FOR EACH ROW
EXECUTE FUNCTION refuse('what was accepted does not change');

CREATE TRIGGER invalidations_final BEFORE UPDATE ON invalidations FOR EACH ROW WHEN (OLD.state <> 'RUNNING')
EXECUTE FUNCTION refuse('the invalidation is final');

CREATE TRIGGER invalidations_revision BEFORE UPDATE ON invalidations FOR EACH ROW WHEN (NEW.revision <= OLD.revision)
EXECUTE FUNCTION refuse('a change raises the revision');

CREATE TRIGGER invalidations_delete BEFORE DELETE ON invalidations FOR EACH ROW WHEN (OLD.state = 'RUNNING')
EXECUTE FUNCTION refuse('an unfinished invalidation is not removed');

CREATE TRIGGER runs_identity
BEFORE UPDATE OF invalidation_id, idx, target, kind, fingerprint, priority, expire_time ON runs FOR EACH ROW
EXECUTE FUNCTION refuse('what identifies a run does not change');

CREATE TRIGGER runs_final BEFORE UPDATE ON runs FOR EACH ROW WHEN (OLD.complete_time IS NOT NULL)
EXECUTE FUNCTION refuse('the run is final');

-- The table is runTransitions in server/invalidation/state.go. The last line is no transition: a claim that began the
-- first attempt is taken back before anything was sent.
CREATE TRIGGER runs_transition BEFORE UPDATE OF state ON runs FOR EACH ROW WHEN (NOT (
  NEW.state = OLD.state
  OR OLD.state = 'PENDING' AND NEW.state <> 'RETRYING'
  OR OLD.state = 'RUNNING' AND NEW.state <> 'PENDING'
  OR OLD.state = 'RETRYING' AND NEW.state IN ('RUNNING', 'FAILED', 'CANCELLED')
  OR OLD.state = 'RUNNING' AND NEW.state = 'PENDING' AND OLD.lease_from IS NOT DISTINCT FROM 'PENDING' AND NEW.attempts = OLD.attempts - 1
))
EXECUTE FUNCTION refuse('illegal state transition');

CREATE TRIGGER runs_token BEFORE UPDATE OF lease_token ON runs FOR EACH ROW WHEN (NEW.lease_token < OLD.lease_token)
EXECUTE FUNCTION refuse('lease tokens only grow');

CREATE TRIGGER runs_delete BEFORE DELETE ON runs FOR EACH ROW WHEN (OLD.complete_time IS NULL)
EXECUTE FUNCTION refuse('an unfinished run is not removed');

CREATE TRIGGER audit_change BEFORE UPDATE OR DELETE ON audit FOR EACH ROW
EXECUTE FUNCTION refuse('the audit trail does not change');

CREATE TRIGGER audit_truncate BEFORE TRUNCATE ON audit FOR EACH STATEMENT
EXECUTE FUNCTION refuse('the audit trail does not change');
