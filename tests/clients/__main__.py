"""Try clients and write down what was seen: see results.py."""

from __future__ import annotations

import sys

from tests.clients.catalogue import CLIENTS
from tests.clients.performance import PASSES, before_scripted_engine
from tests.clients.results import record, row


def main(words: list[str]) -> None:
    """Every client, or those whose name has one of the words."""
    for client in CLIENTS:
        if words and not any(word in client.name for word in words):
            continue
        verdicts = before_scripted_engine(client)
        record({client.name: row(client, verdicts)})
        print(client.name, f"{sum(it == PASSES for it in verdicts.values())} of {len(verdicts)}")
        for feature, verdict in verdicts.items():
            if verdict != PASSES:
                print(f"  {feature}: {verdict}")


if __name__ == "__main__":
    main(sys.argv[1:])
