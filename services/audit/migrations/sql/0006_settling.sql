-- Taking away what is deleted, truncated or cut read every message of the conversations touched, so that an append to one of
-- 60,000 messages took 17 ms. By its bounds each range is found in the primary key, and mostly there is none.
CREATE OR REPLACE FUNCTION goose.settle_conversations(touched jsonb, delay_seconds double precision) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    gone record;
BEGIN
    -- A deleted one keeps nothing but that it was, whatever arrives after.
    UPDATE goose.conversations c
    SET title = '', metadata = '{}', message_count = 0, summary_sequence = 0, forked_from_id = NULL,
        forked_from_sequence = NULL, max_messages = 0, ttl_seconds = NULL, fence = 0, first_sequence = 1,
        truncated = '{}', snapshot_revision = 0
    FROM jsonb_to_recordset(touched) AS t(user_id text, id text)
    WHERE c.user_id = t.user_id AND c.id = t.id AND c.deleted_at IS NOT NULL;
    FOR gone IN
        SELECT c.user_id, c.id, r.low, r.high
        FROM jsonb_to_recordset(touched) AS t(user_id text, id text)
        JOIN goose.conversations c ON c.user_id = t.user_id AND c.id = t.id
        CROSS JOIN LATERAL (
            SELECT 1::bigint AS low, 9223372036854775807 AS high WHERE c.deleted_at IS NOT NULL
            UNION ALL
            SELECT 1, c.first_sequence WHERE c.first_sequence > 1
            UNION ALL
            SELECT lower(one), upper(one) FROM unnest(c.truncated) AS one
        ) r
    LOOP
        DELETE FROM goose.message_search m
        WHERE m.user_id = gone.user_id AND m.conversation_id = gone.id
          AND m.sequence >= gone.low AND m.sequence < gone.high;
    END LOOP;
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
