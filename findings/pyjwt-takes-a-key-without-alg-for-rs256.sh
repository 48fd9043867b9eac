#!/bin/sh
# PyJWT 2.15.1: an RSA key that publishes no `alg` verifies RS256 and nothing else, whatever `algorithms` allows
#
# Expected: a key's `alg` is optional (RFC 7517, section 4.4); without it a key is for any algorithm of its kind, and
#   `algorithms` says which of them are taken. A token by RS512 or PS256 and the issuer's own key, found by PyJWKClient, verifies
#   under algorithms=["RS256", "RS512", "PS256"], as one by RS256 does.
# Seen: InvalidAlgorithmError: "Token algorithm 'RS512' does not match the key's algorithm 'RS256'", though no key says RS256: PyJWK
#   guesses it from `kty`, and the guess then counts as what the key says. The same key made with PyJWK(data, "RS512") verifies.
# Version: PyJWT 2.15.1, cryptography 50.0.2, Python 3.11, Linux x86-64.
# Output seen:
#   RS256: verified
#   RS512: InvalidAlgorithmError
#   PS256: InvalidAlgorithmError
#   RS512, the key made for it: verified
# Source: https://www.rfc-editor.org/rfc/rfc7517#section-4.4
#   https://github.com/jpadilla/pyjwt/blob/2.15.1/jwt/api_jwk.py
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyjwt==2.15.1 cryptography==50.0.2
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

key = rsa.generate_private_key(65537, 2048)
published = json.loads(RSAAlgorithm.to_jwk(key.public_key())) | {"kid": "a", "use": "sig"}


class Issuer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"keys": [published]}).encode())

    def log_message(self, *args):
        pass


server = HTTPServer(("127.0.0.1", 0), Issuer)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = jwt.PyJWKClient(f"http://127.0.0.1:{server.server_port}/")


def tried(algorithm, made_for=None):
    """How a token by this algorithm is taken."""
    token = jwt.encode({"sub": "ada"}, key, algorithm, headers={"kid": "a"})
    known = jwt.PyJWK(published, made_for) if made_for else client.get_signing_key_from_jwt(token)
    try:
        jwt.decode(token, known, algorithms=["RS256", "RS512", "PS256"])
    except jwt.PyJWTError as error:
        return type(error).__name__
    return "verified"


assert "alg" not in published
seen = {name: tried(name) for name in ("RS256", "RS512", "PS256")}
seen["RS512, the key made for it"] = tried("RS512", "RS512")
for name, how in seen.items():
    print(f"{name}: {how}")
sys.exit(0 if list(seen.values()) == ["verified", "InvalidAlgorithmError", "InvalidAlgorithmError", "verified"] else 1)
PYTHON
