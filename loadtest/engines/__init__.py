"""What is between a client and vLLM: the bare server, this project's stack and Ray Serve LLM's application, the same model in each.

    make bench-engines

All stand at the same time, and one after the other generates while the others idle, in turns within each round. Only ratios
within one run mean anything (LT-7).
"""
