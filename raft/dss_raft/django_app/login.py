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

from dss_api import failures, running
from dss_api.caller import Caller
from dss_api.errors import Refused
from dss_api.failures import SlowedDown
from dss_api.operation import named
from dss_api.problems import PROBLEMS
from dss_api.result import Result
from dss_api.rights import ANY_TOKEN
from dss_api.routes import ADMIN, Route
from dss_raft.django_app.models import ClusterUser
from dss_raft.django_app.passwords import hashing
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
        _say_why(response, refusal)
    return response


def _say_why(response: Any, refusal: Refused) -> None:
    response.status_code = PROBLEMS[refusal.code].status
    wait_s = refusal.wait_s if isinstance(refusal, SlowedDown) else PROBLEMS[refusal.code].retry_after_s or 1
    response["Retry-After"] = str(wait_s)
    # Django would log each of them; `dss_api.failures` does, and not without end.
    response._has_been_logged = True


class OwnPasswordForm(AdminPasswordChangeForm):
    """Changes the password of the user who is logged in, on all nodes."""

    address = ""
    #: why the old password was not checked
    refusal: Refused | None = None

    def clean_old_password(self) -> str:
        """Check it as a login does: a person who finds a session open must not guess the password faster."""
        password: str = self.cleaned_data["old_password"]
        try:
            with failures.logins().login(self.address, self.user.get_username(), True) as succeeded:
                is_right = hashing().is_right(password, self.user.password)
                if is_right:
                    succeeded()
        except Refused as refusal:
            self.refusal = refusal
            raise ValidationError(_sentence(refusal)) from None
        if not is_right:
            raise ValidationError(self.error_messages["password_incorrect"], code="password_incorrect")
        return password

    def save(self, commit: bool = True) -> Any:
        if not isinstance(self.user, ClusterUser):
            return super().save(commit)
        change_own_password(self.user, self.cleaned_data["new_password1"], self.address)
        return self.user


def change_own_password(user: ClusterUser, password: str, address: str) -> None:
    """Change the password, and let `user` have the new session hash, so that this session does not end.

    It ends if anyone else has ended the sessions of the user meanwhile, before the change or after it.

    Raises:
        Refused: it was not changed.
    """
    request = ChangeUserRequest(name=user.get_username(), password=password)
    caller = Caller(f"user {user.get_username()}", user.access)
    result = running.await_in_loop(Route(_OWN).perform(running.node(), request, caller, ADMIN, address))
    assert isinstance(result, Result)
    if result.code:
        raise Refused(result.code, str(result.body.get("detail", "")))
    now = running.call_in_loop(lambda: _state_of(user))
    if now is not None and now[0] == result.body["generation"] == user.generation + 1:
        user.generation, user.password = now


def _state_of(user: ClusterUser) -> tuple[int, str] | None:
    found = running.node().services[USERS].by_number.get(-user.pk)
    return None if found is None else (found.generation, found.password_hash)


class PasswordPage(PasswordChangeView):
    """Django's page, at the place of the admin's."""

    form_class = OwnPasswordForm
    template_name = "registration/password_change_form.html"
    success_url = reverse_lazy("admin:password_change_done")

    def get_context_data(self, **context: Any) -> dict[str, Any]:
        return {**admin.site.each_context(self.request), **super().get_context_data(**context)}

    def get_form(self, form_class: Any = None) -> Any:
        form = super().get_form(form_class)
        form.address = self.request.META.get("REMOTE_ADDR") or ""
        return form

    def form_invalid(self, form: Any) -> Any:
        response = super().form_invalid(form)
        if form.refusal is not None:
            _say_why(response, form.refusal)
        return response

    def form_valid(self, form: Any) -> Any:
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
