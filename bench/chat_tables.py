"""A chatbot's tables, filled: `python -m bench.chat_tables postgresql://... --conversations 5000 --messages 300`.

What `gaggle migrate chat-tables` is tried and measured on. The tables are made if they are not there, as a project with
Alembic and SQLModel has them; the same seed gives the same rows.
"""

import argparse
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg

TABLES = """
CREATE TABLE IF NOT EXISTS conversations (
  id serial PRIMARY KEY,
  user_id varchar NOT NULL,
  created_at timestamp NOT NULL DEFAULT now(),
  updated_at timestamp NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS ix_conversations_user_id ON conversations (user_id);
CREATE TABLE IF NOT EXISTS messages (
  id serial PRIMARY KEY,
  conversation_id integer NOT NULL REFERENCES conversations (id),
  user_id varchar NOT NULL,
  role varchar NOT NULL,
  content text NOT NULL,
  created_at timestamp NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS ix_messages_conversation_id ON messages (conversation_id);
"""

_WORDS = """
add buy call cancel complete delete done due early evening finish for from grüße groceries in it later list milk monday
move my next now of on please priority remind review send show task the then tomorrow until what when 牛奶
"""
_FIRST = datetime(2025, 6, 1, tzinfo=UTC)


def rows(
    conversations: int, messages: int, users: list[str], *, seed: int = 1, first_id: int = 1, first_message_id: int = 1
) -> Iterator[tuple[tuple[int, str, datetime], list[tuple[int, str, str, datetime]]]]:
    """Conversations (id, user, time) with 0 to `messages` messages each (id, role, content, time)."""
    draw = random.Random(seed)
    words = _WORDS.split()
    message_id = first_message_id
    for conversation_id in range(first_id, first_id + conversations):
        began = _FIRST + timedelta(minutes=conversation_id)
        said = []
        for n in range(draw.randint(0, messages)):
            text = " ".join(draw.choices(words, k=draw.randint(3, 60)))
            said.append((message_id, ("user", "assistant")[n % 2], text, began + timedelta(seconds=n)))
            message_id += 1
        yield (conversation_id, draw.choice(users), began), said


def fill(connection: psycopg.Connection, conversations: int, messages: int, users: list[str], *, seed: int = 1) -> int:
    """Make the tables and fill them, which must be empty; gives how many messages there are."""
    connection.execute(TABLES.encode())
    made = list(rows(conversations, messages, users, seed=seed))
    with connection.cursor() as cursor:
        with cursor.copy("COPY conversations (id, user_id, created_at, updated_at) FROM STDIN") as copy:
            for (conversation_id, user, began), said in made:
                ended = said[-1][3] if said else began
                copy.write_row((conversation_id, user, began.replace(tzinfo=None), ended.replace(tzinfo=None)))
        with cursor.copy("COPY messages (id, conversation_id, user_id, role, content, created_at) FROM STDIN") as copy:
            for (conversation_id, user, _), said in made:
                for message_id, role, text, time_ in said:
                    copy.write_row((message_id, conversation_id, user, role, text, time_.replace(tzinfo=None)))
    connection.execute("SELECT setval(pg_get_serial_sequence('conversations', 'id'), max(id)) FROM conversations")
    connection.execute("SELECT setval(pg_get_serial_sequence('messages', 'id'), max(id)) FROM messages")
    return sum(len(said) for _, said in made)


def main() -> None:
    """Fill a database."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--conversations", type=int, default=5000)
    parser.add_argument("--messages", type=int, default=300, help="a conversation has none to so many")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    users = [f"user-{n:04}" for n in range(asked.users)]
    with psycopg.connect(asked.url) as connection:
        count = fill(connection, asked.conversations, asked.messages, users, seed=asked.seed)
    print(f"{asked.conversations:,} conversations, {count:,} messages in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
