-- What a policy is told of a caller, for runs that can be judged only later, and under what terms a run was let through.

ALTER TABLE invalidations ADD COLUMN facts TEXT;

ALTER TABLE runs ADD COLUMN terms TEXT;

CREATE TRIGGER invalidations_facts BEFORE UPDATE OF facts ON invalidations
BEGIN SELECT RAISE(ABORT, 'what was accepted does not change'); END;
