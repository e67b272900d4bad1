-- What the audit service calls, each with one JSON value, through a binding that hides half-read results: every
-- function gives one row of text, so that a cut-off answer is an empty one and can't be mistaken for a whole one.
-- Who writes several rows of the read model at once holds the log's lock, so that two can't wait for each other.
--
-- Statements of writers are so written that the planner has one way alone to find an event. Left a choice, it once
-- plans for a small table and keeps that plan as long as the connection lasts, and appending slows with every event
-- (from 9,000 to 300 a second within 30,000, measured). Hence `AS MATERIALIZED` around events picked by position,
-- `LIMIT 1` against a join with the whole log, `user_id || ''` where a user's index must not be taken for looking up
-- one thing, and no sequential scans at all (at the end of this file). The rest is right as long as statistics are: the
-- service has them renewed whenever the log doubles.

CREATE FUNCTION goose.lock_log() RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(443852055397)
$$;
COMMENT ON FUNCTION goose.lock_log() IS 'One writer at a time, until its transaction ends.';

CREATE FUNCTION goose.number(value jsonb) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN value #>> '{}' ~ '^[0-9]{1,15}$' THEN (value #>> '{}')::bigint END
$$;
COMMENT ON FUNCTION goose.number(jsonb) IS 'A count written as a number or, as proto3 JSON does, as a string; else null.';

CREATE FUNCTION goose.message_total(data jsonb) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN jsonb_typeof(data -> 'messages') = 'array' THEN jsonb_array_length(data -> 'messages') ELSE 0 END
$$;
COMMENT ON FUNCTION goose.message_total(jsonb) IS 'How many messages an event of an append tells of.';

CREATE FUNCTION goose.is_append(topic text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT topic IN ('goose.agent.message.sent', 'goose.agent.message.received')
$$;
COMMENT ON FUNCTION goose.is_append(text) IS 'Whether events of the topic tell of appended messages.';

CREATE FUNCTION goose.user_word(user_id text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT '@' || md5(user_id)
$$;
COMMENT ON FUNCTION goose.user_word(text) IS
    'The word that stands for a user in the search index. No parser makes one with @ in front, so no text holds it.';

CREATE FUNCTION goose.message_words(user_id text, content text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN to_tsvector('goose.words', content) || array_to_tsvector(ARRAY[goose.user_word(user_id)]);
EXCEPTION WHEN program_limit_exceeded THEN
    -- More words than a tsvector holds (1 MiB): the first ones are found.
    RETURN to_tsvector('goose.words', left(content, 32768)) || array_to_tsvector(ARRAY[goose.user_word(user_id)]);
END
$$;
COMMENT ON FUNCTION goose.message_words(text, text) IS 'The search index''s words of one message.';

-- ---------------------------------------------------------------------------------------------------- folding events

CREATE FUNCTION goose.track_revisions(low bigint, high bigint) RETURNS void LANGUAGE sql AS $$
    WITH picked AS MATERIALIZED (
        SELECT * FROM goose.events WHERE position BETWEEN low AND high
    )
    INSERT INTO goose.revisions AS r (user_id, entity_type, entity_id, incarnation, seen)
    SELECT user_id, entity_type, entity_id, incarnation, range_agg(int8range(revision, revision, '[]'))
    FROM picked e
    WHERE revision > 0 AND entity_id <> ''
      AND (parts <= 1 OR parts <= (
          SELECT count(DISTINCT p.part) FROM goose.events p
          WHERE p.entity_id = e.entity_id AND p.revision = e.revision AND p.incarnation = e.incarnation
            AND p.entity_type = e.entity_type AND p.user_id || '' = e.user_id))
    GROUP BY user_id, entity_type, entity_id, incarnation
    ON CONFLICT (user_id, entity_id, entity_type, incarnation)
    DO UPDATE SET seen = r.seen + excluded.seen, lost = r.lost - excluded.seen
$$;
COMMENT ON FUNCTION goose.track_revisions(bigint, bigint) IS 'Notes the revisions of the events at these positions.';

CREATE FUNCTION goose.begin_lives(lives jsonb) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO goose.conversations (user_id, id, incarnation)
    SELECT user_id, id, incarnation
    FROM jsonb_to_recordset(lives) AS l(user_id text, id text, incarnation bigint)
    ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
    WITH renewed AS (
        UPDATE goose.conversations c
        SET incarnation = l.incarnation, revision = 0, title = '', metadata = '{}', created_at = NULL,
            updated_at = NULL, deleted_at = NULL, last_sequence = 0, message_count = 0, first_sequence = 1,
            summary_sequence = 0, fence = 0, max_messages = 0, ttl_seconds = NULL, forked_from_id = NULL,
            forked_from_sequence = NULL, truncated = '{}', described_revision = 0,
            counted_revision = 0, snapshot_revision = 0
        FROM jsonb_to_recordset(lives) AS l(user_id text, id text, incarnation bigint, again boolean)
        WHERE c.user_id = l.user_id AND c.id = l.id AND (c.incarnation < l.incarnation OR l.again)
        RETURNING c.user_id, c.id
    ), reset AS (
        DELETE FROM goose.index_work w USING renewed r WHERE w.user_id = r.user_id AND w.conversation_id = r.id
    )
    DELETE FROM goose.message_search m USING renewed r WHERE m.user_id = r.user_id AND m.conversation_id = r.id;
END
$$;
COMMENT ON FUNCTION goose.begin_lives(jsonb) IS
    'Makes rows for conversations not yet known, and empties those of an earlier life (or, with `again`, of any).';

CREATE FUNCTION goose.settle_conversations(touched jsonb, delay_seconds double precision) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- A deleted one keeps nothing but that it was, whatever arrives after.
    UPDATE goose.conversations c
    SET title = '', metadata = '{}', message_count = 0, summary_sequence = 0, forked_from_id = NULL,
        forked_from_sequence = NULL, max_messages = 0, ttl_seconds = NULL, fence = 0, first_sequence = 1,
        truncated = '{}', snapshot_revision = 0
    FROM jsonb_to_recordset(touched) AS t(user_id text, id text)
    WHERE c.user_id = t.user_id AND c.id = t.id AND c.deleted_at IS NOT NULL;
    DELETE FROM goose.message_search m
    USING jsonb_to_recordset(touched) AS t(user_id text, id text), goose.conversations c
    WHERE c.user_id = t.user_id AND c.id = t.id AND m.user_id = c.user_id AND m.conversation_id = c.id
      AND (c.deleted_at IS NOT NULL OR m.sequence <@ c.truncated OR m.sequence < c.first_sequence);
    INSERT INTO goose.index_work AS w (user_id, conversation_id, due_time)
    SELECT c.user_id, c.id, CASE
        WHEN c.deleted_at IS NULL AND (c.last_sequence > coalesce(o.indexed_sequence, 0) OR goose.wants_snapshot(c))
        THEN clock_timestamp() + make_interval(secs => delay_seconds) END
    FROM jsonb_to_recordset(touched) AS t(user_id text, id text)
    JOIN goose.conversations c ON c.user_id = t.user_id AND c.id = t.id
    LEFT JOIN goose.index_work o ON o.user_id = c.user_id AND o.conversation_id = c.id
    ON CONFLICT (user_id, conversation_id) DO UPDATE
    SET due_time = CASE WHEN excluded.due_time IS NULL THEN NULL ELSE coalesce(w.due_time, excluded.due_time) END;
END
$$;

CREATE FUNCTION goose.wants_snapshot(c goose.conversations) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT c.described_revision > c.snapshot_revision
        OR c.snapshot_revision = 0
        OR (c.max_messages > 0 AND c.revision > c.snapshot_revision)
$$;
COMMENT ON FUNCTION goose.settle_conversations(jsonb, double precision) IS
    'After rows changed: takes away what is deleted, truncated or cut, and notes what the indexer is to fetch.';
COMMENT ON FUNCTION goose.wants_snapshot(goose.conversations) IS
    'Whether the owner knows more than the events told: retention, fence, a fork''s history, what retention cut.';

-- Every column is a maximum, a union, a sum over events logged once, or the word of the highest revision, so that
-- neither order nor repetition of events matters.
CREATE FUNCTION goose.fold_conversations(positions bigint[], delay_seconds double precision) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    lives jsonb;
BEGIN
    WITH picked AS MATERIALIZED (
        SELECT * FROM goose.events WHERE position = ANY (positions)
    )
    SELECT jsonb_agg(l) INTO lives
    FROM (
        SELECT user_id, entity_id AS id, max(incarnation) AS incarnation
        FROM picked e
        WHERE entity_type = 'conversation' AND entity_id <> '' AND user_id <> ''
          AND (goose.is_append(topic) OR topic IN
               ('goose.conversation.created', 'goose.conversation.updated', 'goose.conversation.deleted'))
          AND NOT EXISTS (SELECT FROM goose.erased_users x WHERE x.user_id = e.user_id)
        GROUP BY 1, 2
    ) l;
    IF lives IS NULL THEN
        RETURN;
    END IF;
    PERFORM goose.begin_lives(lives);
    WITH picked AS MATERIALIZED (
        SELECT * FROM goose.events WHERE position = ANY (positions)
    ), told AS (
        SELECT e.user_id, e.entity_id AS id, e.incarnation, e.revision, e."timestamp" AS at, e.data, e.event_id,
               goose.is_append(e.topic) AS append,
               e.topic = 'goose.conversation.created' AS created,
               e.topic = 'goose.conversation.updated' AS updated,
               e.topic = 'goose.conversation.deleted' AS deleted
        FROM picked e
        JOIN jsonb_to_recordset(lives) AS l(user_id text, id text, incarnation bigint)
          ON e.user_id = l.user_id AND e.entity_id = l.id AND e.incarnation = l.incarnation
        WHERE e.entity_type = 'conversation'
          AND (goose.is_append(e.topic) OR e.topic IN
               ('goose.conversation.created', 'goose.conversation.updated', 'goose.conversation.deleted'))
    ), folded AS (
        SELECT user_id, id, max(incarnation) AS incarnation,
            max(revision) AS revision,
            (array_agg(at ORDER BY revision DESC, at DESC))[1] AS updated_at,
            min(at) FILTER (WHERE created) AS created_at,
            min(at) FILTER (WHERE deleted) AS deleted_at,
            max(revision) FILTER (WHERE created OR updated) AS described_revision,
            (array_agg(data ORDER BY revision DESC, event_id) FILTER (WHERE created OR updated))[1] AS described,
            max(revision) FILTER (WHERE updated) AS counted_revision,
            (array_agg(data ORDER BY revision DESC, event_id) FILTER (WHERE updated))[1] AS counted,
            (array_agg(coalesce(data -> 'forkedFrom', data -> 'forked_from'))
                FILTER (WHERE created AND (data ? 'forkedFrom' OR data ? 'forked_from')))[1] AS forked_from,
            max(goose.number(coalesce(data -> 'lastSequence', data -> 'last_sequence')))
                FILTER (WHERE append OR updated) AS last_sequence,
            range_agg(int8range(gone_first, gone_last, '[]'))
                FILTER (WHERE updated AND gone_first <= gone_last) AS truncated
        FROM told
        CROSS JOIN LATERAL (SELECT
            goose.number(data -> 'truncated' -> 'first') AS gone_first,
            goose.number(data -> 'truncated' -> 'last') AS gone_last) v
        GROUP BY user_id, id
    )
    UPDATE goose.conversations c
    SET revision = greatest(c.revision, f.revision),
        updated_at = CASE WHEN (f.revision, f.updated_at) > (c.revision, coalesce(c.updated_at, '-infinity'))
                          THEN f.updated_at ELSE c.updated_at END,
        created_at = least(c.created_at, f.created_at),
        deleted_at = least(c.deleted_at, f.deleted_at),
        described_revision = greatest(c.described_revision, f.described_revision),
        title = CASE WHEN f.described_revision > c.described_revision
                     THEN coalesce(f.described ->> 'title', '') ELSE c.title END,
        metadata = CASE WHEN f.described_revision > c.described_revision
                        THEN coalesce(nullif(f.described -> 'metadata', 'null'), '{}') ELSE c.metadata END,
        summary_sequence = CASE WHEN f.counted_revision > c.counted_revision THEN coalesce(
            goose.number(coalesce(f.counted -> 'summarySequence', f.counted -> 'summary_sequence')), 0)
            ELSE c.summary_sequence END,
        forked_from_id = coalesce(c.forked_from_id,
                                  f.forked_from ->> 'conversationId', f.forked_from ->> 'conversation_id'),
        forked_from_sequence = coalesce(c.forked_from_sequence, goose.number(f.forked_from -> 'sequence')),
        last_sequence = greatest(c.last_sequence, f.last_sequence),
        truncated = c.truncated + coalesce(f.truncated, '{}'),
        counted_revision = greatest(c.counted_revision, f.counted_revision),
        message_count = CASE
            WHEN f.counted_revision > c.counted_revision THEN
                coalesce(goose.number(coalesce(f.counted -> 'messageCount', f.counted -> 'message_count')), 0)
                + goose.messages_after(c.user_id, c.id, c.incarnation, f.counted_revision)
            ELSE c.message_count + (
                SELECT coalesce(sum(goose.message_total(t.data)), 0) FROM told t
                WHERE t.user_id = c.user_id AND t.id = c.id AND t.append AND t.revision > c.counted_revision)
            END
    FROM folded f
    WHERE c.user_id = f.user_id AND c.id = f.id AND c.incarnation = f.incarnation;
    PERFORM goose.settle_conversations(lives, delay_seconds);
END
$$;
COMMENT ON FUNCTION goose.fold_conversations(bigint[], double precision) IS
    'Brings conversations up to date with the events at these positions, each given once.';

CREATE FUNCTION goose.messages_after(owner text, conversation text, life bigint, after_revision bigint) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT coalesce(sum(goose.message_total(data)), 0)::bigint
    FROM goose.events
    WHERE entity_id = conversation AND revision > after_revision AND incarnation = life
      AND entity_type = 'conversation' AND user_id || '' = owner AND goose.is_append(topic)
$$;
COMMENT ON FUNCTION goose.messages_after(text, text, bigint, bigint) IS
    'How many messages the log has of a conversation''s appends after a revision.';

-- Recipes, executions, extensions and sessions: the newest event wins, whole.
CREATE FUNCTION goose.entities_told(low bigint, high bigint)
RETURNS TABLE (target text, user_id text, id text, parent_id text, name text, status text, data jsonb, at timestamptz,
               version text)
LANGUAGE sql STABLE AS $$
    SELECT t.target, e.user_id, t.id, nullif(t.parent_id, ''),
           coalesce(e.data ->> 'name', e.data ->> 'title', ''),
           substring(e.event_type FROM '[^.]*$'), e.data, e."timestamp",
           (lpad(e.incarnation::text, 19, '0') || lpad(e.revision::text, 19, '0')
               || to_char(e."timestamp" AT TIME ZONE 'UTC', 'YYYYMMDDHH24MISSUS') || e.event_id) COLLATE "C"
    FROM goose.events e
    CROSS JOIN LATERAL (
        SELECT 'recipes' AS target, e.entity_id AS id, NULL AS parent_id
        WHERE e.topic IN ('goose.recipe.created', 'goose.recipe.updated', 'goose.recipe.deleted')
        UNION ALL
        SELECT 'recipe_executions',
               CASE e.entity_type WHEN 'recipe' THEN coalesce(e.data ->> 'executionId', e.data ->> 'execution_id', '')
                                  ELSE e.entity_id END,
               CASE e.entity_type WHEN 'recipe' THEN e.entity_id
                                  ELSE coalesce(e.data ->> 'recipeId', e.data ->> 'recipe_id') END
        WHERE e.topic IN ('goose.recipe.started', 'goose.recipe.completed', 'goose.recipe.failed',
                          'goose.recipe.cancelled', 'goose.recipe.step.started', 'goose.recipe.step.completed')
        UNION ALL
        SELECT 'extensions', e.entity_id, NULL WHERE e.topic LIKE 'goose.extension.%'
        UNION ALL
        SELECT 'agent_sessions', e.entity_id, coalesce(e.data ->> 'conversationId', e.data ->> 'conversation_id')
        WHERE e.topic LIKE 'goose.agent.session.%'
    ) t
    WHERE e.position BETWEEN low AND high AND t.id <> '' AND e.user_id <> ''
      AND NOT EXISTS (SELECT FROM goose.erased_users x WHERE x.user_id = e.user_id)
$$;
COMMENT ON FUNCTION goose.entities_told(bigint, bigint) IS
    'What the events at these positions tell of recipes, executions, extensions and sessions.';

CREATE FUNCTION goose.fold_entities(low bigint, high bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    target text;
BEGIN
    INSERT INTO goose.recipes (user_id, id)
    SELECT DISTINCT t.user_id, t.parent_id FROM goose.entities_told(low, high) t
    WHERE t.target = 'recipe_executions' AND t.parent_id IS NOT NULL
    ON CONFLICT DO NOTHING;
    INSERT INTO goose.conversations (user_id, id, incarnation)
    SELECT DISTINCT t.user_id, t.parent_id, 0 FROM goose.entities_told(low, high) t
    WHERE t.target = 'agent_sessions' AND t.parent_id IS NOT NULL
    ON CONFLICT DO NOTHING;
    FOR target IN SELECT DISTINCT t.target FROM goose.entities_told(low, high) t ORDER BY 1 LOOP
        EXECUTE format($sql$
            INSERT INTO goose.%1$I AS r
                (user_id, id, name, status, data, created_at, updated_at, version, named_version)
            SELECT user_id, id,
                   coalesce((array_agg(name ORDER BY version DESC) FILTER (WHERE name <> ''))[1], ''),
                   (array_agg(status ORDER BY version DESC))[1],
                   (array_agg(data ORDER BY version DESC))[1],
                   min(at), (array_agg(at ORDER BY version DESC))[1],
                   max(version), coalesce(max(version) FILTER (WHERE name <> ''), '')
            FROM goose.entities_told($1, $2) WHERE target = %1$L GROUP BY user_id, id ORDER BY user_id, id
            ON CONFLICT (user_id, id) DO UPDATE SET
                name = CASE WHEN excluded.named_version > r.named_version THEN excluded.name ELSE r.name END,
                named_version = greatest(excluded.named_version, r.named_version),
                status = CASE WHEN excluded.version > r.version THEN excluded.status ELSE r.status END,
                data = CASE WHEN excluded.version > r.version THEN excluded.data ELSE r.data END,
                updated_at = CASE WHEN excluded.version > r.version THEN excluded.updated_at ELSE r.updated_at END,
                created_at = least(excluded.created_at, r.created_at),
                version = greatest(excluded.version, r.version)
        $sql$, target) USING low, high;
    END LOOP;
    UPDATE goose.recipe_executions r SET recipe_id = t.parent_id
    FROM goose.entities_told(low, high) t
    WHERE t.target = 'recipe_executions' AND t.user_id = r.user_id AND t.id = r.id AND t.parent_id IS NOT NULL
      AND r.recipe_id IS NULL;
    UPDATE goose.agent_sessions r SET conversation_id = t.parent_id
    FROM goose.entities_told(low, high) t
    WHERE t.target = 'agent_sessions' AND t.user_id = r.user_id AND t.id = r.id AND t.parent_id IS NOT NULL
      AND r.conversation_id IS NULL;
END
$$;
COMMENT ON FUNCTION goose.fold_entities(bigint, bigint) IS
    'Brings recipes, executions, extensions and sessions up to date with the events at these positions.';

-- -------------------------------------------------------------------------------------------------------- the log

CREATE FUNCTION goose.append_events(request jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    head bigint;
    appended bigint;
    delay double precision := coalesce((request ->> 'index_delay_seconds')::double precision, 0);
BEGIN
    PERFORM goose.lock_log();
    SELECT coalesce(max(position), 0) INTO head FROM goose.events;
    INSERT INTO goose.events (position, event_id, topic, event_type, entity_type, entity_id, user_id, revision,
                              incarnation, part, parts, "timestamp", data, metadata)
    SELECT head + row_number() OVER (ORDER BY n), event_id, topic, event_type, entity_type, entity_id, user_id,
           revision, incarnation, part, parts, "timestamp",
           CASE WHEN kept THEN data ELSE '{}' END, CASE WHEN kept THEN metadata ELSE '{}' END
    FROM (
        SELECT DISTINCT ON (e.event_id, e.user_id) e.*,
               e.topic LIKE 'goose.user.%' OR NOT EXISTS (
                   SELECT FROM goose.erased_users x WHERE x.user_id = e.user_id) AS kept
        FROM ROWS FROM (jsonb_to_recordset(request -> 'events') AS (
            event_id text, topic text, event_type text, entity_type text, entity_id text, user_id text,
            revision bigint, incarnation bigint, part integer, parts integer, "timestamp" timestamptz,
            data jsonb, metadata jsonb)) WITH ORDINALITY AS e(event_id, topic, event_type, entity_type, entity_id,
            user_id, revision, incarnation, part, parts, "timestamp", data, metadata, n)
        ORDER BY e.event_id, e.user_id, e.n
    ) fresh
    WHERE (SELECT true FROM goose.events known
           WHERE known.event_id = fresh.event_id AND known.user_id || '' = fresh.user_id LIMIT 1) IS NULL;
    GET DIAGNOSTICS appended = ROW_COUNT;
    IF appended > 0 THEN
        INSERT INTO goose.erased_users (user_id, erasure_id)
        SELECT user_id, coalesce(data ->> 'erasureId', data ->> 'erasure_id', event_id) FROM goose.events
        WHERE position BETWEEN head + 1 AND head + appended AND topic = 'goose.user.erased' AND user_id <> ''
        ON CONFLICT DO NOTHING;
        PERFORM goose.track_revisions(head + 1, head + appended);
        PERFORM goose.fold_conversations(
            ARRAY(SELECT generate_series(head + 1, head + appended)), delay);
        IF EXISTS (
            SELECT FROM goose.events WHERE position BETWEEN head + 1 AND head + appended
              AND (topic LIKE 'goose.recipe.%' OR topic LIKE 'goose.extension.%' OR topic LIKE 'goose.agent.session.%')
        ) THEN
            PERFORM goose.fold_entities(head + 1, head + appended);
        END IF;
    END IF;
    RETURN jsonb_build_object('appended', appended, 'head', head + appended);
END
$$;
COMMENT ON FUNCTION goose.append_events(jsonb) IS
    'Logs {events, index_delay_seconds}, each event once, and folds what is new into the read model.';

CREATE FUNCTION goose.add_dead_letters(request jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    added bigint;
BEGIN
    PERFORM goose.lock_log();
    INSERT INTO goose.dead_letters (position, topic, event_id, user_id, error, payload)
    SELECT (SELECT coalesce(max(position), 0) FROM goose.dead_letters) + row_number() OVER (ORDER BY n),
           topic, event_id, user_id, error,
           CASE WHEN EXISTS (SELECT FROM goose.erased_users x WHERE x.user_id = fresh.user_id) THEN ''::bytea
                ELSE decode(payload, 'base64') END
    FROM (
        SELECT DISTINCT ON (d.topic, d.event_id) d.*
        FROM ROWS FROM (jsonb_to_recordset(request -> 'dead_letters') AS (
            topic text, event_id text, user_id text, error text, payload text))
            WITH ORDINALITY AS d(topic, event_id, user_id, error, payload, n)
        ORDER BY d.topic, d.event_id, d.n
    ) fresh
    WHERE NOT EXISTS (
        SELECT FROM goose.dead_letters known WHERE known.topic = fresh.topic AND known.event_id = fresh.event_id);
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN jsonb_build_object('added', added);
END
$$;
COMMENT ON FUNCTION goose.add_dead_letters(jsonb) IS 'Keeps {dead_letters}, each delivery once.';

CREATE FUNCTION goose.list_dead_letters(request jsonb) RETURNS text LANGUAGE sql STABLE
SET timezone = 'UTC' AS $$
    WITH page AS (
        SELECT position, topic, event_id, error, encode(payload, 'base64') AS payload, log_time
        FROM goose.dead_letters WHERE position > (request ->> 'after')::bigint
        ORDER BY position LIMIT (request ->> 'limit')::int + 1
    ), sized AS (
        SELECT *, row_number() OVER w AS n, sum(length(payload) + 512) OVER w AS size
        FROM page WINDOW w AS (ORDER BY position)
    ), chosen AS (
        SELECT * FROM sized
        WHERE n <= (request ->> 'limit')::int AND (n = 1 OR size <= (request ->> 'max_bytes')::bigint)
    )
    SELECT jsonb_build_object(
        'items', coalesce((SELECT jsonb_agg(to_jsonb(c) - 'n' - 'size' ORDER BY position) FROM chosen c), '[]'),
        'more', (SELECT count(*) FROM page) > (SELECT count(*) FROM chosen))
$$;
COMMENT ON FUNCTION goose.list_dead_letters(jsonb) IS 'Gives dead letters {after, limit, max_bytes}.';

CREATE FUNCTION goose.text_array(list jsonb) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ARRAY(SELECT jsonb_array_elements_text(list))
$$;
COMMENT ON FUNCTION goose.text_array(jsonb) IS 'A list of strings, known when a query is planned, so that its rarity counts.';

CREATE FUNCTION goose.matching_events(request jsonb) RETURNS SETOF goose.events LANGUAGE sql STABLE AS $$
    SELECT e.* FROM goose.events e
    WHERE (request ->> 'user_id' IS NULL OR e.user_id = request ->> 'user_id')
      AND (request ->> 'only_user_id' IS NULL OR e.user_id = request ->> 'only_user_id')
      AND (request ->> 'entity_type' IS NULL OR e.entity_type = request ->> 'entity_type')
      AND (request ->> 'entity_id' IS NULL OR e.entity_id = request ->> 'entity_id')
      AND (request -> 'event_types' IS NULL
           OR e.event_type = ANY (goose.text_array(request -> 'event_types')))
      AND (request ->> 'start_time' IS NULL OR e."timestamp" >= (request ->> 'start_time')::timestamptz)
      AND (request ->> 'end_time' IS NULL OR e."timestamp" < (request ->> 'end_time')::timestamptz)
      AND (request ->> 'after' IS NULL OR e.position > (request ->> 'after')::bigint)
      AND (request ->> 'before' IS NULL OR e.position < (request ->> 'before')::bigint)
$$;
COMMENT ON FUNCTION goose.matching_events(jsonb) IS
    'Events by {user_id, only_user_id, entity_type, entity_id, event_types, start_time, end_time, after, before}.';

-- PL/pgSQL with plans made for the values at hand: a plan for any filter would use no index.
CREATE FUNCTION goose.list_events(request jsonb) RETURNS text LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_custom_plan SET timezone = 'UTC' AS $$
DECLARE
    wanted integer := (request ->> 'limit')::integer;
    max_bytes bigint := (request ->> 'max_bytes')::bigint;
    answer jsonb;
BEGIN
    IF (request ->> 'descending')::boolean THEN
        SELECT jsonb_build_object('found', count(*), 'items', coalesce(
            jsonb_agg(to_jsonb(s) - 'n' - 'size' ORDER BY position DESC) FILTER (WHERE n <= wanted
                AND (n = 1 OR size <= max_bytes)), '[]'))
        INTO answer
        FROM (
            SELECT p.*, row_number() OVER w AS n, sum(octet_length(data::text) + octet_length(metadata::text) + 512)
                OVER w AS size
            FROM (SELECT * FROM goose.matching_events(request) ORDER BY position DESC LIMIT wanted + 1) p
            WINDOW w AS (ORDER BY position DESC)
        ) s;
    ELSE
        SELECT jsonb_build_object('found', count(*), 'items', coalesce(
            jsonb_agg(to_jsonb(s) - 'n' - 'size' ORDER BY position) FILTER (WHERE n <= wanted
                AND (n = 1 OR size <= max_bytes)), '[]'))
        INTO answer
        FROM (
            SELECT p.*, row_number() OVER w AS n, sum(octet_length(data::text) + octet_length(metadata::text) + 512)
                OVER w AS size
            FROM (SELECT * FROM goose.matching_events(request) ORDER BY position LIMIT wanted + 1) p
            WINDOW w AS (ORDER BY position)
        ) s;
    END IF;
    RETURN answer || jsonb_build_object(
        'more', (answer ->> 'found')::bigint > jsonb_array_length(answer -> 'items'),
        'head', (SELECT coalesce(max(position), 0) FROM goose.events));
END
$$;
COMMENT ON FUNCTION goose.list_events(jsonb) IS
    'Gives the events of a filter {limit, max_bytes, descending, and those of matching_events}, and the log''s head.';

CREATE FUNCTION goose.count_events(request jsonb) RETURNS text LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_custom_plan SET timezone = 'UTC' AS $$
DECLARE
    counting text := request ->> 'by';
    answer jsonb;
BEGIN
    SELECT jsonb_build_object('total', coalesce(sum(c.count), 0), 'items', coalesce(
        jsonb_agg(to_jsonb(c) - 'n' ORDER BY c.n) FILTER (WHERE c.n <= (request ->> 'limit')::bigint), '[]'))
    INTO answer
    FROM (
        SELECT g.*, row_number() OVER (ORDER BY key COLLATE "C", hour) AS n
        FROM (
            SELECT CASE counting WHEN 'entity_type' THEN entity_type ELSE event_type END AS key,
                   CASE counting WHEN 'hour' THEN date_trunc('hour', "timestamp", 'UTC') END AS hour,
                   count(*) AS count
            FROM goose.matching_events(request) GROUP BY 1, 2
        ) g
    ) c;
    RETURN answer;
END
$$;
COMMENT ON FUNCTION goose.count_events(jsonb) IS
    'Counts the events of a filter {by: event_type, entity_type or hour; limit; and those of matching_events}.';

CREATE FUNCTION goose.log_head() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('head', (SELECT coalesce(max(position), 0) FROM goose.events))
$$;
COMMENT ON FUNCTION goose.log_head() IS 'Gives the newest position.';

-- ------------------------------------------------------------------------------------------------- the read model

CREATE FUNCTION goose.escape_html(content text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT replace(replace(replace(replace(replace(content, '&', '&amp;'), '<', '&lt;'), '>', '&gt;'),
                           '"', '&quot;'), '''', '&#39;')
$$;
COMMENT ON FUNCTION goose.escape_html(text) IS 'Text that shows as itself in HTML.';

CREATE FUNCTION goose.search_messages(request jsonb) RETURNS text LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_custom_plan SET timezone = 'UTC' AS $$
DECLARE
    owner text := request ->> 'user_id';
    wanted integer := (request ->> 'limit')::integer;
    asked tsquery := websearch_to_tsquery('goose.words', request ->> 'query');
    owned tsquery := asked && quote_literal(goose.user_word(owner))::tsquery;
    after_rank double precision := (request -> 'after' ->> 'rank')::double precision;
    after_conversation text := request -> 'after' ->> 'conversation_id';
    after_sequence bigint := (request -> 'after' ->> 'sequence')::bigint;
    answer jsonb;
BEGIN
    IF numnode(asked) = 0 THEN
        RETURN jsonb_build_object('items', '[]'::jsonb, 'more', false);
    END IF;
    SELECT jsonb_build_object(
        'more', count(*) > wanted,
        'items', coalesce(jsonb_agg(jsonb_build_object(
            'conversation_id', conversation_id, 'sequence', sequence, 'message_id', message_id, 'rank', rank,
            'create_time', create_time,
            -- Escaped first: what is marked afterwards are the only tags. Endless words are cut, they fill a screen.
            'snippet', ts_headline('goose.words',
                goose.escape_html(regexp_replace(content, '(\S{80})\S+', '\1…', 'g')), asked,
                'StartSel=<b>, StopSel=</b>, MaxFragments=2, MaxWords=30, MinWords=10, ShortWord=0, FragmentDelimiter=" … "')
            ) ORDER BY n) FILTER (WHERE n <= wanted), '[]'))
    INTO answer
    FROM (
        SELECT r.*, row_number() OVER (ORDER BY rank DESC, conversation_id, sequence DESC) AS n
        FROM (
            SELECT m.conversation_id, m.sequence, m.message_id, m.create_time, m.content,
                   ts_rank(m.words, asked, 1)::double precision AS rank
            FROM goose.message_search m
            WHERE m.words @@ owned AND m.user_id = owner
              AND (request ->> 'conversation_id' IS NULL OR m.conversation_id = request ->> 'conversation_id')
        ) r
        WHERE after_rank IS NULL OR rank < after_rank
           OR (rank = after_rank AND (conversation_id > after_conversation
               OR (conversation_id = after_conversation AND sequence < after_sequence)))
        ORDER BY rank DESC, conversation_id, sequence DESC
        LIMIT wanted + 1
    ) found;
    RETURN answer;
END
$$;
COMMENT ON FUNCTION goose.search_messages(jsonb) IS
    'Finds a user''s messages {user_id, query, conversation_id, after, limit}, best first.';

CREATE FUNCTION goose.query_conversations(request jsonb) RETURNS text LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_custom_plan SET timezone = 'UTC' AS $$
DECLARE
    wanted integer := (request ->> 'limit')::integer;
    after_time timestamptz := (request -> 'after' ->> 'time')::timestamptz;
    after_id text := request -> 'after' ->> 'id';
    chosen goose.conversations[];
BEGIN
    IF (request ->> 'by_update_time')::boolean THEN
        chosen := ARRAY(
            SELECT c FROM goose.conversations c
            WHERE c.user_id = request ->> 'user_id' AND c.deleted_at IS NULL AND c.created_at IS NOT NULL
              AND (request -> 'metadata' IS NULL OR c.metadata @> (request -> 'metadata'))
              AND (after_id IS NULL OR (c.updated_at, c.id) < (after_time, after_id))
            ORDER BY c.updated_at DESC, c.id DESC LIMIT wanted + 1);
    ELSE
        chosen := ARRAY(
            SELECT c FROM goose.conversations c
            WHERE c.user_id = request ->> 'user_id' AND c.deleted_at IS NULL AND c.created_at IS NOT NULL
              AND (request -> 'metadata' IS NULL OR c.metadata @> (request -> 'metadata'))
              AND (after_id IS NULL OR (c.created_at, c.id) < (after_time, after_id))
            ORDER BY c.created_at DESC, c.id DESC LIMIT wanted + 1);
    END IF;
    RETURN jsonb_build_object('more', cardinality(chosen) > wanted,
                              'items', coalesce(to_jsonb(chosen[:wanted]), '[]'));
END
$$;
COMMENT ON FUNCTION goose.query_conversations(jsonb) IS
    'Gives a user''s conversations {user_id, metadata, by_update_time, after, limit}, newest first.';

CREATE FUNCTION goose.apply_snapshots(request jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    again boolean := coalesce((request ->> 'again')::boolean, false);
    delay double precision := coalesce((request ->> 'index_delay_seconds')::double precision, 0);
    lives jsonb;
    applied bigint;
BEGIN
    PERFORM goose.lock_log();
    SELECT jsonb_agg(s || jsonb_build_object('again', again)) INTO lives
    FROM jsonb_array_elements(request -> 'snapshots') s
    WHERE NOT EXISTS (SELECT FROM goose.erased_users x WHERE x.user_id = s ->> 'user_id');
    IF lives IS NULL THEN
        RETURN jsonb_build_object('applied', 0);
    END IF;
    PERFORM goose.begin_lives(lives);
    UPDATE goose.conversations c
    SET deleted_at = CASE WHEN s.deleted THEN coalesce(c.deleted_at, clock_timestamp()) ELSE c.deleted_at END,
        title = CASE WHEN s.revision >= c.described_revision THEN coalesce(s.title, '') ELSE c.title END,
        metadata = CASE WHEN s.revision >= c.described_revision THEN coalesce(s.metadata, '{}') ELSE c.metadata END,
        described_revision = greatest(c.described_revision, s.revision),
        summary_sequence = CASE WHEN s.revision >= c.counted_revision
                                THEN coalesce(s.summary_sequence, 0) ELSE c.summary_sequence END,
        message_count = CASE WHEN s.revision >= c.counted_revision THEN coalesce(s.message_count, 0)
            + CASE WHEN again THEN 0 ELSE goose.messages_after(c.user_id, c.id, c.incarnation, s.revision) END
            ELSE c.message_count END,
        counted_revision = greatest(c.counted_revision, s.revision),
        created_at = coalesce(s.created_at, c.created_at),
        updated_at = CASE WHEN s.revision >= c.revision THEN coalesce(s.updated_at, c.updated_at)
                          ELSE c.updated_at END,
        revision = greatest(c.revision, s.revision),
        last_sequence = greatest(c.last_sequence, s.last_sequence),
        first_sequence = greatest(c.first_sequence, s.first_sequence),
        fence = greatest(c.fence, s.fence),
        max_messages = coalesce(s.max_messages, 0),
        ttl_seconds = s.ttl_seconds,
        forked_from_id = coalesce(s.forked_from_id, c.forked_from_id),
        forked_from_sequence = coalesce(s.forked_from_sequence, c.forked_from_sequence),
        snapshot_revision = s.revision
    FROM jsonb_to_recordset(lives) AS s(
        user_id text, id text, incarnation bigint, revision bigint, deleted boolean, title text, metadata jsonb,
        created_at timestamptz, updated_at timestamptz, last_sequence bigint, message_count bigint,
        first_sequence bigint, summary_sequence bigint, fence bigint, max_messages bigint,
        ttl_seconds double precision, forked_from_id text, forked_from_sequence bigint)
    WHERE c.user_id = s.user_id AND c.id = s.id AND c.incarnation = s.incarnation
      AND ((s.deleted AND c.deleted_at IS NULL)
           OR (c.deleted_at IS NULL AND NOT s.deleted AND s.revision >= c.snapshot_revision));
    GET DIAGNOSTICS applied = ROW_COUNT;
    IF again THEN
        -- The rows were emptied; what happened after the owner was read is in the log.
        PERFORM goose.fold_conversations(ARRAY(
            SELECT e.position
            FROM jsonb_to_recordset(lives) AS s(user_id text, id text, incarnation bigint, revision bigint)
            JOIN goose.events e ON e.entity_id = s.id AND e.user_id || '' = s.user_id AND e.entity_type = 'conversation'
                AND e.incarnation >= s.incarnation AND (e.incarnation > s.incarnation OR e.revision > s.revision)
        ), delay);
    END IF;
    PERFORM goose.settle_conversations(lives, delay);
    RETURN jsonb_build_object('applied', applied);
END
$$;
COMMENT ON FUNCTION goose.apply_snapshots(jsonb) IS
    'Takes over what an owner says {snapshots, again, index_delay_seconds}; with `again` the rows are made anew.';

CREATE FUNCTION goose.prune_conversations(request jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    pruned bigint;
BEGIN
    PERFORM goose.lock_log();
    DELETE FROM goose.conversations c
    WHERE c.refreshed_at < (request ->> 'before')::timestamptz
      AND (request ->> 'user_id' IS NULL OR c.user_id = request ->> 'user_id');
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN jsonb_build_object('pruned', pruned);
END
$$;
COMMENT ON FUNCTION goose.prune_conversations(jsonb) IS
    'At the end of a rebuild: takes away rows {user_id, before} that the owner did not name and no event touched.';

CREATE FUNCTION goose.now() RETURNS text LANGUAGE sql SET timezone = 'UTC' AS $$
    SELECT jsonb_build_object('now', clock_timestamp())
$$;
COMMENT ON FUNCTION goose.now() IS 'Gives the database''s clock, which refreshed_at follows.';

-- --------------------------------------------------------------------------------------------------- the indexer

CREATE FUNCTION goose.claim_index_work(request jsonb) RETURNS text LANGUAGE sql AS $$
    WITH due AS (
        SELECT user_id, conversation_id FROM goose.index_work
        WHERE due_time <= clock_timestamp()
          AND (request ->> 'user_id' IS NULL OR user_id = request ->> 'user_id')
        ORDER BY due_time LIMIT (request ->> 'limit')::integer
        FOR UPDATE SKIP LOCKED
    ), claimed AS (
        UPDATE goose.index_work w
        SET due_time = clock_timestamp() + make_interval(secs => (request ->> 'lease_seconds')::double precision)
        FROM due d WHERE w.user_id = d.user_id AND w.conversation_id = d.conversation_id
        RETURNING w.user_id, w.conversation_id, w.indexed_sequence, w.attempts
    )
    SELECT jsonb_build_object('items', coalesce(jsonb_agg(jsonb_build_object(
        'user_id', w.user_id, 'conversation_id', w.conversation_id, 'incarnation', c.incarnation,
        'indexed_sequence', w.indexed_sequence, 'last_sequence', c.last_sequence, 'attempts', w.attempts,
        'wants_snapshot', goose.wants_snapshot(c))), '[]'))
    FROM claimed w JOIN goose.conversations c ON c.user_id = w.user_id AND c.id = w.conversation_id
$$;
COMMENT ON FUNCTION goose.claim_index_work(jsonb) IS
    'Hands out conversations {limit, lease_seconds, user_id} whose messages are to be fetched, each to one process.';

CREATE FUNCTION goose.index_messages(request jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    owner text := request ->> 'user_id';
    conversation text := request ->> 'conversation_id';
    life goose.conversations;
    written bigint;
BEGIN
    -- Words first, lock second: cutting text into words takes long, and the log must not wait for it.
    INSERT INTO goose.message_search AS m
        (user_id, conversation_id, sequence, message_id, role, create_time, content, words)
    SELECT owner, conversation, sequence, message_id, role, create_time, content, goose.message_words(owner, content)
    FROM jsonb_to_recordset(request -> 'messages') AS x(
        sequence bigint, message_id text, role text, create_time timestamptz, content text)
    ON CONFLICT (user_id, conversation_id, sequence) DO UPDATE
    SET message_id = excluded.message_id, role = excluded.role, create_time = excluded.create_time,
        content = excluded.content, words = excluded.words
    WHERE (m.message_id, m.role, m.content) IS DISTINCT FROM (excluded.message_id, excluded.role, excluded.content);
    GET DIAGNOSTICS written = ROW_COUNT;
    SELECT * INTO life FROM goose.conversations c
    WHERE c.user_id = owner AND c.id = conversation FOR NO KEY UPDATE;
    IF life.incarnation IS DISTINCT FROM (request ->> 'incarnation')::bigint THEN
        RAISE EXCEPTION 'the conversation has begun another life' USING ERRCODE = 'serialization_failure';
    END IF;
    -- What was taken away while it was fetched must not come back.
    DELETE FROM goose.message_search m
    WHERE m.user_id = owner AND m.conversation_id = conversation
      AND (life.deleted_at IS NOT NULL OR m.sequence < life.first_sequence OR m.sequence <@ life.truncated)
      AND m.sequence IN (SELECT goose.number(x -> 'sequence') FROM jsonb_array_elements(request -> 'messages') x);
    INSERT INTO goose.index_work AS w (user_id, conversation_id, indexed_sequence)
    VALUES (owner, conversation, (request ->> 'indexed_sequence')::bigint)
    ON CONFLICT (user_id, conversation_id) DO UPDATE
    SET indexed_sequence = greatest(w.indexed_sequence, excluded.indexed_sequence);
    RETURN jsonb_build_object('written', written);
END
$$;
COMMENT ON FUNCTION goose.index_messages(jsonb) IS
    'Writes fetched text {user_id, conversation_id, incarnation, messages, indexed_sequence}.';

CREATE FUNCTION goose.finish_index_work(request jsonb) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    left_over boolean;
BEGIN
    UPDATE goose.index_work w
    SET attempts = CASE WHEN request ->> 'error' IS NULL THEN 0 ELSE w.attempts + 1 END,
        error = coalesce(left(request ->> 'error', 500), ''),
        due_time = CASE
            WHEN c.deleted_at IS NOT NULL THEN NULL
            WHEN request ->> 'error' IS NOT NULL
                THEN clock_timestamp() + make_interval(secs => (request ->> 'retry_seconds')::double precision)
            WHEN c.last_sequence > w.indexed_sequence OR goose.wants_snapshot(c) THEN clock_timestamp() END
    FROM goose.conversations c
    WHERE w.user_id = request ->> 'user_id' AND w.conversation_id = request ->> 'conversation_id'
      AND c.user_id = w.user_id AND c.id = w.conversation_id
    RETURNING w.due_time IS NOT NULL INTO left_over;
    RETURN jsonb_build_object('left', coalesce(left_over, false));
END
$$;
COMMENT ON FUNCTION goose.finish_index_work(jsonb) IS
    'Gives back a conversation {user_id, conversation_id, error, retry_seconds}; what came meanwhile stays due.';

-- --------------------------------------------------------------------------------------------------- reconciliation

CREATE FUNCTION goose.find_gaps(request jsonb) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT jsonb_build_object('items', coalesce(jsonb_agg(jsonb_build_object(
        'user_id', s.user_id, 'id', s.id, 'incarnation', s.incarnation,
        'first', lower(g.gap), 'last', upper(g.gap) - 1) ORDER BY s.user_id, s.id, lower(g.gap)), '[]'))
    FROM jsonb_to_recordset(request -> 'entities') AS s(user_id text, id text, incarnation bigint, revision bigint)
    LEFT JOIN goose.revisions r ON r.user_id = s.user_id AND r.entity_id = s.id AND r.incarnation = s.incarnation
        AND r.entity_type = request ->> 'entity_type'
    CROSS JOIN LATERAL unnest(
        int8multirange(int8range(1, s.revision, '[]')) - coalesce(r.seen, '{}') - coalesce(r.lost, '{}')) AS g(gap)
    WHERE s.revision > 0
$$;
COMMENT ON FUNCTION goose.find_gaps(jsonb) IS
    'Gives the revisions that the owner has and the log has not {entity_type, entities}.';

CREATE FUNCTION goose.mark_lost(request jsonb) RETURNS text LANGUAGE sql AS $$
    WITH marked AS (
        INSERT INTO goose.revisions AS r (user_id, entity_type, entity_id, incarnation, lost)
        SELECT s.user_id, request ->> 'entity_type', s.id, s.incarnation, range_agg(int8range(s.first, s.last, '[]'))
        FROM jsonb_to_recordset(request -> 'gaps') AS s(
            user_id text, id text, incarnation bigint, first bigint, last bigint)
        GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        ON CONFLICT (user_id, entity_id, entity_type, incarnation)
        DO UPDATE SET lost = r.lost + (excluded.lost - r.seen)
        RETURNING 1
    )
    SELECT jsonb_build_object('marked', (SELECT count(*) FROM marked))
$$;
COMMENT ON FUNCTION goose.mark_lost(jsonb) IS
    'Notes revisions {entity_type, gaps} that the owner can''t publish again, so that it is not asked for ever.';

CREATE FUNCTION goose.take_lease(request jsonb) RETURNS text LANGUAGE sql AS $$
    WITH taken AS (
        INSERT INTO goose.leases AS l (name, holder, expire_time)
        VALUES (request ->> 'name', request ->> 'holder',
                clock_timestamp() + make_interval(secs => (request ->> 'seconds')::double precision))
        ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expire_time = excluded.expire_time
        WHERE l.holder = excluded.holder OR l.expire_time <= clock_timestamp()
        RETURNING 1
    )
    SELECT jsonb_build_object('taken', EXISTS (SELECT FROM taken))
$$;
COMMENT ON FUNCTION goose.take_lease(jsonb) IS
    'Takes or keeps a piece of work {name, holder, seconds} that one process at a time is enough for.';

-- --------------------------------------------------------------------------------------------------------- erasure

CREATE FUNCTION goose.open_erasures(request jsonb) RETURNS text LANGUAGE sql STABLE SET timezone = 'UTC' AS $$
    SELECT jsonb_build_object('items', coalesce(jsonb_agg(to_jsonb(x) ORDER BY x.log_time), '[]'))
    FROM (SELECT * FROM goose.erased_users WHERE report_time IS NULL
          ORDER BY log_time LIMIT (request ->> 'limit')::integer) x
$$;
COMMENT ON FUNCTION goose.open_erasures(jsonb) IS 'Gives erasures {limit} that are not yet done and told.';

CREATE FUNCTION goose.erase_user(request jsonb) RETURNS text LANGUAGE plpgsql SET timezone = 'UTC' AS $$
DECLARE
    erased text := request ->> 'user_id';
    room bigint := (request ->> 'limit')::bigint;
    step text;
    changed bigint;
    done bigint := 0;
    answer goose.erased_users;
BEGIN
    PERFORM goose.lock_log();
    FOREACH step IN ARRAY ARRAY['message_search', 'agent_sessions', 'conversations', 'recipe_executions', 'recipes',
                                'extensions'] LOOP
        EXECUTE format($sql$
            DELETE FROM goose.%1$I WHERE ctid = ANY (ARRAY(SELECT ctid FROM goose.%1$I WHERE user_id = $1 LIMIT $2))
        $sql$, step) USING erased, room - done;
        GET DIAGNOSTICS changed = ROW_COUNT;
        done := done + changed;
        IF done >= room THEN
            EXIT;
        END IF;
    END LOOP;
    UPDATE goose.events SET data = '{}', metadata = '{}'
    WHERE position = ANY (ARRAY(
        SELECT position FROM goose.events
        WHERE user_id = erased AND topic NOT LIKE 'goose.user.%' AND (data <> '{}' OR metadata <> '{}')
        LIMIT room - done));
    GET DIAGNOSTICS changed = ROW_COUNT;
    done := done + changed;
    UPDATE goose.dead_letters SET payload = ''
    WHERE position = ANY (ARRAY(
        SELECT position FROM goose.dead_letters WHERE user_id = erased AND payload <> '' LIMIT room - done));
    GET DIAGNOSTICS changed = ROW_COUNT;
    done := done + changed;
    UPDATE goose.erased_users x
    SET items = x.items + done, complete_time = CASE WHEN done < room THEN clock_timestamp() END
    WHERE x.user_id = erased AND x.erasure_id = request ->> 'erasure_id' AND x.complete_time IS NULL;
    SELECT * INTO answer FROM goose.erased_users x
    WHERE x.user_id = erased AND x.erasure_id = request ->> 'erasure_id';
    RETURN to_jsonb(answer);
END
$$;
COMMENT ON FUNCTION goose.erase_user(jsonb) IS
    'Takes away up to `limit` rows and payloads of a user {user_id, erasure_id, limit}; complete when fewer were left.';

CREATE FUNCTION goose.report_erasure(request jsonb) RETURNS text LANGUAGE sql AS $$
    WITH told AS (
        UPDATE goose.erased_users SET report_time = clock_timestamp()
        WHERE user_id = request ->> 'user_id' AND erasure_id = request ->> 'erasure_id' AND report_time IS NULL
        RETURNING 1
    )
    SELECT jsonb_build_object('told', (SELECT count(*) FROM told))
$$;
COMMENT ON FUNCTION goose.report_erasure(jsonb) IS 'Notes that an erasure {user_id, erasure_id} was told of.';

DO $$
DECLARE
    writer regprocedure;
BEGIN
    FOR writer IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = 'goose'::regnamespace AND provolatile = 'v' AND prorettype <> 'trigger'::regtype
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET enable_seqscan = off', writer);
    END LOOP;
END
$$;
