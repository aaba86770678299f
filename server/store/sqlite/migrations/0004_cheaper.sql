-- What is checked stays the same, and costs less.
--
-- A statement that may be taken back half done (ABORT) keeps a copy of every page it is about to change, and one with
-- triggers always may. Ours concern one row, and what they refuse is not written yet when they do: there is nothing to take
-- back (FAIL). Whoever changes several rows by one statement, and is refused, has to roll back by himself, as the writer does.

DROP TRIGGER invalidations_insert;
DROP TRIGGER invalidations_final;
DROP TRIGGER invalidations_revision;
DROP TRIGGER runs_final;
DROP TRIGGER runs_transition;
DROP TRIGGER runs_token;
DROP TRIGGER audit_insert;

CREATE TRIGGER invalidations_insert BEFORE INSERT ON invalidations WHEN NEW.revision <> 1
BEGIN SELECT RAISE(FAIL, 'a new invalidation has revision 1'); END;

CREATE TRIGGER invalidations_final BEFORE UPDATE ON invalidations WHEN OLD.state <> 'RUNNING'
BEGIN SELECT RAISE(FAIL, 'the invalidation is final'); END;

CREATE TRIGGER invalidations_revision BEFORE UPDATE ON invalidations WHEN NEW.revision <= OLD.revision
BEGIN SELECT RAISE(FAIL, 'a change raises the revision'); END;

CREATE TRIGGER runs_final BEFORE UPDATE ON runs WHEN OLD.complete_time IS NOT NULL
BEGIN SELECT RAISE(FAIL, 'the run is final'); END;

-- The table is runTransitions in server/invalidation/state.go. The last line is no transition: a claim that began the
-- first attempt is taken back before anything was sent.
CREATE TRIGGER runs_transition BEFORE UPDATE OF state ON runs WHEN NOT (
  NEW.state = OLD.state
  OR OLD.state = 'PENDING' AND NEW.state <> 'RETRYING'
  OR OLD.state = 'RUNNING' AND NEW.state <> 'PENDING'
  OR OLD.state = 'RETRYING' AND (NEW.state = 'RUNNING' OR NEW.state = 'FAILED' OR NEW.state = 'CANCELLED')
  OR OLD.state = 'RUNNING' AND NEW.state = 'PENDING' AND OLD.lease_from IS 'PENDING' AND NEW.attempts = OLD.attempts - 1
)
BEGIN SELECT RAISE(FAIL, 'illegal state transition'); END;

CREATE TRIGGER runs_token BEFORE UPDATE OF lease_token ON runs WHEN NEW.lease_token < OLD.lease_token
BEGIN SELECT RAISE(FAIL, 'lease tokens only grow'); END;

-- Checks are rewritten where they stand: a check is no part of what is on the disk, so that a journal need not be copied,
-- however large it is. That of the hashes was a trigger, because events from before there were chains have none; those are
-- left as they are.

PRAGMA writable_schema = ON;

UPDATE sqlite_schema SET sql = replace(sql, '
  PRIMARY KEY (chain, seq)', '
  PRIMARY KEY (chain, seq),
  CHECK (length(prev_hash) IS 32 AND length(hash) IS 32)')
WHERE type = 'table' AND name = 'audit';

-- Flags are 0 or 1, so all of them together are. What belongs to a state is said once for each, the usual ones first, and with
-- AND and OR only, which SQLite leaves as soon as it knows; comparisons of truths it evaluates to the end.
UPDATE sqlite_schema SET sql = replace(replace(replace(replace(replace(replace(replace(replace(sql,
  'priority           INTEGER NOT NULL CHECK (priority IN (0, 1)),', 'priority           INTEGER NOT NULL,'),
  'CHECK (state = ''PENDING'' OR state = ''RUNNING'' OR state = ''RETRYING'' OR state = ''SUCCEEDED'' OR state = ''UNSUPPORTED'' OR state = ''FAILED'' OR state = ''CANCELLED''),', ','),
  'lease_from         TEXT    CHECK (lease_from = ''PENDING'' OR lease_from = ''RETRYING'' OR lease_from = ''LOST'' OR lease_from = ''RUNNING'' OR lease_from = ''KEPT''),', 'lease_from         TEXT,'),
  ' CHECK (open IN (0, 1)),', ','),
  ' CHECK (counted IN (0, 1)),', ','),
  ' CHECK (count_is_minimum IN (0, 1)),', ','),
  ' CHECK (sessions_truncated IN (0, 1)),', ','),
  '  CHECK ((state = ''SUCCEEDED'' OR state = ''UNSUPPORTED'' OR state = ''FAILED'' OR state = ''CANCELLED'') = (complete_time IS NOT NULL)),
  CHECK (complete_time IS NULL OR next_attempt_time IS NULL),
  CHECK (complete_time IS NULL OR lease_until IS NULL),
  CHECK ((lease_owner IS NULL) = (lease_until IS NULL) AND (lease_owner IS NULL) = (lease_from IS NULL)),
  CHECK (open = 0 OR state = ''RUNNING''),
  CHECK (state <> ''PENDING'' OR attempts = 0 AND start_time IS NULL),
  CHECK (state <> ''RUNNING'' AND state <> ''RETRYING'' OR attempts > 0 AND start_time IS NOT NULL),
', '  CHECK ((priority | open | counted | count_is_minimum | sessions_truncated) BETWEEN 0 AND 1),
  CHECK (complete_time IS NULL AND (
      state = ''RUNNING'' AND attempts > 0 AND start_time IS NOT NULL
      OR state = ''PENDING'' AND attempts = 0 AND start_time IS NULL AND open = 0
      OR state = ''RETRYING'' AND attempts > 0 AND start_time IS NOT NULL AND open = 0)
    OR complete_time IS NOT NULL AND next_attempt_time IS NULL AND lease_until IS NULL AND open = 0
      AND (state = ''SUCCEEDED'' OR state = ''FAILED'' OR state = ''UNSUPPORTED'' OR state = ''CANCELLED'')),
  CHECK (lease_until IS NULL AND lease_owner IS NULL AND lease_from IS NULL
    OR lease_until IS NOT NULL AND lease_owner IS NOT NULL AND lease_from IS NOT NULL
      AND (lease_from = ''PENDING'' OR lease_from = ''RETRYING'' OR lease_from = ''LOST'' OR lease_from = ''RUNNING'' OR lease_from = ''KEPT'')),
')
WHERE type = 'table' AND name = 'runs';

PRAGMA writable_schema = RESET;
