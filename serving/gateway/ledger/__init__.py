"""Ledger: what every call cost, one row per call.

Rows are opened with the call and closed on every way out of it. They wait in memory, then in a file, while the database
is away; a heartbeat tells gateways which rows a dead one left open.
"""
