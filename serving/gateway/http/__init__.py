"""HTTP: the edge between the HTTP server and this plane.

What arrives and leaves as bytes: ASGI requests and responses, uvicorn's protocol with our bounds, the route table, error
bodies, certificates. Nothing here knows what an API means; every room above may use it.
"""
