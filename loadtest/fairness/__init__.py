"""The judge of fairness: the gateway's own queue between tenants and a fleet, in virtual time (`python -m loadtest.fairness`)."""
