"""A stand-in for vLLM's process tree: a server, an EngineCore below it, a worker below that, and a helper.

With `--forks` its worker starts short-lived programs all the time, as torch does when it compiles.

The EngineCore leaves its parent's session and ignores SIGTERM, like a process that is stuck in a kernel.
"""

import signal
import subprocess
import sys
import time

from setproctitle import setproctitle

CHILDREN = {"server": ["EngineCore", "helper"], "EngineCore": ["Worker_TP0"], "Worker_TP0": [], "helper": []}


def main(role: str) -> None:
    children = [
        subprocess.Popen([sys.executable, __file__, child, *sys.argv[2:]], start_new_session=True)
        for child in CHILDREN[role]
    ]
    if role in ("EngineCore", "Worker_TP0"):
        setproctitle(f"VLLM::{role}")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if role == "helper":
        return  # A compiler or a probe: it ends early and nobody minds.
    while True:
        if "--forks" in sys.argv and role == "Worker_TP0":
            subprocess.run(["/bin/true"], preexec_fn=lambda: time.sleep(0.02), check=True)
        else:
            time.sleep(3600)
        del children[:]


if __name__ == "__main__":
    main(sys.argv[1])
