"""The schema that `gaggle db migrate` makes."""

from services.audit.migrations import upgrade
from tests.audit.database import Database, fresh_user


def test_migrating_again_changes_nothing(database: Database) -> None:
    """Whoever migrates a database that is up to date gets no error and no change."""
    before = database.run("SELECT version_num FROM goose.alembic_version")
    upgrade(database.url)
    assert database.run("SELECT version_num FROM goose.alembic_version") == before


def test_every_object_says_what_it_is(database: Database) -> None:
    """Every table, view, column, index, trigger, function and text search object of the schema has a comment."""
    silent = database.run(
        """
        WITH objects AS (
            SELECT 'pg_class'::regclass AS class, oid, 0 AS part, relname::text AS name FROM pg_class
            WHERE relnamespace = 'goose'::regnamespace AND relname <> 'alembic_version_pkc'
            UNION ALL
            SELECT 'pg_class'::regclass, c.oid, a.attnum, c.relname || '.' || a.attname
            FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
            WHERE c.relnamespace = 'goose'::regnamespace AND c.relkind IN ('r', 'v', 'm') AND a.attnum > 0
              AND NOT a.attisdropped
            UNION ALL
            SELECT 'pg_proc'::regclass, oid, 0, proname::text FROM pg_proc WHERE pronamespace = 'goose'::regnamespace
            UNION ALL
            SELECT 'pg_trigger'::regclass, t.oid, 0, tgname::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
            WHERE c.relnamespace = 'goose'::regnamespace AND NOT tgisinternal
            UNION ALL
            SELECT 'pg_ts_config'::regclass, oid, 0, cfgname::text FROM pg_ts_config
            WHERE cfgnamespace = 'goose'::regnamespace
            UNION ALL
            SELECT 'pg_ts_dict'::regclass, oid, 0, dictname::text FROM pg_ts_dict
            WHERE dictnamespace = 'goose'::regnamespace
        )
        SELECT name FROM objects o
        WHERE NOT EXISTS (SELECT FROM pg_description d
                          WHERE d.classoid = o.class AND d.objoid = o.oid AND d.objsubid = o.part)
        """
    )
    assert silent == []


def test_the_indexes_of_the_documents_exist(database: Database) -> None:
    """Tables and indexes have the names that operators know."""
    rows = database.run("SELECT tablename, indexname FROM pg_indexes WHERE schemaname = 'goose'")
    assert set(rows) >= {
        ("conversations", "idx_conversations_user"),
        ("conversations", "idx_conversations_updated"),
        ("recipes", "idx_recipes_name"),
        ("recipe_executions", "idx_recipe_executions_status"),
        ("agent_sessions", "agent_sessions_pkey"),
        ("extensions", "extensions_pkey"),
        ("events", "events_pkey"),
    }


def test_a_conversation_shows_its_history(database: Database) -> None:
    """The view gives a conversation with its messages' text, in order."""
    user_id = fresh_user()
    database.run(
        "INSERT INTO goose.conversations (user_id, id, incarnation, title) VALUES (%s, 'c', 0, 'birds')", [user_id]
    )
    messages = [
        {"sequence": n, "message_id": f"m{n}", "role": "user", "content": text} for n, text in ((2, "b"), (1, "a"))
    ]
    work = {"user_id": user_id, "conversation_id": "c", "incarnation": 0, "indexed_sequence": 2, "messages": messages}
    database.call("index_messages", work)
    ((title, history),) = database.run(
        "SELECT title, history FROM goose.conversation_history WHERE user_id = %s", [user_id]
    )
    assert (title, [one["text"] for one in history]) == ("birds", ["a", "b"])
