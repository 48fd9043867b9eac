"""The judge of routing: policies on real traces in virtual time, one of them the gateway's own code (`python -m loadtest.routing`)."""
