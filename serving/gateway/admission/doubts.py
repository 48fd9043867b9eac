"""Doubts: windows that may not have counted all that was used, because for a while no limit was there to count for.

An operator who takes a limit away and gives it back, or moves it, does not give what was used in between: the ledger has it. So after
each change of a policy its windows are read anew, once, before a call is decided by them (TEN-52).
"""

from __future__ import annotations

from collections import OrderedDict

from serving.gateway.admission.limits import Plan
from serving.gateway.identity.changes import Kind as Changed
from serving.gateway.identity.changes import News

#: Tenants and keys whose changes are remembered, and windows that were read since: about 0.2 KB each. Of those that are forgotten,
#: windows are read once more.
REMEMBERED_MAX = 200_000


class Doubts:
    """Those of one gateway. Pure."""

    def __init__(self, remembered_max: int = REMEMBERED_MAX) -> None:
        self._remembered_max = remembered_max
        #: Counts what was heard of changes; each thing below has the number it had then.
        self._number = 0
        #: When anything may have changed.
        self._all_at = 0
        #: Id of a tenant or a key → when it was changed.
        self._changed_at: OrderedDict[str, int] = OrderedDict()
        #: Window → when it was last doubted.
        self._doubted_at: OrderedDict[str, int] = OrderedDict()

    def follow(self, news: News) -> None:
        """Operators have changed something."""
        self._number += 1
        if news.changes is None:
            self._all_at = self._number
            return
        for change in news.changes:
            if change.kind in (Changed.TENANT, Changed.KEY):
                self._changed_at[change.subject] = self._number
                self._changed_at.move_to_end(change.subject)
        while len(self._changed_at) > self._remembered_max:
            self._all_at = max(self._all_at, self._changed_at.popitem(last=False)[1])

    def of(self, plan: Plan, tenant_id: str, key_id: str) -> list[str]:
        """Windows of a call's plan that are to be read before it is decided: each is named once."""
        changed_at = self._changed_at
        at = max(self._all_at, changed_at.get(tenant_id, 0), changed_at.get(key_id, 0))
        doubted = [name for name in plan.windows if self._doubted_at.get(name, 0) < at]
        for name in doubted:
            self._doubted_at[name] = at
            self._doubted_at.move_to_end(name)
        while len(self._doubted_at) > self._remembered_max:
            self._doubted_at.popitem(last=False)
        return doubted
