"""Inside a build: wheels become /opt/serving, with bytecode and a bill of materials. Standard library alone.

Run by the Dockerfiles as `python3.11 assemble.py`, without a network: everything comes from the folder build.py staged, and
every file of it is held against its checksum. The large image takes it in steps, one layer each: `assemble.py tools` in a
stage that is thrown away, `assemble.py PATTERN` for the distributions whose whole names match, and at last the rest.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CONTEXT = Path(__file__).resolve().parent
PREFIX = Path("/opt/serving")
#: pip and the tool that writes the bill; they stay in this stage.
TOOLS = Path("/opt/tools")
BILL = Path("/usr/share/sbom/sbom.cdx.json")
#: What the image is made on: dpkg's list and the system's name, copied from the final stage where that is another one.
RUNTIME = Path("/runtime")

#: Two builds are equal: the order of a set of strings in bytecode follows the hash seed, and a Python that writes bytecode of
#: what it imports puts the file's date into it.
REPEATABLE = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def main(part: str = "") -> int:
    """Fill PREFIX and write BILL; 1 and a sentence where the base has another Python than the pins."""
    about = json.loads((CONTEXT / "about.json").read_text())
    if about["python"] not in ("", platform.python_version()):
        print(f"The base has Python {platform.python_version()} and pins.toml says {about['python']}.", file=sys.stderr)
        return 1
    if not (TOOLS / "bin").exists():
        run(sys.executable, "-m", "venv", str(TOOLS))
        install(TOOLS / "bin/python", CONTEXT / "requirements-sbom.txt")
    if part == "tools":
        return 0
    if not PREFIX.exists():
        run(sys.executable, "-m", "venv", "--without-pip", str(PREFIX))
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements-serving.txt"
        wanted.write_text(matching(part or ".*", (CONTEXT / "requirements-serving.txt").read_text()))
        install(PREFIX / "bin/python", wanted)
    compile_all()
    if not part:
        write_bill(about)
    return 0


def matching(pattern: str, requirements: str) -> str:
    """The pins of a lock, with their checksums, whose distributions match."""
    pins = re.findall(r"^([\w.-]+)(==.*(?:\n .*)*\n)", requirements, re.M)
    return "".join(name + rest for name, rest in pins if re.fullmatch(pattern, name))


def run(*command: str) -> None:
    subprocess.run(command, check=True, env=os.environ | REPEATABLE | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})


def install(python: Path, requirements: Path) -> None:
    """Install from the staged wheels of those requirements into the environment of `python`; what is there stays."""
    wheels = CONTEXT / "wheels" / requirements.stem.removeprefix("requirements-")
    command = [str(TOOLS / "bin/pip"), "--python", str(python), "install", "--quiet", "--no-compile", "--no-cache-dir"]
    command += ["--no-index", "--no-deps", "--require-hashes", "--root-user-action=ignore"]
    run(*command, "--find-links", str(wheels), "-r", str(requirements))


def compile_all() -> None:
    """Bytecode that no start has to write, and that names no time: it is used whatever a file's date is.

    What an earlier step compiled stays as it is, in that step's layer. Some packages carry files for other Pythons; what does
    not compile is compiled never, so their errors mean nothing.
    """
    sources = (PREFIX / "lib").rglob("*.py")
    missing = [str(it) for it in sources if not Path(importlib.util.cache_from_source(str(it))).exists()]
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
    subprocess.run([*command, "-i", "-"], input="\n".join(missing), text=True, check=False, env=os.environ | REPEATABLE)


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
    status, release = RUNTIME / "status", RUNTIME / "os-release"
    if not RUNTIME.exists():
        status, release = Path("/var/lib/dpkg/status"), Path("/etc/os-release")
    found = re.search(r"^ID=(\w+)", release.read_text(), re.M)
    system = found[1] if found else "linux"
    listed = []
    for block in status.read_text().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture|Status): (.*)$", block, re.M))
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            purl = f"pkg:deb/{system}/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={fields['Architecture']}"
            listed.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return listed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
