"""Who may ask: tokens, JSON Web Tokens and the keys they are signed with."""

from __future__ import annotations

import base64
import json
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from ehrseq.errors import UserError
from ehrseq.serve.credentials import Credentials
from ehrseq.serve.problems import Problem
from ehrseq.serve.settings import Settings
from tests.serve.conftest import outcome_text

TOKEN = "0123456789abcdef0123456789abcdef"
AUDIENCE = "https://ehr.example/ehrseq"
EC_KEY, OTHER_EC = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)


def public(key, name):
    algorithm = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": name, "use": "sig"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "jwks.json").write_text(json.dumps({"keys": [public(EC_KEY, "e"), public(RSA_KEY, "r")]}))
    return folder


@pytest.fixture(scope="module")
def signed(serve, files):
    return serve(credentials=Credentials.from_files(None, files / "jwks.json", [AUDIENCE], ["https://ehr.example"]))


def claims(**changed):
    now = int(time.time())
    made = {"iss": "https://ehr.example", "aud": AUDIENCE, "exp": now + 60, "iat": now, **changed}
    return {name: value for name, value in made.items() if value is not None}


def asked(client, token):
    return client.get("/model", headers={"authorization": f"Bearer {token}"})


@pytest.mark.parametrize(("key", "algorithm", "name"), [(EC_KEY, "ES384", "e"), (RSA_KEY, "RS384", "r")])
def test_a_token_signed_for_this_service_is_accepted(signed, key, algorithm, name):
    assert asked(signed, jwt.encode(claims(), key, algorithm, headers={"kid": name})).status_code == 200


PUBLIC = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def by_hand(header, payload, signature=b""):
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(p).rstrip(b"=").decode() for p in parts)


def by_key(header, payload):
    """Signed as it should be, so that the signature is not what it is refused for."""
    unsigned = by_hand(header, payload).rpartition(".")[0]
    made = ECAlgorithm(ECAlgorithm.SHA384).sign(unsigned.encode(), EC_KEY)
    return f"{unsigned}.{base64.urlsafe_b64encode(made).rstrip(b'=').decode()}"


def test_what_is_signed_by_hand_is_accepted_where_nothing_else_is_wrong(signed):
    assert asked(signed, by_key({"alg": "ES384", "kid": "e"}, claims())).status_code == 200


@pytest.mark.parametrize("changed", ["aud", "exp", "nbf"])
def test_one_audience_in_a_list_and_clocks_that_differ_a_little(files, changed):
    held = Credentials.from_files(None, files / "jwks.json", [AUDIENCE], ["https://ehr.example"])
    now = int(time.time())
    value = {"aud": [AUDIENCE], "exp": now - 5, "nbf": now + 5}[changed]
    token = jwt.encode(claims(**{changed: value}), EC_KEY, "ES384", headers={"kid": "e"})
    assert held.check(f"Bearer {token}") == "issuer https://ehr.example"


def test_the_caller_is_logged_and_limited_whatever_the_address(files, tmp_path):
    import asyncio

    from ehrseq.serve.bounds import Rates
    from ehrseq.serve.guard import Guard
    from ehrseq.serve.metrics import Metrics

    held = Credentials.from_files(files / "token", files / "jwks.json", [AUDIENCE], ["https://ehr.example"])
    settings = Settings(credentials=held, rate=30, access_log=tmp_path / "log")

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(app, settings, Metrics())
    guard.rates = Rates(30, lambda: 0.0)
    statuses = []

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    signed_token = jwt.encode(claims(), EC_KEY, "ES384", headers={"kid": "e"})
    for number in range(4):
        for token in (TOKEN, signed_token):
            client = (f"10.0.{number}.{len(token) % 7}", 1)
            scope = {"type": "http", "method": "GET", "path": "/model", "client": client,
                     "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {token}".encode())]}  # fmt: skip
            asyncio.run(guard(scope, None, send))
    guard.log.close()
    assert statuses == [200] * 6 + [429] * 2
    lines = (tmp_path / "log").read_text()
    assert [json.loads(line)["caller"] for line in lines.splitlines()][:2] == ["token", "issuer https://ehr.example"]
    assert TOKEN not in lines
    assert signed_token not in lines


@pytest.mark.parametrize("path", ["/health", "/ready", "/"])
def test_who_watches_may_ask_for_the_head_alone(serve, path):
    client = serve()
    if path != "/ready":
        assert client.head(path).status_code == 200
    other = client.get(path, headers={"host": "10.1.2.3"})
    assert other.status_code == (421 if path == "/" else 200)  # a watcher asks by address


def forged():
    good = jwt.encode(claims(), EC_KEY, "ES384", headers={"kid": "e"})
    head, body, signature = good.split(".")
    import hashlib
    import hmac

    # the public key as the secret of an HMAC: what a service falls for that believes the header
    confused = by_hand({"alg": "HS256", "kid": "r"}, claims()).rsplit(".", 1)[0]
    mac = base64.urlsafe_b64encode(hmac.new(PUBLIC, confused.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()

    def ec_signed(key=EC_KEY, kid="e", **changed):
        return jwt.encode(claims(**changed), key, "ES384", headers={"kid": kid})

    return {
        "expired": ec_signed(exp=int(time.time()) - 40),
        "without exp": ec_signed(exp=None),
        "without aud": ec_signed(aud=None),
        "other aud": ec_signed(aud="https://other.example"),
        "aud that only begins so": ec_signed(aud=AUDIENCE + "/"),
        "several aud": ec_signed(aud=[AUDIENCE, "https://other.example"]),
        "no aud in a list": ec_signed(aud=[]),
        "other aud in a list": ec_signed(aud=["https://other.example"]),
        "other issuer": ec_signed(iss="https://other.example"),
        "not yet": ec_signed(nbf=int(time.time()) + 3600),
        "other key": ec_signed(key=OTHER_EC),
        "unknown key": ec_signed(kid="x"),
        "no key named": jwt.encode(claims(), EC_KEY, "ES384"),
        "key of the other kind": jwt.encode(claims(), RSA_KEY, "RS384", headers={"kid": "e"}),
        "weaker hash": jwt.encode(claims(), RSA_KEY, "RS256", headers={"kid": "r"}),
        "padding of another kind": jwt.encode(claims(), RSA_KEY, "PS384", headers={"kid": "r"}),
        "none": by_hand({"alg": "none", "kid": "e"}, claims()),
        "None": by_hand({"alg": "None", "kid": "e"}, claims(), b"x"),
        "HS256 with the public key": f"{confused}.{mac}",
        "changed": f"{head}.{by_hand({}, claims(iss='x')).split('.')[1]}.{signature}",
        "cut off": good[:-4],
        "no signature": f"{head}.{body}.",
        "signature of zeros": f"{head}.{body}.{base64.urlsafe_b64encode(bytes(96)).rstrip(b'=').decode()}",
        "no token": "x",
        "long": "a" * 10_000,
        "exp as text": by_key({"alg": "ES384", "kid": "e"}, claims(exp="never")),
        "header is a list": by_key([], claims()),
        "claims are a list": by_key({"alg": "ES384", "kid": "e"}, []),
        "kid is an object": by_key({"alg": "ES384", "kid": {"a": 1}}, claims()),
    }


@pytest.mark.parametrize("name", forged())
def test_any_other_token_is_refused(signed, name):
    reply = asked(signed, forged()[name])
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")
    # whichever check failed, the answer is one and the same
    assert outcome_text(reply).startswith("expected a")


@pytest.mark.parametrize("header", [None, "", "Basic abc", "Bearer", TOKEN, "bearer wrong-wrong-wrong-wrong"])
def test_a_token_is_needed(serve, files, header):
    client = serve(credentials=Credentials.from_files(files / "token"))
    headers = {} if header is None else {"authorization": header}
    for method, path in (
        ("GET", "/model"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/cds-services"),
        ("POST", "/forecast"),
        ("GET", "/nope"),
    ):
        reply = client.request(method, path, headers=headers)
        assert reply.status_code == 401, path
        outcome_text(reply)
    for path in ("/health", "/ready", "/"):
        assert client.get(path, headers=headers).status_code == 200


def test_the_token_opens_what_there_is(serve, files, simulated):
    client = serve(credentials=Credentials.from_files(files / "token"))
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert client.post("/forecast", json=simulated.some(1)[0], headers=headers).status_code == 200


def test_another_address_needs_credentials(files):
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(UserError, match="token file or a key set"):
            Settings(host=host)
    Settings(host="0.0.0.0", credentials=Credentials.from_files(files / "token"))


BAD_KEYS = {
    "no JSON": b"{",
    "a list": b"[]",
    "no keys": b'{"keys": []}',
    "a secret": b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}',
    "another curve": json.dumps({"keys": [public(ec.generate_private_key(ec.SECP256R1()), "a")]}).encode(),
    "short": json.dumps({"keys": [public(rsa.generate_private_key(65537, 1024), "a")]}).encode(),
    "private": json.dumps({"keys": [json.loads(ECAlgorithm.to_jwk(EC_KEY))]}).encode(),
    "two of one name": json.dumps({"keys": [public(EC_KEY, "a"), public(OTHER_EC, "a")]}).encode(),
    "for encryption": json.dumps({"keys": [{**public(EC_KEY, "a"), "use": "enc"}]}).encode(),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_key_set_that_cannot_be_used(tmp_path, name):
    (tmp_path / "keys").write_bytes(BAD_KEYS[name])
    with pytest.raises(UserError, match="JSON Web Key Set of P-384 or RSA public keys"):
        Credentials.from_files(None, tmp_path / "keys", [AUDIENCE])


def test_files_that_cannot_be_used(tmp_path, files):
    (tmp_path / "short").write_text("secret")
    for asked_for in (
        (tmp_path / "short",),
        (tmp_path / "none",),
        (None, files / "jwks.json"),
        (None, None, [AUDIENCE]),
    ):
        with pytest.raises(UserError):
            Credentials.from_files(*asked_for)


def test_secrets_are_not_shown(files):
    held = Credentials.from_files(files / "token")
    assert TOKEN not in repr(held)
    with pytest.raises(Problem):
        held.check("Bearer x")
