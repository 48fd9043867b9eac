"""What this gateway costs beside other proxies: one scripted upstream, the same calls through each, in turns.

    make bench-overhead

The proxies stand before the same upstream at the same time, and take turns within each round, so that whatever else the machine
does meets all of them. Only ratios within one run mean anything (LT-6).
"""
