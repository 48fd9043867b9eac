"""Store: the database, SQLite in one file or PostgreSQL, with its tables and their history.

Everything here blocks; the event loop reaches it only through threads.
"""
