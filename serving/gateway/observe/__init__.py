"""Observe: how a call is shown to people and machines.

The access log line, metrics, spans and the SLO verdict are renderings of one call's record.
"""
