"""Answers: what an engine says, on its way to being what the client's API says.

One `Shaper` an answer: it takes whole events of a stream, or a whole body, and gives back what the client gets. It is fed by
the relay, knows neither engines nor connections, and lets ordinary chunks pass byte for byte.
"""
