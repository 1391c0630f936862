"""The older query protocol of AWS: a form as the request, and XML as the answer. Pure translations from and to the JSON protocol.

In a form, `MessageAttribute.1.Name=a` and `MessageAttribute.1.Value.DataType=String` are the JSON
`{"MessageAttributes": {"a": {"DataType": "String"}}}`. SNS, which has no JSON protocol, writes `MessageAttributes.entry.1.Name=a`.
"""

from __future__ import annotations

import binascii
import re
from typing import Any
from xml.sax.saxutils import escape

from dss_queue.sqs.dialect import Dialect
from dss_queue.sqs.errors import SqsError, bad_value

#: of one request: a batch of 10 messages with 10 attributes each has fewer
FIELDS_MAX = 1000
DEPTH_MAX = 8
#: of the name of a field, as it was sent
NAME_BYTES_MAX = 1024
#: of the action, and of what names its queue, as they were sent
SHORT_BYTES_MAX = 8192
#: name in a form -> name in JSON
LISTS = {
    "AttributeName": "AttributeNames",
    "MessageSystemAttributeName": "MessageSystemAttributeNames",
    "MessageAttributeName": "MessageAttributeNames",
    "TagKey": "TagKeys",
    "AWSAccountId": "AWSAccountIds",
    "ActionName": "Actions",
}
MAPS = {
    "Attribute": "Attributes",
    "MessageAttribute": "MessageAttributes",
    "MessageSystemAttribute": "MessageSystemAttributes",
    "Tag": "Tags",
}
#: name in JSON -> element of each value
ELEMENTS = {
    "QueueUrls": "QueueUrl",
    "queueUrls": "QueueUrl",
    "Messages": "Message",
    "Failed": "BatchResultErrorEntry",
    "Results": "ListMessageMoveTasksResultEntry",
    **{json: form for form, json in MAPS.items()},
}
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Tree = dict[str, Any]


def fields_of(query: bytes, body: bytes) -> dict[str, bytes]:
    """The fields of a request, from its query string and its body. Their values are as they were sent: decoding takes longer.

    Raises:
        SqsError: it has too many fields, or one whose name is too long or cannot be decoded.
    """
    parts = [part for part in (query, body) if part]
    if sum(part.count(b"&") + 1 for part in parts) > FIELDS_MAX:
        raise SqsError("MalformedQueryString", f"The request has more than {FIELDS_MAX} fields.")
    fields = {}
    for field in (one for part in parts for one in part.split(b"&") if one):
        name, _, value = field.partition(b"=")
        if len(name) > NAME_BYTES_MAX:
            raise SqsError("MalformedQueryString", f"The name of a field is longer than {NAME_BYTES_MAX} bytes.")
        fields[text_of(name)] = value
    return fields


def short_text(fields: dict[str, bytes], name: str) -> str:
    """A value that is needed before the others. "": there is none.

    Raises:
        SqsError: it is too long, or cannot be decoded.
    """
    value = fields.get(name, b"")
    if len(value) > SHORT_BYTES_MAX:
        raise bad_value(f"The parameter {name} is too long.")
    return text_of(value)


def form_of(fields: dict[str, bytes]) -> dict[str, str]:
    """The fields with decoded values.

    Raises:
        SqsError: a value cannot be decoded.
    """
    return {name: text_of(value) for name, value in fields.items()}


def text_of(text: bytes) -> str:
    """A percent-encoded text. Quoted-printable has a decoder in C, which takes a fraction of the time of urllib's.

    Raises:
        SqsError: it has a `%` that is no escape, or is not UTF-8.
    """
    text = text.replace(b"+", b" ")
    escapes = text.count(b"%")
    if not escapes:
        return _utf8(text)
    found = binascii.a2b_qp(text.replace(b"=", b"=3D").replace(b"%", b"="))
    # It keeps what is no escape, and skips line ends.
    if len(found) != len(text) - 2 * escapes or b"%\n" in text or b"%\r" in text:
        raise SqsError("MalformedQueryString", "The request has a % that is no escape.")
    return _utf8(found)


def _utf8(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise SqsError("MalformedQueryString", "The request is not a form in UTF-8.") from None


def request_of(form: dict[str, str]) -> dict[str, Any]:
    """The request of the JSON protocol.

    Raises:
        SqsError: the names of fields contradict each other.
    """
    tree: Tree = {}
    for name, text in form.items():
        *parents, last = name.split(".")
        if len(parents) >= DEPTH_MAX:
            raise bad_value(f"The parameter {name[:200]} is nested too deeply.")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise bad_value(f"The parameter {name[:200]} contradicts another one.")
        if isinstance(place.get(last), dict):
            raise bad_value(f"The parameter {name[:200]} contradicts another one.")
        place[last] = text
    return _translated(tree, form.get("Action", ""))


def _translated(tree: Tree, action: str) -> dict[str, Any]:
    request: dict[str, Any] = {}
    for name, given in tree.items():
        if name in LISTS:
            request[LISTS[name]] = [given] if isinstance(given, str) else _numbered(name, given)
        elif isinstance(given, str):
            request[name] = given
        elif name in MAPS:
            request[MAPS[name]] = _map(name, _numbered(name, given))
        elif name == f"{action}RequestEntry":
            request["Entries"] = [_entry(name, one, action) for one in _numbered(name, given)]
        elif "entry" in given:
            request[name] = _map(name, _numbered(name, given["entry"]))
        elif "member" in given:
            members = _numbered(name, given["member"])
            request[name] = _map(name, members) if name == "Tags" else [_entry(name, one, action) for one in members]
        else:
            request[name] = given
    if "Tags" in request:
        # CreateQueue alone has it in small letters.
        request["tags"] = request["Tags"]
    return request


def _numbered(name: str, given: Any) -> list[Any]:
    if not isinstance(given, dict) or not all(number.isascii() and number.isdecimal() and len(number) < 10 for number in given):
        raise bad_value(f"The parameter {name[:200]} is not a list.")
    return [given[number] for number in sorted(given, key=int)]


def _entry(name: str, given: Any, action: str) -> Any:
    if not isinstance(given, dict):
        raise bad_value(f"The parameter {name[:200]} is not a list of entries.")
    return _translated(given, action)


def _map(name: str, entries: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        lowered = {field.lower(): one for field, one in entry.items()} if isinstance(entry, dict) else {}
        key = lowered.get("name", lowered.get("key"))
        if not isinstance(key, str):
            raise bad_value(f"An entry of the parameter {name[:200]} has no name.")
        found[key] = lowered.get("value", "")
    return found


# --------------------------------------------------------------------- answers


def answer_of(action: str, body: dict[str, Any], request_id: str, dialect: Dialect) -> bytes:
    """An answer of the JSON protocol as XML."""
    result = _elements(body, action, dialect)
    return (
        f'<?xml version="1.0"?><{action}Response xmlns="{dialect.namespace}">'
        f"{f'<{action}Result>{result}</{action}Result>' if body or dialect.is_nested else ''}"
        f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></{action}Response>"
    ).encode()


def error_of(code: str, message: str, is_sender: bool, request_id: str, dialect: Dialect) -> bytes:
    """A refusal as XML."""
    return (
        f'<?xml version="1.0"?><ErrorResponse xmlns="{dialect.namespace}"><Error><Type>{"Sender" if is_sender else "Receiver"}</Type>'
        f"<Code>{_text(code)}</Code><Message>{_text(message)}</Message><Detail/></Error>"
        f"<RequestId>{request_id}</RequestId></ErrorResponse>"
    ).encode()


def _elements(body: dict[str, Any], action: str, dialect: Dialect) -> str:
    return "".join(_element(name, given, action, dialect) for name, given in body.items())


def _element(name: str, given: Any, action: str, dialect: Dialect) -> str:
    if dialect.is_nested:
        return f"<{name}>{_nested(given, action, dialect)}</{name}>"
    if isinstance(given, list):
        element = f"{action}ResultEntry" if name == "Successful" else ELEMENTS[name]
        return "".join(f"<{element}>{_content(one, action, dialect)}</{element}>" for one in given)
    if isinstance(given, dict) and name in ELEMENTS:
        key = "Key" if name == "Tags" else "Name"
        return "".join(
            f"<{ELEMENTS[name]}><{key}>{_text(one)}</{key}><Value>{_content(value, action, dialect)}</Value></{ELEMENTS[name]}>"
            for one, value in given.items()
        )
    return f"<{name}>{_content(given, action, dialect)}</{name}>"


def _nested(given: Any, action: str, dialect: Dialect) -> str:
    if isinstance(given, list):
        return "".join(f"<member>{_content(one, action, dialect)}</member>" for one in given)
    if isinstance(given, dict):
        entries = given.items()
        return "".join(f"<entry><key>{_text(key)}</key><value>{_text(value)}</value></entry>" for key, value in entries)
    return _text(given)


def _content(given: Any, action: str, dialect: Dialect) -> str:
    return _elements(given, action, dialect) if isinstance(given, dict) else _text(given)


def _text(given: Any) -> str:
    text = str(given).lower() if isinstance(given, bool) else str(given)
    # A message that another program has published may have characters that XML does not have.
    return escape(_NOT_XML.sub("\ufffd", text), {"\r": "&#13;"})
