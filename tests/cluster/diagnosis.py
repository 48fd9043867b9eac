"""What a failed test leaves to read: kubectl's and helm's words in files of one folder. No Secret is among them."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.commands import CommandFailed, Helm, Kubectl, run

PLAIN = {
    "objects.txt": ("get", "all,pvc,networkpolicies,pdb,configmaps,serviceaccounts", "--output", "wide"),
    "events.txt": ("get", "events", "--sort-by", ".lastTimestamp"),
    "pods.txt": ("describe", "pods"),
    "claims.txt": ("describe", "pvc"),
    "jobs.txt": ("describe", "jobs"),
    "ray.yaml": ("get", "rayservices,rayclusters", "--output", "yaml"),
    "nodes.txt": ("describe", "nodes"),
}
#: Lines of each container, from its end.
LOG_LINES = "3000"


def save(kubectl: Kubectl, helm: Helm, release: str, folder: Path) -> Path:
    """Fill that folder; what cannot be had leaves its reason in its file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, arguments in PLAIN.items():
        _write(folder / name, kubectl.line(*arguments))
    for name, command in {"values.yaml": "values", "manifest.yaml": "manifest", "notes.txt": "notes"}.items():
        _write(folder / name, helm.line("get", command, release))
    _write(folder / "history.txt", helm.line("history", release))
    for pod in _pods(kubectl):
        arguments = ("logs", pod, "--all-containers", "--prefix", "--timestamps", "--tail", LOG_LINES)
        _write(folder / "logs" / f"{pod}.txt", kubectl.line(*arguments))
        _write(folder / "logs" / f"{pod}.previous.txt", kubectl.line(*arguments, "--previous"))
    return folder


def _pods(kubectl: Kubectl) -> list[str]:
    try:
        return [it["metadata"]["name"] for it in kubectl.list("pods")]
    except CommandFailed:
        return []


def _write(path: Path, line: list[str]) -> None:
    try:
        text = run(line)
    except CommandFailed as failed:
        text = f"{failed}\n"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
