-- Changes of several callers share a transaction, which is made only if all of them can be. This ends it otherwise; the
-- error's detail says which cannot, by their numbers.
CREATE FUNCTION blame(changes bigint[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'not all changes can be made' USING ERRCODE = 'ES002', DETAIL = changes::text;
END
$$;
