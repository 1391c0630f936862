"""DRF's browsable API, the entry point for people: the same operations, decoding and answers as the JSON fast path."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from time import perf_counter
from typing import Any, ClassVar

import structlog
from django.conf import settings
from django.http import Http404
from django.urls import URLPattern, path
from rest_framework import exceptions
from rest_framework.authentication import SessionAuthentication
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.permissions import BasePermission
from rest_framework.renderers import BaseRenderer
from rest_framework.response import Response
from rest_framework.views import APIView

from dss_admin.callers import caller_of_header, caller_of_user
from dss_api.caller import ANYONE, Caller
from dss_api.codec import INTERNAL, EncodedAnswer, encode_refusal
from dss_api.errors import Refused
from dss_api.guard import TOKEN_WANTED, check_origin
from dss_api.http_limits import HttpLimits
from dss_api.negotiation import prefers_page
from dss_api.operation import Operation
from dss_api.routes import Route, not_allowed, require_possible, route_of, split_path
from dss_console.call_pages import Shown, answer_of, page_of_calls, pages_of_calls

log = structlog.get_logger("api")

#: the media type of a refusal
PROBLEM = "application/problem+json"


class SessionOrToken(SessionAuthentication):
    """The bearer token, or the admin's session together with Django's CSRF token. `request.auth` is the `Caller`."""

    def authenticate(self, request: Any) -> tuple[Any, Any] | None:
        header = request.META.get("HTTP_AUTHORIZATION", "")
        route = _route_of(request.parser_context["view"], request)
        try:
            if route is not None and not route.guarded:
                return None
            if header and (caller := caller_of_header(request)) is not ANYONE:
                return request._request.user, caller
            found = super().authenticate(request)
            return None if found is None else (found[0], caller_of_user(found[0]))
        except Refused as refusal:
            if refusal.code != "unauthenticated":
                raise
            raise exceptions.AuthenticationFailed(refusal.detail) from None

    def authenticate_header(self, request: Any) -> str:
        return "Bearer"


class MayCall(BasePermission):
    """The caller has the right that the call needs, as far as that is known without its fields."""

    def has_permission(self, request: Any, view: Any) -> bool:
        route = _route_of(view, request)
        if route is not None and not route.guarded:
            return True
        try:
            caller = caller_of(request)
            if route is not None:
                require_possible(route.needs, caller)
        except Refused as refusal:
            if refusal.code == "unauthenticated":
                raise exceptions.NotAuthenticated from None
            raise exceptions.PermissionDenied(refusal.detail) from None
        return True


def _route_of(view: Any, request: Any) -> Route | None:
    """The call that the request makes; None if it only shows a form."""
    routes: dict[str, Route] = getattr(view, "routes", {})
    return routes.get(request.method.replace("HEAD", "GET"))


def caller_of(request: Any) -> Caller:
    """Who makes the call, after the authentication.

    Raises:
        Refused: `unauthenticated`.
    """
    return request.auth if isinstance(request.auth, Caller) else caller_of_user(None)


class BodyParser(BaseParser):
    """Passes the JSON body on unchanged: the codec decodes it."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: dict[str, Any] | None = None) -> bytes:
        bytes_max = settings.NODE.body_bytes_max
        body: bytes = stream.read(bytes_max + 1)
        if len(body) > bytes_max:
            raise HttpLimits(body_bytes_max=bytes_max).too_large
        return body


class DocumentRenderer(BaseRenderer):
    """Sends an answer's bytes as they are."""

    media_type = "application/json"
    format = "json"
    charset = None

    def render(self, data: bytes, accepted_media_type: Any = None, renderer_context: dict[str, Any] | None = None) -> bytes:
        return data


class BrowsableRenderer(BaseRenderer):
    """The page of the calls at one path, with a form for each, and the answer if one was made."""

    media_type = "text/html"
    format = "api"

    def render(self, data: bytes, accepted_media_type: Any = None, renderer_context: dict[str, Any] | None = None) -> str:
        context = renderer_context or {}
        view, request, response = context["view"], context["request"], context["response"]
        operations = list(getattr(view, "operations", {}).values())
        headers = {**response.headers, "Content-Type": PROBLEM if response.status_code >= 400 else "application/json"}
        answer = Shown(response.status_code, data, sorted(headers.items())) if data else None
        return page_of_calls(request._request, operations, answer)


def wants_page(request: Any) -> bool:
    """The same decision as on the JSON fast path."""
    accept = request.META.get("HTTP_ACCEPT", "").encode("latin-1")
    return prefers_page(accept, request.META.get("HTTP_X_REQUESTED_WITH") == "XMLHttpRequest")


class HTMLOrDocument(DefaultContentNegotiation):
    """Chooses a page for browsers and the JSON document for everything else. No Accept header is refused."""

    def select_renderer(self, request: Any, renderers: Any, format_suffix: str | None = None) -> tuple[Any, str]:
        is_page = wants_page(request)
        chosen = next(one for one in renderers if isinstance(one, BrowsableRenderer) == is_page)
        return chosen, chosen.media_type


class OperationView(APIView):
    """All operations at one path. `views_of` makes a subclass for each."""

    operations: ClassVar[dict[str, Operation]] = {}
    routes: ClassVar[dict[str, Route]] = {}

    authentication_classes = (SessionOrToken,)
    permission_classes = (MayCall,)
    parser_classes = (BodyParser,)
    renderer_classes = (DocumentRenderer, BrowsableRenderer)
    content_negotiation_class = HTMLOrDocument

    @property
    def allowed_methods(self) -> list[str]:
        return sorted(self.operations)

    @property
    def default_response_headers(self) -> dict[str, str]:
        return {"Vary": "Accept"}

    def initial(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self.started = perf_counter()
        self.format_kwarg = None
        # Before the token is checked, as in the JSON fast path.
        if request.method.replace("HEAD", "GET") not in self.operations and not self._only_shows_form(request):
            # To decide whether to show a form, the page checks permissions as for the form's POST, which a session may not make
            # without a CSRF token. So the user must be authenticated before.
            with suppress(exceptions.APIException, Refused):
                self.perform_authentication(request)
            raise exceptions.MethodNotAllowed(request.method)
        super().initial(request, *args, **kwargs)

    @staticmethod
    def _only_shows_form(request: Any) -> bool:
        """A browser that opens the address of a call which it must send with the page's form."""
        return request.method in ("GET", "HEAD") and wants_page(request)

    def show_form(self, request: Any, **path_parameters: str) -> Response:
        """The page of a call without GET, before the call is made."""
        return Response(b"")

    def call(self, request: Any, **path_parameters: str) -> Response:
        method = request.method.replace("HEAD", "GET")
        route = self.routes[method]
        try:
            answer = self._answer(route, request, path_parameters)
        except Refused as refusal:
            if refusal.code == "invalid" and self._only_shows_form(request) and not request.META["QUERY_STRING"]:
                # Someone has opened the address of a call that needs fields, to see what it is.
                return self.show_form(request)
            answer = encode_refusal(refusal)
        route.observe(answer.status, perf_counter() - self.started)
        return document_response(answer)

    def _answer(self, route: Route, request: Any, path_parameters: dict[str, str]) -> EncodedAnswer:
        if route.changes:
            headers = request.headers
            check_origin(headers.get("Origin", "").encode("latin-1"), headers.get("Host", "").encode("latin-1"))
        if route.decoder.reads_query:
            decoded = route.decoder.query(request.META["QUERY_STRING"].encode("latin-1"), path_parameters)
        else:
            decoded = route.decoder.body(request.data or b"")
        return answer_of(route, decoded, caller_of(request) if route.guarded else ANYONE, request.META)

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        response = super().finalize_response(request, response, *args, **kwargs)
        if response.status_code >= 400 and isinstance(response.accepted_renderer, DocumentRenderer):
            response.content_type = PROBLEM
        # Django would log each refusal as a warning or an error.
        response._has_been_logged = True
        return response

    def get_exception_handler(self) -> Any:
        return problem_response

    def get_view_name(self) -> str:
        return next(iter(self.operations.values())).summary


def document_response(answer: EncodedAnswer) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers if name != b"content-type"}
    return Response(answer.body, status=answer.status, headers=headers)


def problem_response(error: Exception, context: dict[str, Any]) -> Response:
    """Turn DRF's exceptions into problem documents."""
    view = context["view"]
    match error:
        case Refused():
            answer = encode_refusal(error)
        case exceptions.NotAuthenticated():
            answer = encode_refusal(Refused("unauthenticated", TOKEN_WANTED))
        case exceptions.AuthenticationFailed():
            answer = encode_refusal(Refused("unauthenticated", str(error.detail)))
        case exceptions.PermissionDenied():
            answer = encode_refusal(Refused("forbidden", str(error.detail)))
        case exceptions.MethodNotAllowed():
            answer = not_allowed(context["request"].method, view.operations)
        case exceptions.UnsupportedMediaType():
            answer = encode_refusal(Refused("unsupported_media_type", "send the body as `Content-Type: application/json`"))
        case exceptions.ParseError():
            answer = encode_refusal(Refused("invalid", str(error.detail)))
        case Http404():
            answer = encode_refusal(Refused("not_found"))
        case _:
            log.error("api.failed", view=view.get_view_name(), exc_info=error)
            answer = encode_refusal(Refused("internal", INTERNAL))
    return document_response(answer)


def views_of(operations: Iterable[Operation]) -> list[URLPattern]:
    """The index of all calls, a page for each of them, and a view for every path of `operations`."""
    operations = tuple(operations)
    at_path: dict[str, dict[str, Operation]] = {}
    for operation in operations:
        at_path.setdefault(operation.path, {})[operation.method] = operation
    patterns = pages_of_calls(operations)
    for operation_path, methods in at_path.items():
        prefix, parameter = split_path(operation_path)
        handlers = {"get": OperationView.show_form, **{method.lower(): OperationView.call for method in methods}}
        name = "".join(part.title() for part in operation_path.replace("{", "").replace("}", "").replace("_", "/").split("/"))
        routes = {method: route_of(operation) for method, operation in methods.items()}
        view: Any = type(f"{name}View", (OperationView,), {"operations": methods, "routes": routes, **handlers})
        route = prefix.lstrip("/") + (f"<str:{parameter}>" if parameter else "")
        patterns.append(path(route, view.as_view(), name=next(iter(methods.values())).name))
    return patterns
