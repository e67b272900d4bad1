CREATE FUNCTION goose.log_lag(request jsonb) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('seconds', coalesce(extract(epoch FROM min(log_time - "timestamp")), 0))
    FROM (
        SELECT log_time, "timestamp" FROM goose.events
        WHERE position > (request ->> 'after')::bigint AND revision > 0 ORDER BY position DESC LIMIT 100
    ) newest
$$;
COMMENT ON FUNCTION goose.log_lag(jsonb) IS
    'How late the freshest of the entities'' events came that were logged after a position {after}; 0: none was.';
