"""Files: whose they are and how long, in either database; `tests/gateway/api/test_files.py` has them over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import update

from serving.config import FileSettings
from serving.errors import Forbidden, InvalidRequest, ResourceNotFound, VaultFailed
from serving.gateway.nouns import Caller
from serving.gateway.policies import Policy
from serving.gateway.store.store import Store
from serving.gateway.store.tables import files as table
from serving.gateway.stored.desk import Desk
from serving.gateway.stored.files.files import LEFT_S, File, TenantFiles, brought_by, require_consent
from serving.gateway.stored.files.pieces import Pieces
from serving.gateway.stored.vault import Vault
from tests.clock import Clock
from tests.gateway.calls import CALLER

SETTINGS = FileSettings(expires_after_s=7200.0, upload_s=600.0)


def files_of(store: Store, home: Path, clock: Clock) -> TenantFiles:
    vault = Vault.at(home, may_make=True)
    return TenantFiles(SETTINGS, store, Pieces.open(SETTINGS, home), vault, Desk(), clock)


async def put(files: TenantFiles, expires_after_s: float | None = None) -> File:
    cipher = await files.begin(brought_by(CALLER, "a.jsonl"), 1)
    await files.shelf.put(cipher, 0, b"x")
    return await files.finish(cipher, 1, 1, expires_after_s)


async def test_what_has_expired_is_gone_at_once_and_swept_later(store: Store, tmp_path: Path) -> None:
    """But for a batch that reads it. So is an upload that was never finished. No file is kept for longer than the settings say."""
    clock = Clock(1_795_000_000.0)
    files = files_of(store, tmp_path, clock)
    short, long = await put(files, 3600.0), await put(files, 2_592_000.0)
    assert (long.expires_at, short.expires_at) == (clock.now + 7200.0, clock.now + 3600.0)
    cipher = await files.begin(brought_by(CALLER, "b"), 5)
    await files.shelf.put(cipher, 0, b"y")
    left = cipher.file_id

    clock.advance(3600.0)
    with pytest.raises(ResourceNotFound):
        await files.find(CALLER.tenant_id, short.id)
    assert await files.input_of(CALLER.tenant_id, short.id) == short
    with pytest.raises(ResourceNotFound):
        await files.input_of("t2", short.id)
    assert await files.sweep() == 1 and not (tmp_path / "files" / short.id).exists()
    assert (tmp_path / "files" / left).exists()
    clock.advance(SETTINGS.upload_s + LEFT_S - 3599.0)
    assert await files.sweep() == 1 and not (tmp_path / "files" / left).exists()
    assert (await files.find(CALLER.tenant_id, long.id)).name == "a.jsonl"
    for tenant_id, name in (("t2", long.id), (CALLER.tenant_id, "\0"), (CALLER.tenant_id, "x" * 99)):
        with pytest.raises(ResourceNotFound):
            await files.find(tenant_id, name)
        with pytest.raises(ResourceNotFound):
            await files.remove(tenant_id, name)
    page = await files.page(CALLER.tenant_id, purpose="\0", after=None, limit=5, is_ascending=True)
    assert page.files == []
    with pytest.raises(InvalidRequest):
        await files.page(CALLER.tenant_id, purpose=None, after="\0", limit=5, is_ascending=True)
    clock.advance(7200.0)
    assert await files.sweep() == 1 and await files.sweep() == 0


async def test_one_that_does_not_open_can_be_deleted(store: Store, tmp_path: Path) -> None:
    """And hides no other. Nothing is read of it."""
    files = files_of(store, tmp_path, Clock(1_795_000_000.0))
    lost, other = await put(files), await put(files)
    with store.begin() as connection:
        connection.execute(update(table).where(table.c.id == lost.id).values(sealed=b"changed"))
    page = await files.page(CALLER.tenant_id, purpose=None, after=None, limit=10, is_ascending=True)
    assert {it.id: it.name for it in page.files} == {lost.id: "", other.id: "a.jsonl"}
    found = await files.find(CALLER.tenant_id, lost.id)
    with pytest.raises(VaultFailed):
        await anext(aiter(files.content(found)))
    with pytest.raises(VaultFailed):
        await files.input_of(CALLER.tenant_id, lost.id)
    await files.remove(CALLER.tenant_id, lost.id)
    assert not (tmp_path / "files" / lost.id).exists()


def test_content_is_kept_where_the_tenant_says_so() -> None:
    """A key may decline; it cannot turn on what its tenant has not."""
    on, off = Policy(store_responses=True), Policy(store_responses=False)
    require_consent(Caller("t", "acme", "k", tenant_policy=on))
    for tenant, key in ((Policy(), on), (off, on), (on, off)):
        with pytest.raises(Forbidden, match="store_responses"):
            require_consent(Caller("t", "acme", "k", tenant_policy=tenant, key_policy=key))
