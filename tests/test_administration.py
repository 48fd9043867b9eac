"""What the README shows of tenants, policies and administration works as it is written there; the port is put in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from serving.gateway.identity.keys import id_of, mint
from tests.gateway.api.admin.office_hours import Running

SECTION = (
    (Path(__file__).parent.parent / "README.md")
    .read_text()
    .partition("## Tenants, policies and administration")[2]
    .partition("\n## ")[0]
)
LINES = [line for block in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL) for line in block.splitlines()]


def test_every_command_works_as_it_is_written(tmp_path: Path) -> None:
    """One after another, on the store of a gateway that runs: each ends well, and the next builds on it."""
    (file,) = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
    (tmp_path / "tenants.yaml").write_text(file)
    (tmp_path / "ci.key").write_text(mint())
    said: dict[str, str] = {}
    with Running(tmp_path / "home") as gateway:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"SERVING_HOME": str(tmp_path / "home"), "KEY": gateway.key, "PATH": path}
        for line in LINES:
            command = line.replace("http://127.0.0.1:8080", gateway.url).replace("curl ", "curl --fail --silent ")
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (line, done.stderr)
            said[line] = done.stdout
    outputs = list(said.values())
    assert len(LINES) == 12
    assert "requests_per_minute" in outputs[3] and id_of(outputs[4].strip())
    assert outputs[5].endswith("to change.\n") and outputs[6] == outputs[5].replace("to change.", "changed.")
    assert '"role":"platform_admin"' in outputs[8] and '"name":"nightly"' in outputs[9]
    assert '"tokens_per_day":80000000' in outputs[10] and outputs[11].startswith("model,")
