"""Files: what tenants upload and batches write: rows in the database, bytes sealed in a folder or an object store."""
