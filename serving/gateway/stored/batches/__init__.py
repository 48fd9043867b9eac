"""Batches: files of calls that no client waits for, run on spare capacity by one gateway at a time, and taken over from one that died."""
