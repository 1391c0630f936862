"""The choice between page and JSON: content negotiation with weights (RFC 9110, section 12.5.1).

Weights decide when a client names both types, or accepts only one. Otherwise it accepts anything, and then only browsers get a page:
they name `application/xhtml+xml`, and the form of the browsable API sends `X-Requested-With`. Programs that do not set the header
send lists such as `text/html, image/gif, */*; q=0.2` (Java) and get JSON.
"""

from __future__ import annotations

from functools import lru_cache

#: Distinct Accept headers whose result is cached.
REMEMBERED_MAX = 1024


@lru_cache(maxsize=REMEMBERED_MAX)
def prefers_page(accept: bytes, from_form: bool = False) -> bool:
    """Whether a client that sends this Accept header wants a page.

    Args:
        accept: the header's value; b"" when there is none.
        from_form: the request has the header `X-Requested-With: XMLHttpRequest`.
    """
    if b"text/html" not in accept:
        return False
    weights = _weights(accept.decode("latin-1").lower())
    html = _weight_of("text/html", weights)
    json = _weight_of("application/json", weights)
    if json == 0.0:
        return html > 0.0
    if from_form:
        return html >= json
    names_both = "application/json" in weights
    return html > json and (names_both or "application/xhtml+xml" in weights)


def _weights(accept: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in accept.split(","):
        media_type, *parameters = (text.strip() for text in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = min(max(float(value), 0.0), 1.0)
                except ValueError:
                    weight = 0.0
        weights[media_type] = max(weight, weights.get(media_type, 0.0))
    return weights


def _weight_of(media_type: str, weights: dict[str, float]) -> float:
    """The weight of the most specific range that matches."""
    for pattern in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        if pattern in weights:
            return weights[pattern]
    return 0.0


def is_page(path: str, accept: bytes, from_form: bool, page_prefixes: tuple[str, ...]) -> bool:
    """Whether the web server answers: the landing page, what is below `page_prefixes`, and the pages of API calls.

    The API answers everything else: a program that requests an unknown path gets a problem document, not a page.
    """
    return path == "/" or path.startswith(page_prefixes) or prefers_page(accept, from_form)
