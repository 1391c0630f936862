"""Actions of the admin that ask first.

An action is chosen for the selected rows (`asks_first`), or for the list as a whole (`for_list`). Its first request changes nothing: the
answer is a page that says what will happen to which rows, asks for a reason, and has one button. Only the request of that button acts. The
reason is recorded in the audit trail, with the user and the call.

What an action says afterwards comes from `report`: an action is a success only if it did all it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

REASON_LENGTH_MAX = 512
#: Rows that one action may be used on: each is a call of its own.
ROWS_PER_ACTION_MAX = 200
#: Names of rows on the page that asks.
ROWS_SHOWN_MAX = 20
#: the field of a form that was seen and confirmed
CONFIRMED = "confirmed"
TEMPLATE = "admin/confirm_action.html"


class ReasonForm(forms.Form):
    """What every action asks for."""

    reason = forms.CharField(
        max_length=REASON_LENGTH_MAX,
        label="Reason",
        help_text="Recorded in the audit trail, with your name.",
        widget=forms.TextInput(attrs={"size": 60, "autocomplete": "off"}),
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, label_suffix="", **options)
        # After the fields of the action.
        self.order_fields([name for name in self.fields if name != "reason"])


class Plan(NamedTuple):
    """What an action will do, for people.

    Attributes:
        text: in one or two sentences.
        warnings: what else follows from it.
        refusal: why it cannot be done; then there is no button.
        initial: of the form's fields.
    """

    text: str
    warnings: Sequence[str] = ()
    refusal: str = ""
    initial: dict[str, Any] = {}


class Refusal(NamedTuple):
    """Why a call of an action was not carried out."""

    what: str
    code: str
    detail: str

    @property
    def text(self) -> str:
        if self.code in ("no_leader", "no_quorum"):
            reason = (
                f"No quorum: a majority of the members cannot be reached from here, so nothing can be changed ({self.detail})"
            )
        elif self.code == "unknown_outcome":
            reason = f"Not known whether it was done ({self.detail}). Look at the list before you repeat it"
        else:
            reason = self.detail
        return f"{self.what}: {reason.rstrip('.')}."


#: says what will happen to these rows: `says(page, rows)`
Says = Callable[[Any, list[Any]], Plan]
#: `act(page, request, rows, given)`: `given` has the values of the form
Act = Callable[[Any, HttpRequest, list[Any], dict[str, Any]], None]


class Asking(NamedTuple):
    """How an action asks."""

    name: str
    description: str
    says: Says
    act: Act
    form: type[forms.Form]


def asks_first(description: str, says: Says, form: type[forms.Form] = ReasonForm) -> Callable[[Act], Any]:
    """An action on selected rows."""

    def made(act: Act) -> Any:
        asking = Asking(act.__name__, description, says, act, form)

        @admin.action(description=description, permissions=["operate"])
        @wraps(act)
        def action(page: Any, request: HttpRequest, queryset: Any) -> HttpResponse | None:
            if len(queryset) > ROWS_PER_ACTION_MAX:
                text = f"Choose at most {ROWS_PER_ACTION_MAX} rows: {len(queryset):,} are selected. Nothing was done."
                page.message_user(request, text, messages.ERROR)
                return None
            chosen = len(set(request.POST.getlist(ACTION_CHECKBOX_NAME)))
            if CONFIRMED in request.POST and len(queryset) < chosen:
                text = f"No longer in the list: {chosen - len(queryset)} of the {chosen} chosen rows."
                page.message_user(request, text, messages.WARNING)
            return _ask_or_act(page, request, asking, list(queryset))

        return action

    return made


def for_list(description: str, says: Says, form: type[forms.Form] = ReasonForm) -> Callable[[Act], Any]:
    """An action on no row, with a button above the list: named in `list_actions` of the page."""

    def made(act: Act) -> Any:
        act.asking = Asking(act.__name__, description, says, act, form)  # type: ignore[attr-defined]
        return act

    return made


def list_actions(page: Any) -> list[Asking]:
    """The actions on the list as a whole."""
    return [getattr(page, name).asking for name in page.list_actions]


def action_named(page: Any, request: HttpRequest, name: str) -> HttpResponse:
    """The page of a list action, or what it did."""
    if not page.has_operate_permission(request):
        raise PermissionDenied
    asking = next((one for one in list_actions(page) if one.name == name), None)
    if asking is None:
        raise Http404
    answer = _ask_or_act(page, request, asking, [])
    meta = page.model._meta
    return answer or HttpResponseRedirect(reverse(f"admin:{meta.app_label}_{meta.model_name}_changelist"))


def _ask_or_act(page: Any, request: HttpRequest, asking: Asking, rows: list[Any]) -> HttpResponse | None:
    plan = asking.says(page, rows)
    is_confirmed = request.method == "POST" and CONFIRMED in request.POST
    form = asking.form(request.POST if is_confirmed else None, initial=plan.initial)
    if is_confirmed and not plan.refusal and form.is_valid():
        asking.act(page, request, rows, form.cleaned_data)
        # Back to the same list, with its filters.
        return HttpResponseRedirect(request.get_full_path()) if rows else None
    meta = page.model._meta
    changelist = reverse(f"admin:{meta.app_label}_{meta.model_name}_changelist")
    return TemplateResponse(
        request,
        TEMPLATE,
        {
            **page.admin_site.each_context(request),
            "title": asking.description,
            "opts": meta,
            "action": asking.name,
            "plan": plan,
            "form": form,
            "names": [str(row) for row in rows[:ROWS_SHOWN_MAX]],
            "more": len(rows) - ROWS_SHOWN_MAX,
            "selected": [row.pk for row in rows],
            "checkbox": ACTION_CHECKBOX_NAME,
            "confirmed": CONFIRMED,
            "back": request.get_full_path() if rows else changelist,
            "changelist": changelist,
        },
    )


def report(page: Any, request: HttpRequest, *, done: int, asked: int, what: str, refusal: Refusal | None, nothing: str) -> None:
    """Say what an action did. Only if it did all it was asked for, that is a success.

    Args:
        done: how many rows it changed.
        asked: how many it should have changed.
        what: "released", as in "2 released".
        nothing: why a call that was carried out may have changed nothing.
    """
    if refusal is not None:
        before = (
            f"{done} of {asked} {what}. Then: " if done else "Nothing was done. " if refusal.code != "unknown_outcome" else ""
        )
        page.message_user(request, before + refusal.text, messages.ERROR)
    elif not done:
        page.message_user(request, f"Nothing was done: {nothing}.", messages.WARNING)
    elif done < asked:
        page.message_user(request, f"{done} of {asked} {what}. The others: {nothing}.", messages.WARNING)
    else:
        page.message_user(request, f"{done} {what}.", messages.SUCCESS)
