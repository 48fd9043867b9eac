"""Admin: `/admin/v1`, what administrators do over HTTP: tenants, keys, policies, and who they are.

FastAPI reads requests, checks shapes and describes itself; `front` gives it one request at a time, in threads of its own, and
everything around that (bounds, time limits, errors, log, metrics) is as of every other route. `authority` says who may do what.
`front` alone is imported with the gateway: the rest is at the first request.
"""
