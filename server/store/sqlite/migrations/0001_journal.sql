-- The journal. Times are microseconds since 1970, UTC. Lists and objects are JSON; NULL stands for an empty one.
--
-- The invariants of the domain are here once more, as checks and triggers, so that no bug above can write what must never
-- be read: a final state without an end, an answer to a run that has ended, a changed audit trail.

CREATE TABLE invalidations (
  id                TEXT    NOT NULL PRIMARY KEY CHECK (id <> ''),
  state             TEXT    NOT NULL CHECK (state = 'RUNNING' OR state = 'SUCCEEDED' OR state = 'PARTIALLY_SUCCEEDED' OR state = 'FAILED' OR state = 'CANCELLED'),
  revision          INTEGER NOT NULL CHECK (revision >= 1),
  -- How many runs are not final: recording one answer need not look at all the others.
  unfinished        INTEGER NOT NULL CHECK (unfinished >= 0),
  allow_unsupported INTEGER NOT NULL CHECK (allow_unsupported IN (0, 1)),
  priority          INTEGER NOT NULL CHECK (priority IN (0, 1)), -- normal, bulk
  create_time       INTEGER NOT NULL,
  complete_time     INTEGER,
  caller_kind       TEXT    NOT NULL,
  caller_name       TEXT    NOT NULL,
  request_id        TEXT,
  request_digest    BLOB,
  user_id           TEXT,
  retry_of          TEXT,
  selector          TEXT    NOT NULL,
  call              TEXT    NOT NULL, -- the call's other contents
  CHECK ((state = 'RUNNING') = (complete_time IS NULL)),
  CHECK ((state = 'RUNNING') = (unfinished > 0)),
  CHECK ((request_id IS NULL) = (request_digest IS NULL))
) STRICT;

CREATE UNIQUE INDEX invalidations_request ON invalidations (caller_kind, caller_name, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX invalidations_user ON invalidations (user_id, id) WHERE user_id IS NOT NULL;
CREATE INDEX invalidations_caller ON invalidations (caller_name, id);
CREATE INDEX invalidations_state ON invalidations (state, id);
CREATE INDEX invalidations_created ON invalidations (create_time, id);
CREATE INDEX invalidations_completed ON invalidations (complete_time) WHERE complete_time IS NOT NULL;

CREATE TABLE labels (
  key             TEXT NOT NULL,
  value           TEXT NOT NULL,
  invalidation_id TEXT NOT NULL REFERENCES invalidations (id) ON DELETE CASCADE,
  PRIMARY KEY (key, value, invalidation_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX labels_invalidation ON labels (invalidation_id);

CREATE TABLE runs (
  invalidation_id    TEXT    NOT NULL REFERENCES invalidations (id) ON DELETE CASCADE,
  idx                INTEGER NOT NULL CHECK (idx >= 0),
  target             TEXT    NOT NULL CHECK (target <> ''),
  kind               TEXT    NOT NULL,
  fingerprint        TEXT    NOT NULL,
  priority           INTEGER NOT NULL CHECK (priority IN (0, 1)), -- the invalidation's, for the index
  state              TEXT    NOT NULL CHECK (state = 'PENDING' OR state = 'RUNNING' OR state = 'RETRYING' OR state = 'SUCCEEDED' OR state = 'UNSUPPORTED' OR state = 'FAILED' OR state = 'CANCELLED'),
  open               INTEGER NOT NULL CHECK (open IN (0, 1)),
  attempts           INTEGER NOT NULL CHECK (attempts >= 0),
  next_attempt_time  INTEGER,
  expire_time        INTEGER NOT NULL,
  start_time         INTEGER,
  complete_time      INTEGER,
  lease_owner        TEXT,
  lease_token        INTEGER NOT NULL CHECK (lease_token >= 0),
  lease_until        INTEGER,
  -- What the claim made of the run, so that it can be taken back: an attempt was begun from PENDING or RETRYING, or after
  -- a lost answer (LOST); one was continued (RUNNING); or nothing was changed (KEPT).
  lease_from         TEXT    CHECK (lease_from = 'PENDING' OR lease_from = 'RETRYING' OR lease_from = 'LOST' OR lease_from = 'RUNNING' OR lease_from = 'KEPT'),
  -- When the run can be claimed: NULL once it is final, 0 at once.
  due_time           INTEGER AS (CASE WHEN complete_time IS NULL THEN coalesce(lease_until, next_attempt_time, 0) END) STORED,
  counted            INTEGER NOT NULL CHECK (counted IN (0, 1)),
  count              INTEGER NOT NULL CHECK (count >= 0),
  count_is_minimum   INTEGER NOT NULL CHECK (count_is_minimum IN (0, 1)),
  verification       TEXT    CHECK (verification = 'CONFIRMED_BY_LIST' OR verification = 'CONFIRMED_BY_REPEAT' OR verification = 'UNVERIFIABLE'),
  sessions_truncated INTEGER NOT NULL CHECK (sessions_truncated IN (0, 1)),
  operation          TEXT,
  error              TEXT,
  retry              TEXT,
  resume             TEXT,
  covered            TEXT,
  warnings           TEXT,
  sessions           TEXT,
  selector           TEXT, -- resolved
  PRIMARY KEY (invalidation_id, idx),
  CHECK ((state = 'SUCCEEDED' OR state = 'UNSUPPORTED' OR state = 'FAILED' OR state = 'CANCELLED') = (complete_time IS NOT NULL)),
  CHECK (complete_time IS NULL OR next_attempt_time IS NULL),
  CHECK (complete_time IS NULL OR lease_until IS NULL),
  CHECK ((lease_owner IS NULL) = (lease_until IS NULL) AND (lease_owner IS NULL) = (lease_from IS NULL)),
  CHECK (open = 0 OR state = 'RUNNING'),
  CHECK (state <> 'PENDING' OR attempts = 0 AND start_time IS NULL),
  CHECK (state <> 'RUNNING' AND state <> 'RETRYING' OR attempts > 0 AND start_time IS NOT NULL),
  CHECK (counted = 1 OR count = 0)
) STRICT;

CREATE UNIQUE INDEX runs_target ON runs (target, invalidation_id);
-- What can be claimed at a target, in order, and what is unfinished.
CREATE INDEX runs_due ON runs (target, priority, due_time, invalidation_id, idx, lease_until, expire_time) WHERE due_time IS NOT NULL;

CREATE TABLE target_pauses (
  target      TEXT    NOT NULL PRIMARY KEY CHECK (target <> ''),
  caller_kind TEXT    NOT NULL,
  caller_name TEXT    NOT NULL,
  reason      TEXT    NOT NULL,
  time        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
  chain           TEXT    NOT NULL CHECK (chain <> ''), -- one per process start; they sort by time
  seq             INTEGER NOT NULL CHECK (seq >= 1),
  time            INTEGER NOT NULL,
  type            TEXT    NOT NULL CHECK (type <> ''),
  caller_kind     TEXT    NOT NULL,
  caller_name     TEXT    NOT NULL,
  invalidation_id TEXT, -- no reference: events outlive what they tell of
  target          TEXT,
  data            TEXT,
  prev_hash       BLOB,
  hash            BLOB,
  PRIMARY KEY (chain, seq)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER invalidations_insert BEFORE INSERT ON invalidations WHEN NEW.revision <> 1
BEGIN SELECT RAISE(ABORT, 'a new invalidation has revision 1'); END;

CREATE TRIGGER invalidations_identity
BEFORE UPDATE OF id, allow_unsupported, priority, create_time, caller_kind, caller_name, request_id, request_digest, user_id, retry_of, selector, call
ON invalidations
BEGIN SELECT RAISE(ABORT, 'what was accepted does not change'); END;

CREATE TRIGGER invalidations_final BEFORE UPDATE ON invalidations WHEN OLD.state <> 'RUNNING'
BEGIN SELECT RAISE(ABORT, 'the invalidation is final'); END;

CREATE TRIGGER invalidations_revision BEFORE UPDATE ON invalidations WHEN NEW.revision <= OLD.revision
BEGIN SELECT RAISE(ABORT, 'a change raises the revision'); END;

CREATE TRIGGER invalidations_delete BEFORE DELETE ON invalidations WHEN OLD.state = 'RUNNING'
BEGIN SELECT RAISE(ABORT, 'an unfinished invalidation is not removed'); END;

CREATE TRIGGER runs_identity
BEFORE UPDATE OF invalidation_id, idx, target, kind, fingerprint, priority, expire_time ON runs
BEGIN SELECT RAISE(ABORT, 'what identifies a run does not change'); END;

CREATE TRIGGER runs_final BEFORE UPDATE ON runs WHEN OLD.complete_time IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'the run is final'); END;

-- The table is runTransitions in server/invalidation/state.go. The last line is no transition: a claim that began the
-- first attempt is taken back before anything was sent.
CREATE TRIGGER runs_transition BEFORE UPDATE OF state ON runs WHEN NOT (
  NEW.state = OLD.state
  OR OLD.state = 'PENDING' AND NEW.state <> 'RETRYING'
  OR OLD.state = 'RUNNING' AND NEW.state <> 'PENDING'
  OR OLD.state = 'RETRYING' AND (NEW.state = 'RUNNING' OR NEW.state = 'FAILED' OR NEW.state = 'CANCELLED')
  OR OLD.state = 'RUNNING' AND NEW.state = 'PENDING' AND OLD.lease_from IS 'PENDING' AND NEW.attempts = OLD.attempts - 1
)
BEGIN SELECT RAISE(ABORT, 'illegal state transition'); END;

CREATE TRIGGER runs_token BEFORE UPDATE OF lease_token ON runs WHEN NEW.lease_token < OLD.lease_token
BEGIN SELECT RAISE(ABORT, 'lease tokens only grow'); END;

CREATE TRIGGER runs_delete BEFORE DELETE ON runs WHEN OLD.complete_time IS NULL
BEGIN SELECT RAISE(ABORT, 'an unfinished run is not removed'); END;

CREATE TRIGGER audit_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail does not change'); END;

CREATE TRIGGER audit_delete BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit trail does not change'); END;
