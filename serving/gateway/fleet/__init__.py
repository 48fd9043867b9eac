"""Fleet: which replicas exist, and which of them takes a call.

Directories and engines are polled and their answers merged; a replica leaves only when it is reported gone or refuses a
connection. The ranking is a pure function. Demand for each model goes back to the directories with every poll.
"""
