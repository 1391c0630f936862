"""The pages on which users log in and change their own password."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.contrib import admin
from django.contrib.admin.forms import AdminAuthenticationForm, AdminPasswordChangeForm
from django.contrib.auth.views import PasswordChangeView
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponseBase
from django.urls import reverse_lazy

from dss_api import running
from dss_api.caller import Caller
from dss_api.errors import Refused
from dss_api.failures import SlowedDown
from dss_api.operation import named
from dss_api.problems import PROBLEMS
from dss_api.result import Result
from dss_api.rights import ANY_TOKEN
from dss_api.routes import ADMIN, Route
from dss_raft.django_app.models import ClusterUser
from dss_raft.user_operations import OPERATIONS, USERS, ChangeUserRequest

#: The operation is for administrators; every user may change their own password.
_OWN = replace(named(OPERATIONS, "users.change"), needs=ANY_TOKEN, prepare=None)


class LoginForm(AdminAuthenticationForm):
    """Django's form, which also says why a login is not checked now."""

    def clean(self) -> Any:
        try:
            return super().clean()
        except Refused as refusal:
            self.request.login_refusal = refusal
            raise ValidationError(_sentence(refusal)) from None


def login(request: HttpRequest) -> HttpResponseBase:
    """The admin's login page. A login that is not checked now gets the status and the Retry-After header of its reason."""
    response: Any = admin.site.login(request)
    refusal: Refused | None = getattr(request, "login_refusal", None)
    if refusal is not None:
        response.status_code = PROBLEMS[refusal.code].status
        wait_s = refusal.wait_s if isinstance(refusal, SlowedDown) else PROBLEMS[refusal.code].retry_after_s or 1
        response["Retry-After"] = str(wait_s)
        # Django would log each of them; `dss_api.failures` does, and not without end.
        response._has_been_logged = True
    return response


class OwnPasswordForm(AdminPasswordChangeForm):
    """Changes the password of the user who is logged in, on all nodes."""

    address = ""

    def save(self, commit: bool = True) -> Any:
        if not isinstance(self.user, ClusterUser):
            return super().save(commit)
        change_own_password(self.user, self.cleaned_data["new_password1"], self.address)
        return self.user


def change_own_password(user: ClusterUser, password: str, address: str) -> None:
    """Change the password, and let `user` have the new session hash, so that this session does not end.

    Raises:
        Refused: it was not changed.
    """
    request = ChangeUserRequest(name=user.get_username(), password=password)
    caller = Caller(f"user {user.get_username()}", user.access)
    result = running.await_in_loop(Route(_OWN).perform(running.node(), request, caller, ADMIN, address))
    if isinstance(result, Result) and result.code:
        raise Refused(result.code, str(result.body.get("detail", "")))
    now = running.call_in_loop(lambda: running.node().services[USERS].by_number[-user.pk])
    user.generation, user.password = now.generation, now.password_hash


class PasswordPage(PasswordChangeView):
    """Django's page, at the place of the admin's."""

    form_class = OwnPasswordForm
    template_name = "registration/password_change_form.html"
    success_url = reverse_lazy("admin:password_change_done")

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        return {**admin.site.each_context(self.request), **super().get_context_data(**context)}

    def form_valid(self, form: Any) -> Any:
        form.address = self.request.META.get("REMOTE_ADDR") or ""
        try:
            return super().form_valid(form)
        except Refused as refusal:
            form.add_error("new_password2", _sentence(refusal))
            return self.form_invalid(form)


def change_password(request: HttpRequest) -> HttpResponseBase:
    request.current_app = admin.site.name  # type: ignore[attr-defined]
    return PasswordPage.as_view()(request)


def _sentence(refusal: Refused) -> str:
    text = refusal.detail or PROBLEMS[refusal.code].title
    return f"{text[:1].upper()}{text[1:]}."
