"""Dialects: one file per API that clients speak.

A dialect is one object: the request fields it honours, ignores or refuses, its checks and rules, how its answers carry
usage, how its streams end, and the shape of its errors. A new API is one new file here and a line in the engine's allow-list.
"""
