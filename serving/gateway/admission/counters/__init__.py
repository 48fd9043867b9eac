"""Counters: what limits have counted, for one gateway alone or for several together.

A call's draws on all its counters are one decision: all are taken or none. What is reserved is settled to the truth when the call
is over, and comes back by itself when its gateway dies.
"""
