"""What the README shows works as it is written there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack.running import Stack
from tests.waiting import until

README = (Path(__file__).parents[2] / "README.md").read_text()


def shown(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_example_answers(stack: Stack) -> None:
    """Only the address and the key are put in."""
    code = shown("python")[0].replace("http://127.0.0.1:8080", stack.url).replace("sk-…", stack.key)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Paris" in printed


def test_the_banner_is_the_one_shown(stack: Stack) -> None:
    """The README's picture of a start is what a start prints, but for seconds, port and key."""
    variable = re.compile(r"\d+ s\.|:\d+/|sk-[\w…-]+")
    picture = variable.sub("…", re.findall(r"```\n(Ready after.*?)```", README, re.DOTALL)[0])
    assert picture.strip() in variable.sub("…", stack.banner())


def test_the_commands_in_the_table_run(stack: Stack, tmp_path: Path) -> None:
    """Every command of the table but the two that serve; what is restored goes into a home of its own."""
    cells = re.findall(r"^\| (`serving .*?) \| ", README, re.MULTILINE)
    commands = [command for cell in cells for command in re.findall(r"`serving (.*?)`", cell)]
    done = [command for command in commands if not command.startswith(("up ", "gateway "))]
    assert len(done) >= 6
    for command in done:
        line = command.replace("NAME", stack.model).replace("FILE", str(tmp_path / "backup")).split()
        if line[:2] == ["ledger", "check"]:
            # Other tests ask this engine past the gateway, which is a difference that it finds.
            environment = dict(os.environ) | {"SERVING_HOME": str(stack.home)}
            checked = subprocess.run([sys.executable, "-m", "serving", *line], env=environment, capture_output=True)
            assert checked.returncode in (0, 1) and stack.model.encode() in checked.stdout, checked.stderr
        elif line[0] == "batch":
            run_a_batch(stack, tmp_path / line.pop(), line)
        elif line[0] == "restore":
            environment = dict(os.environ) | {"SERVING_HOME": str(tmp_path / "home")}
            subprocess.run([sys.executable, "-m", "serving", *line], env=environment, check=True)
        else:
            stack.command(*line)


def run_a_batch(stack: Stack, calls: Path, line: list[str]) -> None:
    """A file of one call, for a tenant that stores content."""
    body = {"model": stack.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    call = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    calls.write_text(json.dumps(call))
    stack.command("policies", "set", "default", "--store-responses")
    environment = dict(os.environ) | {"SERVING_HOME": str(stack.home), "OPENAI_BASE_URL": f"{stack.url}/v1"}
    # Gateways know of the policy within a second.
    until(lambda: subprocess.run([sys.executable, "-m", "serving", *line, str(calls)], env=environment).returncode == 0)
    stack.command("policies", "clear", "default")
    (answer,) = calls.with_name("calls.output.jsonl").read_text().splitlines()
    assert json.loads(answer)["response"]["status_code"] == 200


@pytest.mark.parametrize("example", [it for it in shown("yaml") if "\ntenants:\n" not in it])
def test_each_settings_example_is_read(stack: Stack, tmp_path: Path, example: str) -> None:
    """The YAML of the README is a settings file as it stands, but for the one that `serving apply` reads."""
    (tmp_path / "settings.yaml").write_text(example)
    line = [sys.executable, "-m", "serving", "--settings", str(tmp_path / "settings.yaml"), "models", "list"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SERVING_")}
    subprocess.run(line, env=environment | {"SERVING_HOME": str(tmp_path)}, check=True, capture_output=True)
