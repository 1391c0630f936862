"""The users in the admin: listed, made, changed, signed out and deleted through the log, on any node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import Group
from django.contrib.auth.models import User as DjangoUser
from django.http import HttpRequest, HttpResponseRedirect

from dss_admin.actions import Plan, Refusal, asks_first, report
from dss_admin.callers import admin_caller
from dss_admin.live_admin import LiveAdmin, LiveValuesFilter, rows_from_loop
from dss_admin.texts import count, moment_if_any
from dss_api import running
from dss_api.errors import Refused
from dss_api.operation import named
from dss_api.result import Result
from dss_api.rights import ONLY_ALL
from dss_api.routes import ADMIN, Route
from dss_raft.django_app.models import UserRow
from dss_raft.replication.users import NAME_PATTERN, DeleteUser, Users
from dss_raft.user_operations import OPERATIONS, PASSWORD_LENGTH_MAX, USERS, ChangeUserRequest, CreateUserRequest, SignOut


def user_rows(users: Users) -> list[UserRow]:
    return [
        UserRow(
            name=user.name,
            group=user.group,
            active=user.is_active,
            created=moment_if_any(user.created_ms),
            created_by=user.created_by,
            changed=moment_if_any(user.changed_ms),
            password_changed=moment_if_any(user.password_changed_ms),
            generation=user.generation,
        )
        for user in users.users.values()
    ]


_GROUPS = {"viewer": "viewer: may read", "operator": "operator: may also operate", "admin": "admin: may do everything"}


SENT_IF_CHANGED = ("group", "active")


class UserForm(forms.ModelForm):
    """What can be said about a user. The password is checked when the user is saved."""

    group = forms.ChoiceField(choices=_GROUPS)
    password = forms.CharField(
        required=False,
        max_length=PASSWORD_LENGTH_MAX,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text="At least 8 characters, and not a common one. Empty: it stays as it is. A new one ends all sessions of the user.",
    )

    class Meta:
        model = UserRow
        fields = ("name", "group", "active")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.instance._state.adding:
            self.fields["password"].required = True
            self.fields["password"].help_text = "At least 8 characters, and not a common one."
        # What the form was made with, so that saving it does not undo what another admin has changed since then.
        for name in SENT_IF_CHANGED:
            if name in self.fields:
                self.fields[name].show_hidden_initial = not self.is_bound or self.add_initial_prefix(name) in self.data

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        forms.RegexField(NAME_PATTERN, error_messages={"invalid": "Use letters, digits and @ . + - _ only."}).clean(name)
        return name

    def validate_unique(self) -> None:
        """There is no table to look into; the state machine refuses a second user of the same name."""


def _plan(text: str) -> Callable[[LiveAdmin, list[Any]], Plan]:
    return lambda page, rows: Plan(text.format(count(len(rows), "user", "users")))


class UserAdmin(LiveAdmin):
    """The users. See the module."""

    change_form_template = "admin/change_form.html"
    lead = "Users of the pages and of the admin, on every node."

    view_needs = act_needs = ONLY_ALL
    form = UserForm
    list_display = ("name", "group", "active", "created", "created_by", "changed", "password_changed")
    list_filter = (("group", LiveValuesFilter), "active")
    search_fields = ("name", "created_by")
    ordering = ("name",)
    actions = ("sign_out", "disable", "enable", "delete")

    def rows(self) -> list[UserRow]:
        rows = rows_from_loop(lambda: user_rows(running.node().services[USERS]))
        for row in rows:
            row._state.adding = False
        return rows

    # ------------------------------------------------------------------ forms

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.has_operate_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_operate_permission(request)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return ("name", "group", "password") if obj is None else ("name", "group", "active", "password")

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else ("name",)

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> Any:
        try:
            return super().changeform_view(request, *args, **options)
        except Refused as refusal:
            self.message_user(request, f"Not saved: {refusal.detail or refusal.code}", messages.ERROR)
            return HttpResponseRedirect(request.get_full_path())

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Make the call that the form asks for.

        Raises:
            Refused: nothing was saved.
        """
        password: str = form.cleaned_data["password"]
        if not change:
            self._call(request, "users.create", CreateUserRequest(name=obj.name, group=obj.group, password=password))
        elif form.changed_data:
            changed = {name: form.cleaned_data[name] for name in SENT_IF_CHANGED if name in form.changed_data}
            self._call(request, "users.change", ChangeUserRequest(name=obj.name, password=password or None, **changed))

    def _call(self, request: HttpRequest, name: str, call: Any) -> None:
        address = request.META.get("REMOTE_ADDR") or ""
        route = Route(named(OPERATIONS, name))
        result = running.await_in_loop(route.perform(running.node(), call, admin_caller(request), ADMIN, address))
        if isinstance(result, Result) and result.code:
            raise Refused(result.code, str(result.body.get("detail", "")))

    # ---------------------------------------------------------------- actions

    @asks_first("Sign out everywhere", _plan("Ends all sessions of {}, on every node. They can log in again."))
    def sign_out(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        done = self.do_each(
            request, rows, named(OPERATIONS, "users.sign_out"), lambda row: SignOut(name=row.name), given["reason"]
        )
        self._report(request, rows, len(done.results), done.refusal, "signed out")

    @asks_first("Disable", _plan("Ends all sessions of {}, and allows no login."))
    def disable(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        self._set_active(request, rows, given, False, "disabled")

    @asks_first("Enable", _plan("Allows {} to log in again."))
    def enable(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        self._set_active(request, rows, given, True, "enabled")

    def _set_active(self, request: HttpRequest, rows: list[Any], given: dict[str, Any], active: bool, what: str) -> None:
        change = named(OPERATIONS, "users.change")
        done = self.do_each(request, rows, change, lambda row: ChangeUserRequest(name=row.name, active=active), given["reason"])
        self._report(request, rows, len(done.results), done.refusal, what)

    @asks_first("Delete", _plan("Deletes {}, and ends all sessions."))
    def delete(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        done = self.do_each(
            request, rows, named(OPERATIONS, "users.delete"), lambda row: DeleteUser(name=row.name), given["reason"]
        )
        self._report(request, rows, done.count("deleted"), done.refusal, "deleted")

    def _report(self, request: HttpRequest, rows: list[Any], done: int, refusal: Refusal | None, what: str) -> None:
        report(self, request, done=done, asked=len(rows), what=what, refusal=refusal, nothing="the users no longer exist")


def register() -> None:
    """Show the users of the cluster instead of Django's, which are those of one node."""
    for model in (DjangoUser, Group):
        admin.site.unregister(model)
    admin.site.register(UserRow, UserAdmin)
