"""Stored: what outlives a request. Everything a client gave or was given is sealed by the vault before it leaves this process."""
