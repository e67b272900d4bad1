CREATE FUNCTION goose.log_lag(request jsonb) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('seconds', coalesce(extract(epoch FROM min(log_time - "timestamp")), 0))
    FROM (SELECT log_time, "timestamp", revision FROM goose.events ORDER BY position DESC LIMIT 100) newest
    WHERE revision > 0
      AND log_time > clock_timestamp() - make_interval(secs => (request ->> 'within_seconds')::double precision)
$$;
COMMENT ON FUNCTION goose.log_lag(jsonb) IS
    'How late the freshest of the entities'' events came that were logged lately {within_seconds}; 0: none was.';
