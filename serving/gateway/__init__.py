"""The gateway plane: the public API. No ray, no torch, no vllm: it starts in about a second and scales on CPU alone.

A request passes `app` (receive, identify) → `calls` (resolve, admit, settle) → `fleet` and `router` (route) →
`relay` (bytes to one engine and back).
"""
