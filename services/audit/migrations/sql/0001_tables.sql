-- The log, the read model made from it, and what keeps the two honest. Text is compared by bytes (collation "C" of the
-- keys): ids are no language.

-- Words of every language, English ones by their stem, none left out: `english` would drop "to be or not to be", and
-- `simple` would not find "running" for "run". One configuration serves the index, the query and the snippet.
CREATE TEXT SEARCH DICTIONARY goose.words (TEMPLATE = pg_catalog.snowball, Language = english);
COMMENT ON TEXT SEARCH DICTIONARY goose.words IS 'English stems without stop words.';
CREATE TEXT SEARCH CONFIGURATION goose.words (COPY = pg_catalog.english);
ALTER TEXT SEARCH CONFIGURATION goose.words
    ALTER MAPPING FOR asciiword, asciihword, hword_asciipart, word, hword, hword_part WITH goose.words;
COMMENT ON TEXT SEARCH CONFIGURATION goose.words IS 'Words of messages: English by stem, all others as they are.';

-- ---------------------------------------------------------------------------------------------------------- the log

CREATE TABLE goose.events (
    position bigint PRIMARY KEY CHECK (position > 0),
    event_id text COLLATE "C" NOT NULL,
    topic text NOT NULL,
    event_type text NOT NULL,
    entity_type text NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    revision bigint NOT NULL,
    incarnation bigint NOT NULL,
    part integer NOT NULL,
    parts integer NOT NULL,
    "timestamp" timestamptz NOT NULL,
    log_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    data jsonb NOT NULL,
    metadata jsonb NOT NULL,
    -- An event id is its publisher's word. With the user beside it nobody can take an id before its owner uses it.
    CONSTRAINT events_event_id_key UNIQUE (event_id, user_id)
);
COMMENT ON TABLE goose.events IS 'The log: everything that happened, once. Truth of the audit service; never rebuilt.';
COMMENT ON COLUMN goose.events.position IS 'Consecutive from 1, in the order of logging.';
COMMENT ON COLUMN goose.events.event_id IS 'The publisher''s id of the event, else the CloudEvent''s.';
COMMENT ON COLUMN goose.events.topic IS 'The topic that it came by.';
COMMENT ON COLUMN goose.events.event_type IS 'What happened.';
COMMENT ON COLUMN goose.events.entity_type IS 'To what kind of thing; empty if the event names none.';
COMMENT ON COLUMN goose.events.entity_id IS 'To which one; unique per user.';
COMMENT ON COLUMN goose.events.user_id IS 'Whose it is; empty if the event names nobody.';
COMMENT ON COLUMN goose.events.revision IS 'The entity''s revision after the change; 0: it keeps none.';
COMMENT ON COLUMN goose.events.incarnation IS 'Which life of the id.';
COMMENT ON COLUMN goose.events.part IS 'Of several events that one revision made, which this is; 0: the only one.';
COMMENT ON COLUMN goose.events.parts IS 'How many events the revision made; 0: one.';
COMMENT ON COLUMN goose.events."timestamp" IS 'When it happened, by its owner''s clock.';
COMMENT ON COLUMN goose.events.log_time IS 'When it was logged.';
COMMENT ON COLUMN goose.events.data IS 'The payload; empty once its user is erased.';
COMMENT ON COLUMN goose.events.metadata IS 'What the publisher added; empty once its user is erased.';
COMMENT ON INDEX goose.events_pkey IS 'Reading on from a position.';
COMMENT ON INDEX goose.events_event_id_key IS 'Each event once.';

CREATE INDEX idx_events_user ON goose.events (user_id, position);
COMMENT ON INDEX goose.idx_events_user IS 'A user''s own events.';
CREATE INDEX idx_events_entity ON goose.events (entity_id, revision, incarnation, entity_type, user_id);
COMMENT ON INDEX goose.idx_events_entity IS 'What happened to one thing, by revision.';
CREATE INDEX idx_events_type ON goose.events (event_type, position);
COMMENT ON INDEX goose.idx_events_type IS 'Events of a type.';
CREATE INDEX idx_events_timestamp ON goose.events ("timestamp");
COMMENT ON INDEX goose.idx_events_timestamp IS 'Events of a span of time.';

CREATE TABLE goose.dead_letters (
    position bigint PRIMARY KEY CHECK (position > 0),
    topic text NOT NULL,
    event_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    error text NOT NULL,
    payload bytea NOT NULL,
    log_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT dead_letters_event_id_key UNIQUE (topic, event_id)
);
COMMENT ON TABLE goose.dead_letters IS 'What came by a topic and could not be read.';
COMMENT ON COLUMN goose.dead_letters.position IS 'Consecutive from 1, in the order of logging.';
COMMENT ON COLUMN goose.dead_letters.topic IS 'The topic that it came by.';
COMMENT ON COLUMN goose.dead_letters.event_id IS 'The CloudEvent''s id.';
COMMENT ON COLUMN goose.dead_letters.user_id IS 'Whom it seems to be about; empty if that can''t be told.';
COMMENT ON COLUMN goose.dead_letters.error IS 'Why it could not be read.';
COMMENT ON COLUMN goose.dead_letters.payload IS 'As it came, its first 64 KiB; empty once its user is erased.';
COMMENT ON COLUMN goose.dead_letters.log_time IS 'When it was logged.';
COMMENT ON INDEX goose.dead_letters_pkey IS 'Reading on from a position.';
COMMENT ON INDEX goose.dead_letters_event_id_key IS 'Each delivery once.';

CREATE TABLE goose.revisions (
    user_id text COLLATE "C" NOT NULL,
    entity_type text NOT NULL,
    entity_id text COLLATE "C" NOT NULL,
    incarnation bigint NOT NULL,
    seen int8multirange NOT NULL DEFAULT '{}',
    lost int8multirange NOT NULL DEFAULT '{}',
    PRIMARY KEY (user_id, entity_id, entity_type, incarnation)
);
COMMENT ON TABLE goose.revisions IS 'Which revisions of each entity the log has; a gap is what a broker lost.';
COMMENT ON COLUMN goose.revisions.user_id IS 'Whose it is.';
COMMENT ON COLUMN goose.revisions.entity_type IS 'Kind of entity.';
COMMENT ON COLUMN goose.revisions.entity_id IS 'The entity.';
COMMENT ON COLUMN goose.revisions.incarnation IS 'Which life of the id.';
COMMENT ON COLUMN goose.revisions.seen IS 'Revisions of which all parts are logged.';
COMMENT ON COLUMN goose.revisions.lost IS 'Revisions that their owner can''t publish again.';
COMMENT ON INDEX goose.revisions_pkey IS 'One row a life.';

CREATE TABLE goose.erased_users (
    user_id text COLLATE "C" NOT NULL,
    erasure_id text COLLATE "C" NOT NULL,
    log_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    items bigint NOT NULL DEFAULT 0,
    complete_time timestamptz,
    report_time timestamptz,
    PRIMARY KEY (user_id, erasure_id)
);
COMMENT ON TABLE goose.erased_users IS 'Users whose payloads are taken away; what arrives later is logged without.';
COMMENT ON COLUMN goose.erased_users.user_id IS 'The user.';
COMMENT ON COLUMN goose.erased_users.erasure_id IS 'Which request.';
COMMENT ON COLUMN goose.erased_users.log_time IS 'When it was heard of.';
COMMENT ON COLUMN goose.erased_users.items IS 'Rows emptied or taken away so far.';
COMMENT ON COLUMN goose.erased_users.complete_time IS 'When nothing was left.';
COMMENT ON COLUMN goose.erased_users.report_time IS 'When that was told.';
COMMENT ON INDEX goose.erased_users_pkey IS 'One row a request.';
CREATE INDEX idx_erased_users_open ON goose.erased_users (log_time) WHERE report_time IS NULL;
COMMENT ON INDEX goose.idx_erased_users_open IS 'Erasures not yet done and told.';

CREATE TABLE goose.leases (
    name text PRIMARY KEY,
    holder text NOT NULL,
    expire_time timestamptz NOT NULL
);
COMMENT ON TABLE goose.leases IS 'Which process does a piece of work that one is enough for.';
COMMENT ON COLUMN goose.leases.name IS 'The work.';
COMMENT ON COLUMN goose.leases.holder IS 'The process.';
COMMENT ON COLUMN goose.leases.expire_time IS 'Until when.';
COMMENT ON INDEX goose.leases_pkey IS 'One row a piece of work.';

-- --------------------------------------------------------------------------------------------------- the read model

CREATE FUNCTION goose.update_timestamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.refreshed_at := clock_timestamp();
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION goose.update_timestamp() IS 'Notes when a row of the read model was last written.';

CREATE TABLE goose.conversations (
    user_id text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    incarnation bigint NOT NULL,
    revision bigint NOT NULL DEFAULT 0,
    title text NOT NULL DEFAULT '',
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz,
    updated_at timestamptz,
    deleted_at timestamptz,
    last_sequence bigint NOT NULL DEFAULT 0,
    message_count bigint NOT NULL DEFAULT 0,
    first_sequence bigint NOT NULL DEFAULT 1,
    summary_sequence bigint NOT NULL DEFAULT 0,
    fence bigint NOT NULL DEFAULT 0,
    max_messages bigint NOT NULL DEFAULT 0,
    ttl_seconds double precision,
    forked_from_id text,
    forked_from_sequence bigint,
    truncated int8multirange NOT NULL DEFAULT '{}',
    described_revision bigint NOT NULL DEFAULT 0,
    counted_revision bigint NOT NULL DEFAULT 0,
    snapshot_revision bigint NOT NULL DEFAULT 0,
    refreshed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, id)
);
COMMENT ON TABLE goose.conversations IS 'Conversations as the events and their owner tell of them. Can be made again.';
COMMENT ON COLUMN goose.conversations.user_id IS 'Whose it is.';
COMMENT ON COLUMN goose.conversations.id IS 'The conversation; unique per user.';
COMMENT ON COLUMN goose.conversations.incarnation IS 'Which life of the id.';
COMMENT ON COLUMN goose.conversations.revision IS 'The highest revision heard of; 0: known as a parent only.';
COMMENT ON COLUMN goose.conversations.title IS 'The title; empty once deleted.';
COMMENT ON COLUMN goose.conversations.metadata IS 'Strings by name; empty once deleted.';
COMMENT ON COLUMN goose.conversations.created_at IS 'When it was created; null: not yet heard of.';
COMMENT ON COLUMN goose.conversations.updated_at IS 'Of the highest revision, by the owner''s clock.';
COMMENT ON COLUMN goose.conversations.deleted_at IS 'When it was deleted; the row then keeps no content.';
COMMENT ON COLUMN goose.conversations.last_sequence IS 'The newest sequence given.';
COMMENT ON COLUMN goose.conversations.message_count IS 'Messages now; retention''s cuts show with the next snapshot.';
COMMENT ON COLUMN goose.conversations.first_sequence IS 'The lowest sequence that retention has left.';
COMMENT ON COLUMN goose.conversations.summary_sequence IS 'Where the newest summary is; 0: none.';
COMMENT ON COLUMN goose.conversations.fence IS 'The highest fence seen by the owner.';
COMMENT ON COLUMN goose.conversations.max_messages IS 'Retention: the newest so many; 0: all.';
COMMENT ON COLUMN goose.conversations.ttl_seconds IS 'Retention: how long unchanged; null: for ever.';
COMMENT ON COLUMN goose.conversations.forked_from_id IS 'The conversation it was forked from.';
COMMENT ON COLUMN goose.conversations.forked_from_sequence IS 'The last sequence that both have.';
COMMENT ON COLUMN goose.conversations.truncated IS 'Sequences that hold nothing any more.';
COMMENT ON COLUMN goose.conversations.described_revision IS 'The revision that title and metadata are of.';
COMMENT ON COLUMN goose.conversations.counted_revision IS 'The last revision that told message_count and summary_sequence.';
COMMENT ON COLUMN goose.conversations.snapshot_revision IS 'The last revision read from the owner.';
COMMENT ON COLUMN goose.conversations.refreshed_at IS 'When this row was written.';
COMMENT ON INDEX goose.conversations_pkey IS 'One row a conversation.';

CREATE INDEX idx_conversations_user ON goose.conversations (user_id, created_at DESC, id DESC);
COMMENT ON INDEX goose.idx_conversations_user IS 'A user''s conversations, newest created first.';
CREATE INDEX idx_conversations_updated ON goose.conversations (updated_at DESC);
COMMENT ON INDEX goose.idx_conversations_updated IS 'What changed last.';
CREATE INDEX idx_conversations_user_updated ON goose.conversations (user_id, updated_at DESC, id DESC);
COMMENT ON INDEX goose.idx_conversations_user_updated IS 'A user''s conversations, last changed first.';
CREATE INDEX idx_conversations_metadata ON goose.conversations USING gin (metadata jsonb_path_ops);
COMMENT ON INDEX goose.idx_conversations_metadata IS 'Conversations by their metadata.';
CREATE TRIGGER conversations_update_timestamp BEFORE UPDATE ON goose.conversations
    FOR EACH ROW EXECUTE FUNCTION goose.update_timestamp();
COMMENT ON TRIGGER conversations_update_timestamp ON goose.conversations IS 'Keeps refreshed_at.';

CREATE TABLE goose.message_search (
    user_id text COLLATE "C" NOT NULL,
    conversation_id text COLLATE "C" NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    message_id text NOT NULL,
    role text NOT NULL,
    create_time timestamptz,
    content text NOT NULL,
    words tsvector NOT NULL,
    PRIMARY KEY (user_id, conversation_id, sequence),
    CONSTRAINT message_search_conversation_fkey FOREIGN KEY (user_id, conversation_id)
        REFERENCES goose.conversations (user_id, id) ON DELETE CASCADE
);
COMMENT ON TABLE goose.message_search IS 'The text of messages, for search. Can be made again.';
COMMENT ON COLUMN goose.message_search.user_id IS 'Whose it is.';
COMMENT ON COLUMN goose.message_search.conversation_id IS 'Where it was said.';
COMMENT ON COLUMN goose.message_search.sequence IS 'Its sequence there.';
COMMENT ON COLUMN goose.message_search.message_id IS 'Its id there.';
COMMENT ON COLUMN goose.message_search.role IS 'Who spoke: user, assistant, system, tool, developer.';
COMMENT ON COLUMN goose.message_search.create_time IS 'When it was appended.';
COMMENT ON COLUMN goose.message_search.content IS 'Its text, at most 256 KiB.';
COMMENT ON COLUMN goose.message_search.words IS 'Its words, and one that stands for the user.';
COMMENT ON INDEX goose.message_search_pkey IS 'One row a message.';
COMMENT ON CONSTRAINT message_search_conversation_fkey ON goose.message_search IS 'Goes with its conversation.';
CREATE INDEX idx_message_search_words ON goose.message_search USING gin (words);
COMMENT ON INDEX goose.idx_message_search_words IS 'Messages by word and user at once.';

CREATE TABLE goose.index_work (
    user_id text COLLATE "C" NOT NULL,
    conversation_id text COLLATE "C" NOT NULL,
    indexed_sequence bigint NOT NULL DEFAULT 0,
    due_time timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    error text NOT NULL DEFAULT '',
    PRIMARY KEY (user_id, conversation_id),
    CONSTRAINT index_work_conversation_fkey FOREIGN KEY (user_id, conversation_id)
        REFERENCES goose.conversations (user_id, id) ON DELETE CASCADE
);
COMMENT ON TABLE goose.index_work IS 'How far message_search has come, and what is still to be fetched.';
COMMENT ON COLUMN goose.index_work.user_id IS 'Whose it is.';
COMMENT ON COLUMN goose.index_work.conversation_id IS 'The conversation.';
COMMENT ON COLUMN goose.index_work.indexed_sequence IS 'All up to this sequence has been fetched.';
COMMENT ON COLUMN goose.index_work.due_time IS 'When to look at it next; null: nothing to do.';
COMMENT ON COLUMN goose.index_work.attempts IS 'Failures in a row.';
COMMENT ON COLUMN goose.index_work.error IS 'The last failure.';
COMMENT ON INDEX goose.index_work_pkey IS 'One row a conversation.';
COMMENT ON CONSTRAINT index_work_conversation_fkey ON goose.index_work IS 'Goes with its conversation.';
CREATE INDEX idx_index_work_due ON goose.index_work (due_time) WHERE due_time IS NOT NULL;
COMMENT ON INDEX goose.idx_index_work_due IS 'What is to be done, oldest first.';

CREATE TABLE goose.recipes (
    user_id text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    name text NOT NULL DEFAULT '',
    status text NOT NULL DEFAULT '',
    data jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz,
    updated_at timestamptz,
    version text COLLATE "C" NOT NULL DEFAULT '',
    named_version text COLLATE "C" NOT NULL DEFAULT '',
    refreshed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, id)
);
CREATE TABLE goose.recipe_executions (
    LIKE goose.recipes INCLUDING DEFAULTS INCLUDING INDEXES,
    recipe_id text COLLATE "C",
    CONSTRAINT recipe_executions_recipe_fkey FOREIGN KEY (user_id, recipe_id)
        REFERENCES goose.recipes (user_id, id)
);
CREATE TABLE goose.extensions (LIKE goose.recipes INCLUDING DEFAULTS INCLUDING INDEXES);
CREATE TABLE goose.agent_sessions (
    LIKE goose.recipes INCLUDING DEFAULTS INCLUDING INDEXES,
    conversation_id text COLLATE "C",
    CONSTRAINT agent_sessions_conversation_fkey FOREIGN KEY (user_id, conversation_id)
        REFERENCES goose.conversations (user_id, id) ON DELETE SET NULL (conversation_id)
);
COMMENT ON TABLE goose.recipes IS 'Recipes as their events tell of them.';
COMMENT ON TABLE goose.recipe_executions IS 'Recipe executions as their events tell of them.';
COMMENT ON TABLE goose.extensions IS 'MCP extensions as their events tell of them.';
COMMENT ON TABLE goose.agent_sessions IS 'Agent sessions as their events tell of them.';
COMMENT ON COLUMN goose.recipe_executions.recipe_id IS 'The recipe that runs.';
COMMENT ON COLUMN goose.agent_sessions.conversation_id IS 'The conversation that it is held in.';
COMMENT ON CONSTRAINT recipe_executions_recipe_fkey ON goose.recipe_executions IS 'A recipe not yet heard of gets a placeholder.';
COMMENT ON CONSTRAINT agent_sessions_conversation_fkey ON goose.agent_sessions IS 'A conversation not yet heard of gets a placeholder.';
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['recipes', 'recipe_executions', 'extensions', 'agent_sessions'] LOOP
        EXECUTE format($sql$
            COMMENT ON COLUMN goose.%1$I.user_id IS 'Whose it is.';
            COMMENT ON COLUMN goose.%1$I.id IS 'Its id; unique per user.';
            COMMENT ON COLUMN goose.%1$I.name IS 'Its name or title, as last told.';
            COMMENT ON COLUMN goose.%1$I.status IS 'The last word of its newest event''s type; empty: a placeholder.';
            COMMENT ON COLUMN goose.%1$I.data IS 'The payload of its newest event.';
            COMMENT ON COLUMN goose.%1$I.created_at IS 'The time of its earliest event.';
            COMMENT ON COLUMN goose.%1$I.updated_at IS 'The time of its newest event.';
            COMMENT ON COLUMN goose.%1$I.version IS 'Its newest event, as text that sorts by age.';
            COMMENT ON COLUMN goose.%1$I.named_version IS 'The newest event that told its name, likewise.';
            COMMENT ON COLUMN goose.%1$I.refreshed_at IS 'When this row was written.';
            COMMENT ON INDEX goose.%2$I IS 'One row each.';
            CREATE TRIGGER %3$I BEFORE UPDATE ON goose.%1$I
                FOR EACH ROW EXECUTE FUNCTION goose.update_timestamp();
            COMMENT ON TRIGGER %3$I ON goose.%1$I IS 'Keeps refreshed_at.';
            CREATE INDEX %4$I ON goose.%1$I (updated_at DESC);
            COMMENT ON INDEX goose.%4$I IS 'What changed last.';
        $sql$, name, name || '_pkey', name || '_update_timestamp', 'idx_' || name || '_updated');
    END LOOP;
END
$$;
CREATE INDEX idx_recipes_name ON goose.recipes (name);
COMMENT ON INDEX goose.idx_recipes_name IS 'Recipes by name.';
CREATE INDEX idx_recipe_executions_status ON goose.recipe_executions (status);
COMMENT ON INDEX goose.idx_recipe_executions_status IS 'Executions by how they stand.';
CREATE INDEX idx_recipe_executions_recipe ON goose.recipe_executions (user_id, recipe_id);
COMMENT ON INDEX goose.idx_recipe_executions_recipe IS 'Executions of a recipe.';
CREATE INDEX idx_extensions_name ON goose.extensions (name);
COMMENT ON INDEX goose.idx_extensions_name IS 'Extensions by name.';
CREATE INDEX idx_agent_sessions_conversation ON goose.agent_sessions (user_id, conversation_id);
COMMENT ON INDEX goose.idx_agent_sessions_conversation IS 'Sessions of a conversation.';

CREATE VIEW goose.conversation_history AS
SELECT c.user_id, c.id, c.title, c.metadata, c.created_at, c.updated_at, c.message_count, c.last_sequence,
       coalesce(m.history, '[]') AS history
FROM goose.conversations c
LEFT JOIN LATERAL (
    SELECT jsonb_agg(jsonb_build_object('sequence', sequence, 'id', message_id, 'role', role,
                                        'createTime', create_time, 'text', content) ORDER BY sequence) AS history
    FROM goose.message_search
    WHERE user_id = c.user_id AND conversation_id = c.id
) m ON true
WHERE c.deleted_at IS NULL;
COMMENT ON VIEW goose.conversation_history IS 'Conversations with their messages'' text, as far as it is indexed.';
COMMENT ON COLUMN goose.conversation_history.user_id IS 'Whose it is.';
COMMENT ON COLUMN goose.conversation_history.id IS 'The conversation.';
COMMENT ON COLUMN goose.conversation_history.title IS 'Its title.';
COMMENT ON COLUMN goose.conversation_history.metadata IS 'Its metadata.';
COMMENT ON COLUMN goose.conversation_history.created_at IS 'When it was created.';
COMMENT ON COLUMN goose.conversation_history.updated_at IS 'When it last changed.';
COMMENT ON COLUMN goose.conversation_history.message_count IS 'How many messages it has.';
COMMENT ON COLUMN goose.conversation_history.last_sequence IS 'The newest sequence given.';
COMMENT ON COLUMN goose.conversation_history.history IS 'Its messages in order: sequence, id, role, createTime, text.';

CREATE MATERIALIZED VIEW goose.event_counts_hourly AS
SELECT date_trunc('hour', "timestamp", 'UTC') AS hour, event_type, entity_type, count(*) AS events
FROM goose.events
WHERE "timestamp" > now() - interval '31 days'
GROUP BY 1, 2, 3;
COMMENT ON MATERIALIZED VIEW goose.event_counts_hourly IS 'Events by hour (UTC), type and entity, of the last 31 days.';
COMMENT ON COLUMN goose.event_counts_hourly.hour IS 'The hour''s start.';
COMMENT ON COLUMN goose.event_counts_hourly.event_type IS 'What happened.';
COMMENT ON COLUMN goose.event_counts_hourly.entity_type IS 'To what.';
COMMENT ON COLUMN goose.event_counts_hourly.events IS 'How often.';
CREATE UNIQUE INDEX idx_event_counts_hourly ON goose.event_counts_hourly (hour, event_type, entity_type);
COMMENT ON INDEX goose.idx_event_counts_hourly IS 'Lets readers go on while it is refreshed.';
