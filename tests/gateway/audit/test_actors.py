"""Actors: who did it, by ids that cannot be chosen."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from serving.gateway.audit import actors
from serving.gateway.audit.actors import Actor
from serving.gateway.nouns import Caller, Role


def test_a_caller_is_named_by_its_ids() -> None:
    """Neither its tenant's name nor any right says more of it."""
    caller = Caller("t1", "acme", "k1", role=Role.TENANT_ADMIN, user_ref="u1")
    assert actors.of(caller) == Actor("t1", "k1", "tenant_admin", "u1")


def test_the_command_lines_user_is_the_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the environment says."""
    for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER"):
        monkeypatch.setenv(name, "mallory")
    assert actors.at_command_line(tmp_path / "none").os_user == pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.parametrize(
    ("login", "name"), [("4294967295", ""), ("12345", "uid 12345"), ("", ""), (str(os.getuid()), "")]
)
def test_who_logged_in_is_told_where_it_is_another(tmp_path: Path, login: str, name: str) -> None:
    """`sudo` changes the user and not this."""
    file = tmp_path / "loginuid"
    file.write_text(login)
    assert actors.at_command_line(file).login == name
