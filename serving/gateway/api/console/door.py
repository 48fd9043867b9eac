"""Door: who is signed in to the console, by a key or by single sign-on. A browser gets a cookie; no answer holds a key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Annotated
from urllib.parse import quote, urlsplit

import msgspec
from msgspec import Meta

from serving.config import ConsoleSettings
from serving.errors import (
    ApiError,
    GatewayFull,
    InvalidRequest,
    IssuerUnavailable,
    ResourceNotFound,
    SessionEnded,
    StoreUnavailable,
    Unauthenticated,
)
from serving.gateway.api.console import files
from serving.gateway.api.visit import Handler, Visit
from serving.gateway.http.asgi import Header, Request, require_json
from serving.gateway.http.routing import About, Entry
from serving.gateway.identity import cookies
from serving.gateway.identity.changes import Change, Kind, News
from serving.gateway.identity.identity import Identity
from serving.gateway.identity.keys import KEY_LENGTH
from serving.gateway.identity.sessions import Sessions
from serving.gateway.identity.sign_on import CARRIED_S
from serving.gateway.nouns import Caller, Right, Role

SESSION_PATH = f"{files.PATH}/session"
SIGN_ON_PATH = f"{files.PATH}/sign-in"
RETURN_PATH = f"{files.PATH}/callback"

#: Bytes of a body with a key.
BODY_BYTES_MAX = 1024
#: Sign-ins that run at a time: keys are tried here no faster than the database answers.
OPEN_MAX = 16
#: Characters of an issuer's word on a sign-in; Microsoft's codes have about 1,500.
_CODE_CHARS_MAX = 8 * 1024

_NO_STORE: Header = (b"cache-control", b"no-store")
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


class SignIn(msgspec.Struct, frozen=True):
    """A way to sign in besides a key."""

    issuer: str
    title: str
    url: str


class Who(msgspec.Struct, frozen=True):
    """Who is signed in, and until when, in seconds since the epoch."""

    tenant: str
    tenant_id: str
    #: Or `oidc`.
    key_id: str
    key_name: str | None
    user: str | None
    role: Role
    rights: list[Right]
    ends_at: float


class Standing(msgspec.Struct, frozen=True):
    """What the page asks first: how the installation is called, how to sign in, and who is."""

    service: str
    version: str
    currency: str
    sign_ins: list[SignIn]
    who: Who | None


class Presented(msgspec.Struct, forbid_unknown_fields=True):
    """A key that signs in."""

    key: Annotated[str, Meta(min_length=1, max_length=KEY_LENGTH)]


class Door:
    """Answers `/console/session`, and leads to an issuer and back."""

    def __init__(
        self, settings: ConsoleSettings, currency: str, identity: Identity, sessions: Sessions, body_s: float
    ) -> None:
        self._settings = settings
        self._currency = currency
        self._identity = identity
        self._sessions = sessions
        self._body_s = body_s
        self._open = 0
        # Of a file that is read for it.
        self._version = version("gpt-oss-serving")
        self._sign_ins = [_sign_in(issuer) for issuer in identity.sign_ons]

    def entries(self) -> Iterator[Entry[Handler]]:
        """The routes of signing in and out."""
        about = partial(About, tag=files.TAG, is_open=True)
        show = about(summary="Who is signed in, and how to.", answer=Standing)
        begin = about(summary="Sign in with a key.", body=Presented, answer=Standing)
        yield Entry("GET", SESSION_PATH, self.show, about=show)
        yield Entry("POST", SESSION_PATH, self.begin, about=begin)
        yield Entry("DELETE", SESSION_PATH, self.end, about=about(summary="Sign out.", status=204))
        leave = about(summary="To single sign-on.", status=302, query={"issuer": "One of `sign_ins`."})
        back = about(
            summary="Back from single sign-on.",
            content_type="text/html",
            query={"code": "The issuer's.", "state": "Ours.", "error": "The issuer's, in place of a code."},
        )
        yield Entry("GET", SIGN_ON_PATH, self.leave, about=leave)
        yield Entry("GET", RETURN_PATH, self.come_back, about=back)

    async def show(self, visit: Visit) -> None:
        """`GET /console/session`: 200 whether someone is signed in or not."""
        who = None
        if (word := cookies.session(visit.request)) is not None:
            try:
                who = await self._who(visit, word)
            except Unauthenticated:
                visit.announce(cookies.ended(is_secure=self._is_secure(visit.request)))
        await self._answer(visit, who)

    async def begin(self, visit: Visit) -> None:
        """`POST /console/session` with a key: sign in. Raises Unauthenticated, by the class that says why."""
        cookies.require_own_page(visit.request)
        require_json(visit.request)
        body = await visit.body(BODY_BYTES_MAX, self._body_s)
        try:
            presented = msgspec.json.decode(body, type=Presented)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InvalidRequest('The body must be {"key": "sk-…"}.') from None
        with self._one_open():
            visit.record.caller = caller = await self._identity.of_key(presented.key.strip())
            word = await self._taken_in(visit, caller)
        await self._answer(visit, await self._of(caller, word))

    async def end(self, visit: Visit) -> None:
        """`DELETE /console/session`: sign out."""
        cookies.require_own_page(visit.request)
        await self._end_shown(visit)
        visit.announce(cookies.ended(is_secure=self._is_secure(visit.request)))
        await visit.responder.start(204, [_NO_STORE])
        await visit.responder.finish()

    async def leave(self, visit: Visit) -> None:
        """`GET /console/sign-in?issuer=…`: to the issuer's page."""
        sign_on = self._identity.sign_ons.get(visit.request.query("issuer") or "")
        if sign_on is None:
            raise ResourceNotFound
        with self._one_open():
            departure = await sign_on.departure(self._address(visit.request) + RETURN_PATH)
        carried = cookies.sign_on_begun(departure.carried, CARRIED_S, is_secure=self._is_secure(visit.request))
        await visit.responder.whole(302, b"", [(b"location", departure.url.encode("ascii")), carried, _NO_STORE])

    async def come_back(self, visit: Visit) -> None:
        """`GET /console/callback`: from the issuer's page. Raises Unauthenticated and IssuerUnavailable, once the browser is on its way."""
        visit.announce(cookies.sign_on_ended(is_secure=self._is_secure(visit.request)), _NO_STORE, *files.GUARDS)
        try:
            with self._one_open():
                await self._arrive(visit)
        except ApiError as error:
            # A browser is shown the page, and logs and audit the error.
            await visit.responder.whole(error.status, _leading(_reason(visit.request, error)), [_ALONE], _HTML)
            raise
        # A redirect would still come from the issuer's page, and a browser not show the new cookie.
        await visit.responder.whole(200, _leading(""), [_ALONE], _HTML)

    async def _arrive(self, visit: Visit) -> None:
        query = visit.request.query
        carried = self._identity.slips.read(cookies.sign_on(visit.request), query("state"))
        sign_on, code = self._identity.sign_ons.get(carried.issuer), query("code")
        if sign_on is None or not code or len(code) > _CODE_CHARS_MAX:
            raise Unauthenticated("The issuer of single sign-on has not signed anyone in.")
        verified = await sign_on.arrival(carried, code)
        visit.record.caller = caller = await self._identity.of_person(verified)
        await self._taken_in(visit, caller, carried.issuer)

    async def _taken_in(self, visit: Visit, caller: Caller, issuer: str | None = None) -> str:
        """Begin a session in place of the one that the browser had; returns its word."""
        await self._end_shown(visit)
        begun = await self._sessions.begin(caller, issuer)
        lasts_s = self._sessions.lasts_s
        visit.announce(cookies.begun(begun.word, lasts_s, is_secure=self._is_secure(visit.request)))
        return begun.word

    async def _end_shown(self, visit: Visit) -> None:
        if (word := cookies.session(visit.request)) is None:
            return
        try:
            caller = await self._identity.identify(visit.request)
        except Unauthenticated:
            caller = None
        ended = await self._sessions.end(word, caller)
        # Other gateways read of it in a moment.
        self._identity.forget(News(0, [Change(Kind.SESSION, ended)]))

    async def _who(self, visit: Visit, word: str) -> Who | None:
        visit.record.caller = caller = await self._identity.identify(visit.request)
        return await self._of(caller, word)

    async def _of(self, caller: Caller, word: str) -> Who | None:
        shown = await self._sessions.shown(word)
        if shown is None:
            return None
        return Who(
            caller.tenant,
            caller.tenant_id,
            caller.key_id,
            shown.key_name,
            shown.user,
            caller.role,
            sorted(caller.rights),
            shown.ends_at,
        )

    async def _answer(self, visit: Visit, who: Who | None) -> None:
        standing = Standing(self._settings.title, self._version, self._currency, self._sign_ins, who)
        await visit.responder.whole(200, msgspec.json.encode(standing), [_NO_STORE])

    @contextmanager
    def _one_open(self) -> Iterator[None]:
        if self._open >= OPEN_MAX:
            raise GatewayFull("Too many people sign in at this moment; please try again.", retry_after_s=1)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def _is_secure(self, request: Request) -> bool:
        return cookies.is_secure(request, self._settings.url)

    def _address(self, request: Request) -> str:
        if self._settings.url is not None:
            return self._settings.url
        host = request.header("host") or ""
        if not _HOST.fullmatch(host):
            raise InvalidRequest("The request names no host.")
        return f"{request.scheme}://{host}"


def _sign_in(issuer: str) -> SignIn:
    return SignIn(issuer, urlsplit(issuer).netloc, f"{SIGN_ON_PATH}?issuer={quote(issuer, safe='')}")


def _reason(request: Request, error: ApiError) -> str:
    """The word by which the page says why no one was signed in."""
    if request.query("error") == "access_denied":
        return "denied"
    if isinstance(error, (IssuerUnavailable, StoreUnavailable, GatewayFull)):
        return "unavailable"
    return "expired" if isinstance(error, SessionEnded) else "refused"


_HTML = b"text/html; charset=utf-8"
_ALONE: Header = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'")


def _leading(reason: str) -> bytes:
    """A page that leads on to the console's, without a script."""
    place = f"{files.PATH}#/sign-in?error={reason}" if reason else files.PATH
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Signing in</title>'
        f'<meta http-equiv="refresh" content="0;url={place}"><p><a href="{place}">Go on to the console</a></p></html>'
    ).encode()
