"""Load tests: what a serving stack does under load that does not wait for it (`python -m loadtest run`)."""
