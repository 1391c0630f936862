"""AWS Signature Version 4: who signed a request, and whether the signature is right. Pure functions of the request and the secrets.

The access key is the id of a token, and the secret key is the token's secret: the part behind the second underscore of `dss1_ID_SECRET`.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple
from urllib.parse import parse_qsl, quote

from dss_queue.sqs.errors import SqsError

ALGORITHM = "AWS4-HMAC-SHA256"
#: How far the clocks of client and node may differ, as at AWS.
SKEW_S_MAX = 900
_PARTS = re.compile(r"Credential=([^,\s]{1,200}),\s*SignedHeaders=([a-z0-9;_-]{1,4000}),\s*Signature=([0-9a-f]{64})")

Headers = Sequence[tuple[bytes, bytes]]


class Signed(NamedTuple):
    """The `Authorization` header of a signed request."""

    access_key: str
    #: date, region, service and "aws4_request"
    scope: tuple[str, str, str, str]
    headers: tuple[str, ...]
    signature: str

    @property
    def region(self) -> str:
        return self.scope[1]


def read(authorization: bytes) -> Signed:
    """Raises:
    SqsError: it is no such header.
    """
    text = authorization.decode("latin-1")
    scheme, _, rest = text.partition(" ")
    if scheme != ALGORITHM:
        raise SqsError("MissingAuthenticationToken", "The request must be signed with AWS Signature Version 4.", 403)
    parts = _PARTS.fullmatch(rest.strip())
    credential = parts[1].split("/") if parts else []
    if parts is None or len(credential) != 5 or credential[4] != "aws4_request":
        raise SqsError("IncompleteSignature", "The Authorization header is not one of Signature Version 4.", 400)
    key, date, region, service, end = credential
    return Signed(key, (date, region, service, end), tuple(parts[2].split(";")), parts[3])


def verify(
    signed: Signed, secrets: Iterable[str], method: str, target: bytes, headers: Headers, body: bytes, now_s: float
) -> None:
    """Raises:
    SqsError: the request was not signed with one of these secrets, or too long ago.
    """
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.decode("latin-1"), []).append(" ".join(value.decode("latin-1").split()))
    stamp = (values.get("x-amz-date") or [""])[0]
    try:
        signed_s = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise SqsError("IncompleteSignature", "The header X-Amz-Date is missing or malformed.", 400) from None
    if abs(now_s - signed_s) > SKEW_S_MAX:
        now = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%SZ")
        word = "expired" if signed_s < now_s else "not yet current"
        raise SqsError(
            "SignatureDoesNotMatch",
            f"Signature {word}: {stamp} and the time of the node, {now}, differ by more than 15 min.",
            403,
        )
    if len(set(signed.headers)) != len(signed.headers):
        # What is signed would be as long as a header times its repetitions.
        raise SqsError("IncompleteSignature", "A header is named twice in SignedHeaders.", 400)
    if not {"host", "x-amz-date"} <= set(signed.headers) or stamp[:8] != signed.scope[0]:
        raise SqsError(
            "IncompleteSignature", "The headers Host and X-Amz-Date must be signed, with the date of the credential.", 400
        )
    request = _canonical(signed, method, target, values, body)
    text = "\n".join((ALGORITHM, stamp, "/".join(signed.scope), sha256(request.encode()).hexdigest()))
    if not any(hmac.compare_digest(_sign(secret, signed.scope, text), signed.signature) for secret in secrets):
        message = (
            "The request signature we calculated does not match the signature you provided. "
            "Check your AWS Secret Access Key and signing method."
        )
        raise SqsError("SignatureDoesNotMatch", message, 403)


def _canonical(signed: Signed, method: str, target: bytes, values: dict[str, list[str]], body: bytes) -> str:
    path, _, query = target.decode("latin-1").partition("?")
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(text, safe="-_.~")) for name, text in parse_qsl(query, keep_blank_values=True)
    )
    lines = [f"{name}:{','.join(values.get(name, []))}\n" for name in signed.headers]
    return "\n".join(
        (
            method,
            quote(path, safe="/~"),
            "&".join(f"{name}={text}" for name, text in pairs),
            "".join(lines),
            ";".join(signed.headers),
            sha256(body).hexdigest(),
        )
    )


def _sign(secret: str, scope: tuple[str, str, str, str], text: str) -> str:
    key = f"AWS4{secret}".encode()
    for part in scope:
        key = hmac.digest(key, part.encode(), sha256)
    return hmac.digest(key, text.encode(), sha256).hex()
