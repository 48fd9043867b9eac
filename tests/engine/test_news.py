"""A poll waits for news, and only for news."""

from __future__ import annotations

import asyncio

from serving.engine.news import News

#: Longer than a test may take.
FOR_EVER_S = 3600.0


async def test_a_poll_that_knows_everything_waits_for_the_next_change() -> None:
    """All that wait are answered at once when it comes, and each takes its token home."""
    news = News("a")
    known = news.token
    waiting = [asyncio.create_task(news.after(known, FOR_EVER_S)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    news.happen()
    await asyncio.gather(*waiting)
    assert news.token != known


async def test_what_happened_between_two_polls_is_not_missed() -> None:
    """Nor does a poll wait that knows nothing, or another incarnation's news."""
    news = News("a")
    known = news.token
    news.happen()
    for token in (known, "", News("b").token):
        await news.after(token, FOR_EVER_S)


async def test_without_news_a_poll_is_answered_after_a_while() -> None:
    """A gateway must hear from its directory, however little happens."""
    news = News("a")
    await news.after(news.token, 0.01)
