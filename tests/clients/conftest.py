"""What tests of clients stand on: a store in either database, as the gateway's tests have it."""

from tests.gateway.conftest import place, postgres, shared

__all__ = ["place", "postgres", "shared"]
