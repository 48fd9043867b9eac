"""CLI: the operator's commands on the database, whether or not a gateway runs."""
