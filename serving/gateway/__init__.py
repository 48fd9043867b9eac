"""The gateway plane: the public API. No ray, no torch, no vllm: it starts in about a second and scales on CPU alone.

Each folder is a room, imports point downwards only (import-linter holds it), and serving/README.md tells the path of a
request through them.
"""
