"""The members in the admin: their progress, and everything that changes who leads and who is a member."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest

from dss_admin.actions import Plan, ReasonForm, Refusal, asks_first, for_list, report
from dss_admin.live_admin import LiveAdmin, LiveValuesFilter, duration, rows_from_loop
from dss_admin.texts import count
from dss_api import running
from dss_api.operation import named
from dss_api.rights import CLUSTER
from dss_raft.django_app.models import MemberRow
from dss_raft.operations import NODE_ID_PATTERN, OPERATIONS, AddMember, RemoveMember, StartElection, Transfer


class ElectionForm(ReasonForm):
    """Whether to replace a leader that works."""

    force = forms.BooleanField(
        required=False, help_text="Campaign even if a live leader is known. Writes wait until the election is over."
    )
    #: the node that the page named: behind a balancer, another one may get the confirmation
    node = forms.CharField(required=False, widget=forms.HiddenInput)


class AddForm(ReasonForm):
    """A node that is to become a member."""

    id = forms.RegexField(NODE_ID_PATTERN, label="Node", help_text="Its name, as in its NODE_ID.")
    url = forms.CharField(label="Address", max_length=512, help_text="URL of its service: http://node-4:8104")


class RemoveForm(ReasonForm):
    """Whether a working voter may go although others do not answer."""

    force = forms.BooleanField(
        required=False, help_text="Remove a working voter even if others do not answer and the cluster cannot spare it."
    )


class ReplaceForm(ReasonForm):
    """Where the new node is."""

    url = forms.CharField(label="Address", max_length=512, help_text="URL of the service of the new node.")


def member_rows(status: dict[str, Any]) -> list[MemberRow]:
    """The members, from the status of a node."""
    peers = {peer["id"]: peer for peer in status["peers"]}
    return [_row(status, member, peers.get(member["id"], {})) for member in status["members"]]


def _row(status: dict[str, Any], member: dict[str, Any], peer: dict[str, Any]) -> MemberRow:
    is_self = member["id"] == status["node"]
    match_index = status["last_applied"] if is_self else peer.get("match_index")
    versions = member["supported_versions"]
    return MemberRow(
        id=member["id"],
        url=member["url"],
        role="leader" if member["id"] == status["leader_id"] else "learner" if member["learner"] else "follower",
        up=member["up"],
        match_index=match_index,
        lag=None if match_index is None else max(0, status["commit_index"] - match_index),
        outdated=member["outdated"],
        versions="" if versions is None else f"{versions['min']} to {versions['max']}",
        last_contact_ms=0 if is_self else peer.get("last_contact_ms"),
    )


# -------------------------------------------------------------------- plans


def redundancy_text(voters: int) -> str:
    """How many voters a cluster of this size can lose."""
    if not voters:
        return "no voter is left"
    spare = (voters - 1) // 2
    left = f"{count(voters, 'voter is', 'voters are')} left, of which {voters // 2 + 1} must work"
    if not spare:
        return f"{left}: the loss of any of them stops all writes"
    return f"{left}: the cluster can lose {spare}"


def removal_plan(all_rows: list[Any], chosen: list[Any]) -> Plan:
    """What is left when the chosen members are removed. Too many at once are refused."""
    ids = {row.id for row in chosen}
    voters = [row for row in all_rows if row.role != "learner"]
    left = [row for row in voters if row.id not in ids]
    names = ", ".join(sorted(ids))
    text = f"Removes {names} from the cluster permanently. {'Their processes end' if len(ids) > 1 else 'Its process ends'}."
    after = redundancy_text(len(left))
    if not left:
        return Plan(text, refusal="No voter would be left, so the cluster could not work.")
    if len(ids) > 1 and len(left) < len(voters) // 2 + 1:
        refusal = f"Too many at once: {after}, fewer than a majority of the present {len(voters)}. Remove one at a time."
        return Plan(text, refusal=refusal)
    warnings = [f"After that, {after}."]
    silent = [row.id for row in left if not row.up]
    if silent:
        warnings.append(f"Of those that are left, {', '.join(silent)} cannot be reached now.")
    if any(row.role == "leader" for row in chosen):
        warnings.append("The leader is among them: writes wait until another one is elected.")
    return Plan(text, warnings)


def _transfer_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    text = "Makes this member the leader. Writes wait for some milliseconds."
    if len(rows) != 1:
        return Plan(text, refusal="Choose exactly one member.")
    if rows[0].role == "leader":
        return Plan(text, refusal=f"{rows[0].id} leads already.")
    if rows[0].role == "learner":
        return Plan(text, refusal=f"{rows[0].id} is a learner: it cannot lead before it has a vote.")
    return Plan(text)


def _replace_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    text = "Removes this member and adds it again, so that a node with an empty disk can take its place and its name."
    if len(rows) != 1:
        return Plan(text, refusal="Choose exactly one member.")
    plan = removal_plan(page.rows(), rows)
    warnings = [
        *plan.warnings,
        "Start the new node with an empty data directory and DSS_JOIN=true. It has a vote when it has caught up.",
    ]
    return Plan(text, warnings, plan.refusal, {"url": rows[0].url})


def _election_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    return Plan(
        f"Starts an election on this node, {settings.NODE.node_id}: it asks the others for their votes.",
        ["Without “force”, a leader that works keeps its role: the others refuse."],
        initial={"node": settings.NODE.node_id},
    )


def _add_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    voters = sum(row.role != "learner" for row in page.rows())
    return Plan(
        f"Adds a node as a learner, which becomes a voter when it has caught up. Then there are {voters + 1} voters: "
        f"{redundancy_text(voters + 1)}.",
        ["Start the node with DSS_JOIN=true. A name is never used for two nodes at the same time."],
    )


# ------------------------------------------------------------------ the page


class MemberAdmin(LiveAdmin):
    """The members, as this node sees them."""

    act_needs = CLUSTER
    last_contact = duration("last_contact_ms", "last contact", none="")

    lead = "The members of the cluster as this node sees them. Progress and contacts of the others are known on the leader."
    list_display = ("id", "url", "role", "up", "match_index", "lag", last_contact, "outdated", "versions")
    fields = list_display
    search_fields = ("id", "url")
    list_filter = ("up", ("role", LiveValuesFilter))
    ordering = ("id",)
    actions = ("make_leader", "remove", "replace")
    list_actions = ("add", "start_election")

    def rows(self) -> list[MemberRow]:
        return member_rows(rows_from_loop(lambda: running.node().status()))

    @asks_first("Transfer leadership to it", _transfer_plan)
    def make_leader(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        transfer = named(OPERATIONS, "raft.transfer")
        outcome = self.do_each(request, rows, transfer, lambda row: Transfer(to=row.id), given["reason"])
        self._report(request, rows, outcome.results, outcome.refusal, "made the leader")

    @asks_first("Remove from the cluster", lambda page, rows: removal_plan(page.rows(), rows), RemoveForm)
    def remove(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        def remove(row: MemberRow) -> RemoveMember:
            return RemoveMember(id=row.id, force=given["force"], reason=given["reason"])

        outcome = self.do_each(request, rows, named(OPERATIONS, "raft.remove_member"), remove, given["reason"])
        self._report(request, rows, outcome.results, outcome.refusal, "removed")

    @asks_first("Replace: remove it and add it again", _replace_plan, ReplaceForm)
    def replace(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        removing, adding = named(OPERATIONS, "raft.remove_member"), named(OPERATIONS, "raft.add_member")
        reason = given["reason"]
        outcome = self.do_each(request, rows, removing, lambda row: RemoveMember(id=row.id, reason=reason), reason)
        if outcome.refusal is None:
            outcome = self.do_each(request, rows, adding, lambda row: AddMember(id=row.id, url=given["url"]), reason)
            if outcome.refusal is not None:
                what = f"{outcome.refusal.what} was removed, and was not added again. Add it when the cause is gone"
                outcome = outcome._replace(refusal=Refusal(what, outcome.refusal.code, outcome.refusal.detail))
                self.message_user(request, outcome.refusal.text, "error")  # type: ignore[union-attr, arg-type]
                return
        self._report(request, rows, outcome.results, outcome.refusal, "replaced: start the new node now")

    @for_list("Add a member", _add_plan, AddForm)
    def add(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        adding = named(OPERATIONS, "raft.add_member")
        outcome = self.do_each(request, [given["id"]], adding, lambda name: AddMember(id=name, url=given["url"]), given["reason"])
        self._report(request, [given["id"]], outcome.results, outcome.refusal, "added as a learner")

    @for_list("Start an election on this node", _election_plan, ElectionForm)
    def start_election(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        election = named(OPERATIONS, "raft.start_election")
        nodes = [settings.NODE.node_id]
        if given["node"] != nodes[0]:
            text = f"Nothing was done. The page named {given['node'] or 'no node'}, but {nodes[0]} got the request. Use a node's own URL."
            self.message_user(request, text, "error")  # type: ignore[arg-type]
            return
        outcome = self.do_each(request, nodes, election, lambda node: StartElection(force=given["force"]), given["reason"])
        self._report(request, nodes, outcome.results, outcome.refusal, "election started")

    def _report(self, request: HttpRequest, rows: list[Any], results: list[Any], refusal: Refusal | None, what: str) -> None:
        report(self, request, done=len(results), asked=len(rows), what=what, refusal=refusal, nothing="there was nothing to do")


def register() -> None:
    admin.site.register(MemberRow, MemberAdmin)
