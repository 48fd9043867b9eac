"""Relay: one call to one engine, and its bytes back.

Bytes pass untouched except for usage that the client did not ask for. The meter reads what the call cost off the bytes as
they pass; a replica that fails before the first byte is replaced, after it the stream ends in an error event.
"""
