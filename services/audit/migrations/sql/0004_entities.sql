CREATE FUNCTION goose.begin_entities(request jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    wanted text := request ->> 'user_id';
BEGIN
    PERFORM goose.lock_log();
    UPDATE goose.recipe_executions SET version = '', named_version = '', created_at = NULL, recipe_id = NULL
    WHERE wanted IS NULL OR user_id = wanted;
    UPDATE goose.agent_sessions SET version = '', named_version = '', created_at = NULL, conversation_id = NULL
    WHERE wanted IS NULL OR user_id = wanted;
    UPDATE goose.recipes SET version = '', named_version = '', created_at = NULL
    WHERE wanted IS NULL OR user_id = wanted;
    UPDATE goose.extensions SET version = '', named_version = '', created_at = NULL
    WHERE wanted IS NULL OR user_id = wanted;
    RETURN jsonb_build_object('begun', true);
END
$$;
COMMENT ON FUNCTION goose.begin_entities(jsonb) IS
    'At the beginning of a rebuild: from here on any event is newer than the rows {user_id} of recipes and the like.';

CREATE FUNCTION goose.refold_entities(request jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    low bigint := (request ->> 'after')::bigint + 1;
    head bigint;
    high bigint;
BEGIN
    PERFORM goose.lock_log();
    SELECT coalesce(max(position), 0) INTO head FROM goose.events;
    high := least(low + (request ->> 'limit')::bigint - 1, head);
    IF low <= high THEN
        PERFORM goose.fold_entities(low, high);
    END IF;
    RETURN jsonb_build_object('position', greatest(high, low - 1), 'more', high < head);
END
$$;
COMMENT ON FUNCTION goose.refold_entities(jsonb) IS
    'In a rebuild: writes what the next events {after, limit} of the log tell of recipes and the like.';

CREATE FUNCTION goose.prune_entities(request jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    wanted text := request ->> 'user_id';
    kept bigint;
BEGIN
    PERFORM goose.lock_log();
    DELETE FROM goose.recipe_executions r WHERE r.version = '' AND (wanted IS NULL OR r.user_id = wanted);
    DELETE FROM goose.agent_sessions r WHERE r.version = '' AND (wanted IS NULL OR r.user_id = wanted);
    DELETE FROM goose.extensions r WHERE r.version = '' AND (wanted IS NULL OR r.user_id = wanted);
    -- A recipe that executions name and nobody has told of stays as their placeholder.
    DELETE FROM goose.recipes r
    WHERE r.version = '' AND (wanted IS NULL OR r.user_id = wanted)
      AND NOT EXISTS (SELECT FROM goose.recipe_executions x WHERE x.user_id = r.user_id AND x.recipe_id = r.id);
    SELECT (SELECT count(*) FROM goose.recipes r WHERE r.version <> '' AND (wanted IS NULL OR r.user_id = wanted))
         + (SELECT count(*) FROM goose.recipe_executions r WHERE wanted IS NULL OR r.user_id = wanted)
         + (SELECT count(*) FROM goose.agent_sessions r WHERE wanted IS NULL OR r.user_id = wanted)
         + (SELECT count(*) FROM goose.extensions r WHERE wanted IS NULL OR r.user_id = wanted)
    INTO kept;
    RETURN jsonb_build_object('entities', kept);
END
$$;
COMMENT ON FUNCTION goose.prune_entities(jsonb) IS
    'At the end of a rebuild: takes away rows {user_id} that no event tells of, and counts the others.';
