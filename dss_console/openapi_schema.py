"""The OpenAPI document, served by drf-spectacular. `dss_api.openapi` describes the operations."""

from __future__ import annotations

from typing import Any

from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema

from dss_api.openapi import OpenApi


class OperationSchema(AutoSchema):
    """Describes an `OperationView`. The document does not contain other views, which belong to DRF and Django."""

    def get_operation(self, path: str, path_regex: str, path_prefix: str, method: str, registry: Any) -> dict[str, Any] | None:
        operation = getattr(self.view, "operations", {}).get(method)
        return None if operation is None else self.view.openapi.describe(operation)


class ApiSchemaGenerator(SchemaGenerator):
    """Adds the components that the operations refer to."""

    def create_view(self, callback: Any, method: str, request: Any = None) -> Any:
        view = super().create_view(callback, method, request)
        view.openapi = self._openapi
        return view

    def get_schema(self, request: Any = None, public: bool = False) -> Any:
        self._initialise_endpoints()
        views = dict.fromkeys(callback.cls for *_, callback in self.endpoints)
        self._openapi = OpenApi(operation for view in views for operation in getattr(view, "operations", {}).values())
        document = super().get_schema(request, public)
        document["components"] = self._openapi.components()
        return document
