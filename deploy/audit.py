"""Audit: are there advisories against the locks, and licences that nobody has accepted?

    python deploy/audit.py          # one line on each; exit 1 with the packages at fault
    python deploy/audit.py --list   # every installed distribution with its licence

Advisories are pip-audit's look-up in OSV, from an environment of its own, once a day for unchanged locks. Where OSV is out of
reach this says so and goes on. Licences are those that the metadata of the installed distributions state.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import socket
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "deploy" / "audit.yaml"
LOCKS = (
    *sorted((ROOT / "deploy" / "locks").glob("*.txt")),
    *sorted((ROOT / "deploy" / "images" / "locks").glob("*.txt")),
)
CACHE = ROOT / ".cache" / "audit"
PIP_AUDIT = "pip-audit==2.10.1"
#: Its environment; another version gets another.
TOOL = CACHE / PIP_AUDIT
SERVICE = ("api.osv.dev", 443)
#: Seconds that the service may take to accept a connection, and one command of the look-up.
CONNECT_S, LOOK_UP_S = 3.0, 300.0
#: Seconds for which an audit of unchanged locks holds.
FRESH_S = 86_400.0

#: Names that distributions give their licences in place of SPDX's.
SPDX = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "GPLv2": "GPL-2.0",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Other/Proprietary License": "proprietary",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}


@dataclass(frozen=True)
class Rules:
    """What is accepted, from audit.yaml."""

    allowed: frozenset[str]
    accepted: Mapping[str, str]
    stated: Mapping[str, str]
    advisories: Collection[str]


def rules() -> Rules:
    """The file's rules."""
    plain = yaml.safe_load(RULES.read_text())
    accepted = {name: entry["licence"] for name, entry in plain["accepted"].items() if entry["reason"]}
    return Rules(frozenset(plain["allowed"]), accepted, plain["stated"], frozenset(plain["advisories"]))


def licence(metadata: Mapping[str, Any], classifiers: Iterable[str]) -> str:
    """A distribution's licence as an SPDX expression where it has one; empty when it states none."""
    if expression := metadata.get("License-Expression"):
        return str(expression)
    named = sorted(it.rpartition(" :: ")[2] for it in classifiers if it.startswith("License :: "))
    if known := [SPDX[it] for it in named if it in SPDX]:
        return " OR ".join(known)
    text = str(metadata.get("License") or "").strip().partition("\n")[0]
    return SPDX.get(text, text)


def is_allowed(expression: str, allowed: Collection[str]) -> bool:
    """Is one of the alternatives allowed as a whole? As in SPDX, AND binds before OR, and parentheses before both."""
    if group := re.search(r"\(([^()]*)\)", expression):
        verdict = "allowed" if is_allowed(group[1], allowed) else "refused"
        return is_allowed(expression.replace(group[0], verdict), {*allowed, "allowed"})
    return any(
        all(part.strip() in allowed for part in alternative.split(" AND ")) for alternative in expression.split(" OR ")
    )


def unaccepted(licences: Mapping[str, str], given: Rules) -> list[str]:
    """A line for each distribution whose licence no rule accepts; one accepted by name is accepted with that licence only."""
    return [
        f"{name} is under {stated or 'no licence that its metadata states'}"
        for name, stated in sorted(licences.items())
        if not is_allowed(stated, given.allowed) and stated != given.accepted.get(name)
    ]


def installed(given: Rules) -> dict[str, str]:
    """Every installed distribution and its licence; not what setuptools carries and puts on `sys.path` once imported."""
    found = {}
    for it in importlib.metadata.distributions(
        path=sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    ):
        name = normal(it.metadata["Name"])
        found[name] = given.stated.get(name) or licence(it.metadata, it.metadata.get_all("Classifier") or [])  # type: ignore[arg-type]
    found.pop("gpt-oss-serving", None)
    return found


def normal(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(locks: Iterable[str]) -> list[str]:
    """Every `name==version` of these locks once, without local versions, which no advisory names."""
    found = {line.split()[0] for text in locks for line in text.splitlines() if re.match(r"[A-Za-z0-9].*==", line)}
    return sorted({it.partition("+")[0].rstrip(";") for it in found})


def files(wanted: Iterable[str]) -> list[list[str]]:
    """The pins in as few files as pip-audit takes them: it refuses one that has two versions of a distribution."""
    result: list[dict[str, str]] = []
    for pin in wanted:
        name = pin.partition("==")[0]
        place = next((it for it in result if name not in it), None)
        if place is None:
            result.append(place := {})
        place[name] = pin
    return [list(it.values()) for it in result]


def advisories(report: Mapping[str, Any], ignored: Collection[str]) -> list[str]:
    """A line for each advisory in pip-audit's report whose id, and every other name of it, is not ignored."""
    return [
        f"{package['name']} {package['version']}: {it['id']}, fixed in {', '.join(it['fix_versions']) or 'no version yet'}"
        for package in report["dependencies"]
        for it in package.get("vulns", ())
        if not {it["id"], *it.get("aliases", ())} & set(ignored)
    ]


def look_up(wanted: list[str], given: Rules) -> list[str] | None:
    """Advisories against these pins; None where the service, or the tool that asks it, is out of reach."""
    try:
        socket.create_connection(SERVICE, timeout=CONNECT_S).close()
    except OSError:
        return None
    CACHE.mkdir(parents=True, exist_ok=True)
    report = CACHE / f"{hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]}.json"
    if not report.exists() or time.time() - report.stat().st_mtime > FRESH_S:
        fresh = CACHE / "fresh.json"
        fresh.unlink(missing_ok=True)
        if not _equipped():
            return None
        line = [str(TOOL / "bin" / "pip-audit"), "--disable-pip", "--no-deps", "--vulnerability-service", "osv"]
        line += ["--progress-spinner", "off", "--format", "json", "--output", str(fresh)]
        for number, lines in enumerate(files(wanted)):
            part = CACHE / f"pins-{number}.txt"
            part.write_text("\n".join(lines))
            line += ["-r", str(part)]
        succeeds(line)  # exit code 1 also means that it found something: only the report tells
        if not fresh.exists():
            return None
        fresh.replace(report)
    return advisories(json.loads(report.read_text()), given.advisories)


def _equipped() -> bool:
    """Is pip-audit in its environment, or can it be put there? No part of .venv: what it needs is nobody else's."""
    return (TOOL / "bin" / "pip-audit").exists() or (
        succeeds([sys.executable, "-m", "venv", str(TOOL)])
        and succeeds([str(TOOL / "bin" / "pip"), "--quiet", "install", PIP_AUDIT])
    )


def succeeds(line: list[str], timeout_s: float = LOOK_UP_S) -> bool:
    """Does the command end in time, and with exit code 0?"""
    try:
        return subprocess.run(line, capture_output=True, check=False, timeout=timeout_s).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def main() -> int:
    """Exit code 0 when nothing is wrong as far as can be seen from here."""
    given = rules()
    licences = installed(given)
    if "--list" in sys.argv:
        print("\n".join(f"{name:45} {it}" for name, it in sorted(licences.items())))
        return 0
    counted = ", ".join(f"{count} {name}" for name, count in Counter(licences.values()).most_common(4))
    print(f"Licences of {len(licences)} distributions: {counted} and others; `python deploy/audit.py --list` has all.")
    wrong = [f"{it}: see deploy/audit.yaml" for it in unaccepted(licences, given)]
    wanted = pins(lock.read_text() for lock in LOCKS)
    found = look_up(wanted, given)
    if found is None:
        print(f"Advisories were not looked up: {SERVICE[0]} is out of reach, or pip-audit cannot be installed.")
    else:
        print(f"Advisories against {len(wanted)} pinned distributions: {len(found)}.")
    wrong += found or []
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
