"""guidellm's command line, with PyTorch from the folder that is named first: its lock leaves it out."""

import sys

# Behind its own packages, and inherited by the processes that it starts.
sys.path.append(sys.argv.pop(1))

from guidellm.__main__ import cli

if __name__ == "__main__":
    cli()
