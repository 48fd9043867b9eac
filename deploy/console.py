"""Console: the page's sources become the files that gateways serve. `python deploy/console.py`, or `make console`.

`serving/console/source` → types checked by TypeScript → one script and one style sheet by esbuild → `serving/console/index.html` and
`assets`, which are committed: neither a wheel nor an image needs Node (CON-21). `--check` says whether they are those of the sources.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from loadtest import environments  # noqa: E402 The checkout's own, which is not installed everywhere.
from serving.errors import Refusal  # noqa: E402

SOURCE = ROOT / "serving" / "console" / "source"
INDEX = ROOT / "serving" / "console" / "index.html"
ASSETS = ROOT / "serving" / "console" / "assets"
CACHE = ROOT / ".cache" / "console"
NODE_LOCK = ROOT / "tests" / "clients" / "pip" / "node.txt"
#: What browsers of the last three years read; Firefox since it knows :has().
TARGET = "es2022,chrome111,firefox121,safari16.4"


def built() -> Mapping[Path, bytes]:
    """The page's files by their place, made from the sources of this checkout; raises Refusal with what the compilers say."""
    node = environments.node(ROOT / ".cache" / "clients", NODE_LOCK)
    npm = environments.packages(CACHE, "npm-console", SOURCE, node)
    work = npm / "source"
    # Beside the packages, so that both compilers find them.
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(SOURCE, work)
    _compile(npm, "@typescript/*/lib/tsc", "--project", "tsconfig.json")
    _compile(
        npm, "@esbuild/*/bin/esbuild", "main.tsx", "app.css", "--bundle", "--minify", f"--target={TARGET}", "--format=esm",
        "--legal-comments=none", "--charset=utf8", "--outdir=built",
    )  # fmt: skip
    script = work / "built" / "main.js"
    licence = (npm / "node_modules" / "preact" / "LICENSE").read_text()
    script.write_text(f"/* Preact, which this has in it:\n\n{licence}*/\n{script.read_text()}")
    return _linked(work / "index.html", [script, work / "built" / "app.css", work / "icon.svg"])


def _compile(npm: Path, program: str, *arguments: str) -> None:
    """Run one of the packages' programs on the sources; raises Refusal with what it says."""
    (path,) = (npm / "node_modules").glob(program)
    done = subprocess.run([path, *arguments], cwd=npm / "source", capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refusal(f"{path.name} finds fault with the console's sources:\n{done.stdout}{done.stderr}".strip())


def _linked(index: Path, assets: Sequence[Path]) -> Mapping[Path, bytes]:
    """The assets under names that change with what is in them, and an index that has those names."""
    text, files = index.read_text(), {}
    for path in assets:
        content = path.read_bytes()
        name = f"{path.stem}-{hashlib.sha256(content).hexdigest()[:10]}{path.suffix}"
        text = text.replace(f"assets/{path.name}", f"assets/{name}")
        files[ASSETS / name] = content
    return {INDEX: text.encode(), **files}


def there() -> Mapping[Path, bytes]:
    """The built files of this checkout."""
    return {path: path.read_bytes() for path in (INDEX, *ASSETS.glob("*")) if path.exists()}


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with `--check` compare them."""
    try:
        made = built()
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return 1
    if "--check" in arguments:
        if made == there():
            return 0
        print("The console's built files are not what its sources make: run `make console`.", file=sys.stderr)
        return 1
    shutil.rmtree(ASSETS, ignore_errors=True)
    ASSETS.mkdir()
    for path, content in made.items():
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
