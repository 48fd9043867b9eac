"""An OpenID Connect issuer on loopback, with real keys: it signs people in, rotates, hangs and goes away on cue."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any
from urllib.parse import unquote_plus, urlencode

import aiohttp
import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from serving import config

AUDIENCE = "api://serving"
#: Whose tokens they are unless a test says otherwise. No digest can have this in it by chance, as it could three letters.
PERSON = "ada@acme.example"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@cache
def private_key(algorithm: str, number: int = 0) -> PrivateKey:
    """A real key of the kind that an algorithm takes; made once in a run, because RSA's take a tenth of a second."""
    match algorithm[:2]:
        case "RS" | "PS":
            return rsa.generate_private_key(65537, 2048)
        case "Ed":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
            return ec.generate_private_key(curves[algorithm])


def public_jwk(key: PrivateKey, **more: str) -> dict[str, Any]:
    """A key as a JWKS has it."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        text = RSAAlgorithm.to_jwk(public)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        text = ECAlgorithm.to_jwk(public)
    else:
        text = OKPAlgorithm.to_jwk(public)
    document: dict[str, Any] = json.loads(text)
    return document | {"use": "sig"} | more


def unsigned(claims: dict[str, Any]) -> str:
    """A token with `alg: none`."""
    parts = [json.dumps(it).encode() for it in ({"alg": "none", "kid": "RS256-0"}, claims)]
    return ".".join(base64.urlsafe_b64encode(it).rstrip(b"=").decode() for it in parts) + "."


class Issuer:
    """What it publishes, and what it was asked."""

    def __init__(self) -> None:
        self.url = "https://sso.example.com"
        self.keys: dict[str, PrivateKey] = {}
        self.kid = ""
        self.algorithm = ""
        #: Questions for discovery and for keys.
        self.discovered = 0
        self.asked = 0
        self.status = 200
        #: In place of its JWKS.
        self.document: object = None
        #: Answers wait for it.
        self.gate = asyncio.Event()
        self.gate.set()
        #: What its ID tokens say besides, whose key signs them in its place, and the client's secret, where it has one.
        self.says: dict[str, object] = {}
        self.signer: PrivateKey | None = None
        self.secret: str | None = None
        self.ways = ["client_secret_basic"]
        #: Codes wait for it, and how many have.
        self.redeems = asyncio.Event()
        self.redeems.set()
        self.redeeming = 0
        #: Code → what it was asked with.
        self._codes: dict[str, dict[str, str]] = {}
        self._runner: web.AppRunner | None = None
        self._port = 0
        self.rotate("RS256")

    def rotate(self, algorithm: str = "RS256", *, keeps_old: bool = False) -> str:
        """Sign with another key from now on; the one before is published on or withdrawn. Returns its name."""
        number = len(self.keys) if keeps_old else int(self.kid.rpartition("-")[2] or "-1") + 1
        kid = f"{algorithm}-{number}"
        before = self.keys if keeps_old else {}
        self.keys = before | {kid: private_key(algorithm, number % 4)}
        self.kid, self.algorithm = kid, algorithm
        return kid

    def jwks(self) -> dict[str, Any]:
        return {"keys": [public_jwk(key, kid=kid) for kid, key in self.keys.items()]}

    def claims(self, **changed: object) -> dict[str, Any]:
        """What its tokens say, and what is changed of it; None takes a claim out."""
        now = int(time.time())
        plain = {"iss": self.url, "aud": AUDIENCE, "sub": PERSON, "team": "acme", "iat": now, "exp": now + 3600}
        return {name: value for name, value in (plain | changed).items() if value is not None}

    def token(
        self, *, kid: str | None = "", algorithm: str = "", key: PrivateKey | None = None, **changed: object
    ) -> str:
        """A token, signed with its newest key unless another is given. `kid=None`: it names no key."""
        headers = {} if kid is None else {"kid": kid or self.kid}
        return jwt.encode(
            self.claims(**changed), key or self.keys[self.kid], algorithm or self.algorithm, headers=headers
        )

    def settings(self, **changed: object) -> config.Issuer:
        """Trust in it: the tenant is in the claim `team`."""
        plain = {"issuer": self.url, "audiences": (AUDIENCE,), "tenant_claim": "team"}
        return config.Issuer(**plain | changed)  # type: ignore[arg-type]

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/.well-known/openid-configuration", self._discover)
        app.router.add_get("/keys", self._show_keys)
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/token", self._redeem)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        """Go away; `start` brings it back at the same address."""
        if self._runner is not None:
            self.gate.set()
            await self._runner.cleanup()
            self._runner = None

    async def _discover(self, _: web.Request) -> web.Response:
        self.discovered += 1
        places = {
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "token_endpoint_auth_methods_supported": self.ways,
        }
        return web.json_response({"issuer": self.url} | places)

    async def _authorize(self, request: web.Request) -> web.Response:
        """Who comes is signed in at once."""
        asked = dict(request.query)
        code = secrets.token_urlsafe()
        self._codes[code] = asked
        back = f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"
        return web.Response(status=302, headers={"location": back})

    async def _redeem(self, request: web.Request) -> web.Response:
        """As RFC 6749 and RFC 7636 have it: a code once, for its address, its verifier and its client."""
        form = await request.post()
        self.redeeming += 1
        await self.redeems.wait()
        asked = self._codes.pop(str(form.get("code")), None)
        if asked is None or asked["redirect_uri"] != form.get("redirect_uri"):
            return web.json_response({"error": "invalid_grant"}, status=400)
        digest = hashlib.sha256(str(form.get("code_verifier")).encode()).digest()
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        if self._client(request, form) != (asked["client_id"], self.secret):
            return web.json_response({"error": "invalid_client"}, status=401)
        said = {"aud": asked["client_id"], "nonce": asked["nonce"]} | self.says
        token = self.token(key=self.signer, **said)  # type: ignore[arg-type] # claims of any kind
        return web.json_response({"token_type": "Bearer", "access_token": "-", "id_token": token})

    def _client(self, request: web.Request, form: Mapping[str, object]) -> tuple[object, object]:
        header = request.headers.get("authorization")
        if header is None:
            return form.get("client_id"), form.get("client_secret")
        login = aiohttp.BasicAuth.decode(header)
        return unquote_plus(login.login), unquote_plus(login.password)

    async def _show_keys(self, _: web.Request) -> web.Response:
        self.asked += 1
        document = self.jwks() if self.document is None else self.document
        await self.gate.wait()
        return web.json_response(document, status=self.status)


@asynccontextmanager
async def running() -> AsyncIterator[Issuer]:
    """An issuer until the end of the block."""
    issuer = Issuer()
    await issuer.start()
    try:
        yield issuer
    finally:
        await issuer.stop()
