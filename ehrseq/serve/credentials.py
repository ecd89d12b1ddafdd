"""Who may ask: the holder of the token, or of a signed JSON Web Token."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from ehrseq.errors import UserError
from ehrseq.serve.problems import Problem

ALGORITHMS = ("ES384", "RS384")  # those of CDS Hooks and SMART; nothing shared, and never `none`
SHORTEST = 20  # characters of a token
LEAST_RSA_BITS = 2048
LEEWAY = 30  # seconds that two clocks may differ
LONGEST = 8192  # characters of an Authorization header


@dataclass(frozen=True)
class Credentials:
    """What is accepted. Without a token and without keys, everyone is."""

    token: str | None = field(default=None, repr=False)
    keys: Mapping[str, tuple[str, Any]] = field(default_factory=dict, repr=False)
    """By key id: the algorithm and the public key."""
    audiences: tuple[str, ...] = ()
    issuers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.token is not None or bool(self.keys)

    @classmethod
    def from_files(
        cls, token_file: Path | None = None, jwks: Path | None = None, audiences: Sequence[str] = (),
        issuers: Sequence[str] = (),
    ) -> Credentials:  # fmt: skip
        """What these files hold: a token on one line, and a JSON Web Key Set. Raises UserError."""
        if (jwks is None) != (not audiences) or (issuers and jwks is None):
            raise UserError("a key set and the audience of its tokens", "one of the two", "give --jwks and --audience")
        token = None if token_file is None else _read(token_file, "a token file").decode("utf-8", "replace").strip()
        if token is not None and (len(token) < SHORTEST or not token.isascii() or not token.isprintable()):
            raise UserError(
                f"a token of at least {SHORTEST} plain characters", "another", "make one: openssl rand -hex 32"
            )
        keys = {} if jwks is None else read_keys(_read(jwks, "a JSON Web Key Set"))
        return cls(token, keys, tuple(audiences), tuple(issuers))

    def check(self, authorization: str | None) -> str:
        """Who asks, as a word that rates are kept by. Raises Problem 401 for a caller who is not known."""
        if not self:
            return ""
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip()
        if scheme.lower() != "bearer" or not given or len(given) > LONGEST:
            raise _unauthorised("a bearer token", "none", "")
        if self.token is not None and hmac.compare_digest(given.encode(), self.token.encode()):
            return "token"
        if not self.keys:
            raise _unauthorised("the token of this service", "another", 'error="invalid_token"')
        return self._signed(given)

    def _signed(self, given: str) -> str:
        """The issuer of a JSON Web Token that is signed by one of the keys, in time, and for this service."""
        try:
            header = jwt.get_unverified_header(given)
            algorithm, key = self._key(header)
            claims = jwt.decode(
                given, key, algorithms=[algorithm], leeway=LEEWAY,
                options={"require": ["exp", "aud"], "verify_aud": False, "verify_iss": False},
            )  # fmt: skip
        except (jwt.PyJWTError, ValueError, TypeError):
            raise _refused() from None
        issuer, audience = claims.get("iss"), claims["aud"]
        if isinstance(audience, list) and len(audience) == 1:  # as RFC 7519 writes it too
            [audience] = audience
        if audience not in self.audiences or (self.issuers and issuer not in self.issuers):
            raise _refused()
        return f"issuer {issuer}"[:200]

    def _key(self, header: Mapping[str, Any]) -> tuple[str, Any]:
        """The one key that a token may be signed with; its algorithm is the key's, not what the token says."""
        named = header.get("kid")
        found = next(iter(self.keys.values())) if named is None and len(self.keys) == 1 else self.keys.get(str(named))
        if found is None or header.get("alg") != found[0]:
            raise _refused()
        return found


def read_keys(raw: bytes) -> dict[str, tuple[str, Any]]:
    """The public keys of a JSON Web Key Set by key id, with the algorithm of each: P-384 and RSA keys alone.

    Raises UserError for a set that holds another kind of key, a short one, or none.
    """
    wanted = "a JSON Web Key Set of P-384 or RSA public keys"
    try:
        listed = msgspec.json.decode(raw)["keys"]
        keys = [(item.get("kid"), item.get("use", "sig"), jwt.PyJWK(item, algorithm=_algorithm(item)).key)
                for item in listed]  # fmt: skip
    except (msgspec.DecodeError, jwt.PyJWTError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(wanted, f"what cannot be read as one ({type(error).__name__})", "check the file") from None
    found: dict[str, tuple[str, Any]] = {}
    for number, (name, use, key) in enumerate(keys):
        if use != "sig":
            continue
        if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP384R1):
            algorithm = "ES384"
        elif isinstance(key, RSAPublicKey) and key.key_size >= LEAST_RSA_BITS:
            algorithm = "RS384"
        else:
            raise UserError(wanted, "another kind of key, a private or a short one", "leave it out of the set")
        called = str(name if name is not None else f"#{number}")
        if called in found:
            raise UserError(wanted, "two keys of one `kid`", "leave out the one that is not used")
        found[called] = (algorithm, key)
    if not found:
        raise UserError(wanted, "no key for signatures", "add the public keys of those who may ask")
    return found


def _algorithm(item: Mapping[str, Any]) -> str:
    return "ES384" if item.get("kty") == "EC" else "RS384"


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(what, f"a file that cannot be read ({type(error).__name__})", "check the path") from None


def _refused() -> Problem:
    # one answer for all: it does not say which check failed
    return _unauthorised("a token signed for this service and in time", "another", 'error="invalid_token"')


def _unauthorised(expected: str, found: str, error: str) -> Problem:
    challenge = f"Bearer {error}".strip()
    return Problem(
        401, f"expected {expected}; found {found}; ask whoever runs this service", {"WWW-Authenticate": challenge}
    )
