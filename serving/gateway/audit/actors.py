"""Actors: who did it, as an entry names them: by ids and references, never by a key or a person's name."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import msgspec

from serving.gateway.nouns import Caller

#: The user who logged in, which `sudo` and `su` leave as it is (audit(7)); absent in most containers.
LOGIN_UID = Path("/proc/self/loginuid")
#: There is none.
_NO_UID = 2**32 - 1


class Actor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A caller of the API, or a user of the command line."""

    tenant_id: str = ""
    key_id: str = ""
    role: str = ""
    #: The end user, a reference into `end_users`.
    user_ref: str | None = None
    #: The operating system's user, and the one who logged in if that is another.
    os_user: str = ""
    login: str = ""
    host: str = ""


def of(caller: Caller) -> Actor:
    """The caller of an administrator's route."""
    return Actor(caller.tenant_id, caller.key_id, caller.role, caller.user_ref)


def at_command_line(login_uid: Path = LOGIN_UID) -> Actor:
    """The user of this process, as the kernel knows it: the environment may say anything."""
    uid, login = os.getuid(), _login(login_uid)
    return Actor(os_user=_name(uid), login="" if login in (None, uid) else _name(login or 0), host=socket.gethostname())


def _login(path: Path) -> int | None:
    try:
        uid = int(path.read_text())
    except (OSError, ValueError):
        return None
    return None if uid == _NO_UID else uid


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"
