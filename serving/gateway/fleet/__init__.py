"""Fleet: which replicas exist, and which of them takes a call.

Directories and engines are polled and their answers merged; a replica leaves only when it is reported gone or refuses a
connection. Calls go where their first token comes soonest: the ranking is a pure function of what replicas are committed to and of
the prefixes they have cached. Demand for each model goes back to the directories with every poll.
"""
