"""The first thing `make` runs, with whatever Python there is: finds a Python 3.11 to 3.13 and hands over to installer.

Written in syntax that Python 2.7 and 3.4 still parse, so that an old one refuses in a sentence instead of a traceback.
"""

from __future__ import print_function

import os
import subprocess
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
CANDIDATES = ("python3.11", "python3.12", "python3.13")
REFUSAL = "Python 3.11 to 3.13 is needed and {0} is {1}.{2}: install one, or name one with PYTHON=/path/to/python3.11."
PROBE = "import sys, ensurepip; sys.exit(not {0} <= sys.version_info[:2] <= {1})".format(OLDEST, NEWEST)


def is_usable(command):
    """Whether this command starts a Python that can build the environment; a version manager's empty shim does not."""
    with open(os.devnull, "w") as nowhere:
        try:
            return subprocess.call([command, "-c", PROBE], stdout=nowhere, stderr=nowhere) == 0
        except OSError:
            return False


def main(arguments, version):
    """Hand over to a suitable Python; `--this-python` means that the user named this one, so no other is tried."""
    here = os.path.dirname(os.path.abspath(__file__))
    if OLDEST <= version <= NEWEST:
        sys.path[:0] = [here, os.path.dirname(here)]
        import installer

        return installer.main(is_python_chosen="--this-python" in arguments)
    if "--this-python" not in arguments:
        for command in CANDIDATES:
            if is_usable(command):
                return subprocess.call([command, os.path.abspath(__file__)])
    print(REFUSAL.format(sys.executable, *version), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.version_info[:2]))
