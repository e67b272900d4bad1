"""A chatbot's tables `conversations` and `messages`, moved into the conversation service.

source.py     reads the tables, in one snapshot
mapping.py    a row as the contract's message
backup.py     the tables as files, and back
journal.py    what has been done, on disk: each phase goes on from there
phases.py     copy, verify
freezing.py   no more writes to the tables
revisions.py  the Alembic revisions that end them
"""
