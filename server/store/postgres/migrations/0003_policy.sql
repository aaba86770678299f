-- What a policy is told of a caller, for runs that can be judged only later, and under what terms a run was let through.

ALTER TABLE invalidations ADD COLUMN facts json;

ALTER TABLE runs ADD COLUMN terms json;

CREATE TRIGGER invalidations_facts BEFORE UPDATE OF facts ON invalidations FOR EACH ROW
EXECUTE FUNCTION refuse('what was accepted does not change');
