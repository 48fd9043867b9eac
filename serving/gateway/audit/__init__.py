"""Audit: who did what, and when, in chains that cannot be changed or cut unseen.

Each process writes a chain of its own, in which every digest covers the one before it; signed checkpoints say how far a
chain has come, also to those who keep them elsewhere. Prompts, answers and keys are in none of it.
"""
