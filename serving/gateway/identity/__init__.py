"""Identity: whose call is this?

Keys and their digests, the cached look-up on the request path, and what operators do to tenants and keys.
"""
