"""The operator's tools: is a cluster ready, what to order, how is an installation, does it keep what it promises.

Kubernetes is spoken to here and nowhere else, and here in `cluster` alone; everything else is handed plain structs.
"""
