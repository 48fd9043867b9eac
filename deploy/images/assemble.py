"""Inside a build: wheels become /opt/serving, with bytecode and a bill of materials. Standard library alone.

Run by the Dockerfiles in a stage that is thrown away, as `python3.11 assemble.py`, without a network: everything comes from
the folder build.py staged, and every file of it is held against its checksum.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

CONTEXT = Path(__file__).resolve().parent
PREFIX = Path("/opt/serving")
#: pip and the tool that writes the bill; they stay in this stage.
TOOLS = Path("/opt/tools")
BILL = Path("/usr/share/sbom/sbom.cdx.json")
#: What the image is made on: dpkg's list and the system's name, copied from the final stage.
RUNTIME = Path("/runtime")


def main() -> int:
    """Fill PREFIX and write BILL; 1 and a sentence where the base has another Python than the pins."""
    about = json.loads((CONTEXT / "about.json").read_text())
    if about["python"] not in ("", platform.python_version()):
        print(f"The base has Python {platform.python_version()} and pins.toml says {about['python']}.", file=sys.stderr)
        return 1
    run(sys.executable, "-m", "venv", str(TOOLS))
    run(sys.executable, "-m", "venv", "--without-pip", str(PREFIX))
    install(TOOLS / "bin/python", "sbom")
    install(PREFIX / "bin/python", "serving")
    compile_all()
    write_bill(about)
    return 0


def run(*command: str) -> None:
    # The order of a set of strings in bytecode follows the hash seed: fixed, two builds are equal.
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"})


def install(python: Path, what: str) -> None:
    """Install requirements-{what}.txt from the staged wheels into the environment of `python`."""
    command = [str(TOOLS / "bin/pip"), "--python", str(python), "install", "--quiet", "--no-compile", "--no-cache-dir"]
    command += ["--no-index", "--no-deps", "--require-hashes", "--root-user-action=ignore"]
    run(*command, "--find-links", str(CONTEXT / "wheels" / what), "-r", str(CONTEXT / f"requirements-{what}.txt"))


def compile_all() -> None:
    """Bytecode that no start has to write, and that names no time: it is used whatever a file's date is.

    Some packages carry files for other Pythons; what does not compile is compiled never, so their errors mean nothing.
    """
    command = [
        str(PREFIX / "bin/python"),
        "-m",
        "compileall",
        "-qq",
        "-j",
        "0",
        "--invalidation-mode",
        "unchecked-hash",
    ]
    subprocess.run([*command, str(PREFIX / "lib")], check=False, env=os.environ | {"PYTHONHASHSEED": "0"})


def write_bill(about: dict[str, str]) -> None:
    """A CycloneDX bill: distributions of the environment, packages of the system, Python itself and the base."""
    BILL.parent.mkdir(parents=True, exist_ok=True)
    command = [str(TOOLS / "bin/cyclonedx-py"), "environment", "--output-reproducible", "--spec-version", "1.6"]
    run(*command, "-o", str(BILL), str(PREFIX / "bin/python"))
    bill = json.loads(BILL.read_text())
    bill["metadata"]["component"] = {
        "type": "container",
        "bom-ref": "image",
        "name": about["image"],
        "version": about["version"],
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    bill["components"] += [python(), *bases(about), *packages()]
    BILL.write_text(json.dumps(bill, indent=1, sort_keys=True) + "\n")


def python() -> dict[str, str]:
    version = platform.python_version()
    purl = f"pkg:generic/python@{version}"
    return {"type": "platform", "bom-ref": purl, "name": "python", "version": version, "purl": purl}


def bases(about: dict[str, str]) -> list[dict[str, str]]:
    names = [reference.partition("@") for reference in about["bases"].split()]
    return [{"type": "container", "bom-ref": f"base:{it[0]}", "name": it[0], "version": it[2]} for it in names]


def packages() -> list[dict[str, str]]:
    """What dpkg has installed in the final stage."""
    found = re.search(r"^ID=(\w+)", (RUNTIME / "os-release").read_text(), re.M)
    system = found[1] if found else "linux"
    listed = []
    for block in (RUNTIME / "status").read_text().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture|Status): (.*)$", block, re.M))
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/{system}/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={fields['Architecture']}"
            listed.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return listed


if __name__ == "__main__":
    sys.exit(main())
