CREATE FUNCTION goose.execution_status(event_type text, data jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN told LIKE 'EXECUTION_STATUS_%' THEN lower(substring(told FROM 18))
        -- Of publishers that tell no status: the event's last word, where it is about the execution as a whole.
        WHEN event_type LIKE '%.step.%' THEN 'running'
        ELSE substring(event_type FROM '[^.]*$')
    END
    FROM (SELECT coalesce(data ->> 'executionStatus', data ->> 'status', '') AS told) d
$$;
COMMENT ON FUNCTION goose.execution_status(text, jsonb) IS 'How an execution stands after an event.';

-- As in 0002, but an execution stands as its events say and not as their last word does: a step that is completed
-- completes no execution.
CREATE OR REPLACE FUNCTION goose.entities_told(low bigint, high bigint)
RETURNS TABLE (target text, user_id text, id text, parent_id text, name text, status text, data jsonb, at timestamptz,
               version text)
LANGUAGE sql STABLE AS $$
    SELECT t.target, e.user_id, t.id, nullif(t.parent_id, ''),
           coalesce(e.data ->> 'name', e.data ->> 'title', ''),
           CASE WHEN t.target = 'recipe_executions' THEN goose.execution_status(e.event_type, e.data)
                ELSE substring(e.event_type FROM '[^.]*$') END,
           e.data, e."timestamp",
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
                          'goose.recipe.cancelled', 'goose.recipe.paused', 'goose.recipe.resumed',
                          'goose.recipe.step.started', 'goose.recipe.step.completed', 'goose.recipe.step.waiting')
        UNION ALL
        SELECT 'extensions', e.entity_id, NULL WHERE e.topic LIKE 'goose.extension.%'
        UNION ALL
        SELECT 'agent_sessions', e.entity_id, coalesce(e.data ->> 'conversationId', e.data ->> 'conversation_id')
        WHERE e.topic LIKE 'goose.agent.session.%'
    ) t
    WHERE e.position BETWEEN low AND high AND t.id <> ''
      AND (e.user_id <> '' OR (t.target = 'extensions' AND e.data ->> 'shared' = 'true'))
      AND NOT EXISTS (SELECT FROM goose.erased_users x WHERE x.user_id = e.user_id)
$$;
