"""The broker in the admin: topics, groups, connected consumers, messages and dead letters."""

from __future__ import annotations

from typing import Any, cast

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from msgspec.inspect import type_info

from dss_admin.actions import Plan, ReasonForm, asks_first, for_list, report
from dss_admin.live_admin import LiveAdmin, LiveValuesFilter, beginning, duration, rows_from_loop, rows_in_turns
from dss_admin.texts import count
from dss_api import running
from dss_api.durations import duration_text
from dss_api.fields import BYTES_PER_NAME_MAX, check_name
from dss_api.operation import named
from dss_api.rights import OPERATE
from dss_queue.core.broker import Broker
from dss_queue.core.commands import Nack, Purge, PutTopicRequest, Redrive, TopicSettings
from dss_queue.core.topic_commands import DeleteDead, DeleteGroup, DeleteTopic
from dss_queue.django_app import engine_rows
from dss_queue.django_app.engine_rows import DeadOnEngine, MessageOnEngine
from dss_queue.django_app.models import BacklogRow, ConsumerRow, DeadLetterRow, MessageRow, TopicRow
from dss_queue.django_app.operations import DELETE_DEAD
from dss_queue.django_app.rows import (
    IN_FLIGHT,
    TakenBacklog,
    TakenConsumer,
    TakenDead,
    TakenMessage,
    TakenTopic,
    take_backlogs,
    take_consumers,
    take_dead_letters,
    take_messages,
    take_topics,
)
from dss_queue.operations import OPERATIONS


def _broker() -> Broker:
    return cast(Broker, running.node().machine("queue"))


def _now_ms() -> int:
    return int(running.node().now_ms())


# ------------------------------------------------------------------- topics


_SETTINGS = {field.name: field.type for field in type_info(TopicSettings).fields}  # type: ignore[attr-defined]


def _number(name: str, help_text: str) -> forms.IntegerField:
    """A field for a setting, within the limits that its definition has."""
    limits = _SETTINGS[name]
    return forms.IntegerField(min_value=limits.ge, max_value=limits.le, help_text=help_text)


def _choice(name: str, help_text: str) -> forms.ChoiceField:
    """A field for a setting that is one of several words."""
    words = _SETTINGS[name].values
    return forms.ChoiceField(choices=[(word, word) for word in sorted(words)], help_text=help_text)


class TopicForm(ReasonForm):
    """The settings of a topic. Those that were not changed in the form stay as they are now."""

    max_attempts = _number("max_attempts", "Deliveries before a message becomes a dead letter. 0: any number.")
    backoff_ms = _number("backoff_ms", "Delay before the second delivery, doubled each time. 0: none.")
    retention_ms = _number("retention_ms", "Older messages become dead letters of each group that has not taken them. 0: never.")
    dedup_window_ms = _number("dedup_window_ms", "How long a dedup_id is remembered. 0: not at all.")
    keep_ms = _number("keep_ms", "How long finished messages stay for groups that come later. 0: not at all.")
    dead_letter_topic = forms.CharField(
        required=False,
        max_length=BYTES_PER_NAME_MAX,
        help_text="Dead letters move to this topic. Empty: they stay with their group.",
    )
    engine = _choice(
        "engine", "Where the messages are. Another engine moves the topic; the messages on the old one are delivered first."
    )
    acks = _choice("acks", "With redis: where a change must be before it is answered.")
    max_bytes = _number("max_bytes", "Of the topic. 0: only the limits of the cluster.")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # What the form was made with, so that sending it does not undo what another admin has changed since then.
        for name in TopicSettings.__struct_fields__:
            self.fields[name].show_hidden_initial = not self.is_bound or self.add_initial_prefix(name) in self.data

    def clean(self) -> dict[str, Any]:
        given: dict[str, Any] = super().clean() or self.cleaned_data
        present = {name: self.initial[name] for name in TopicSettings.__struct_fields__ if name not in self.changed_data}
        return {**given, **present}


class NewTopicForm(TopicForm):
    """A topic that does not exist yet."""

    topic = forms.CharField(max_length=BYTES_PER_NAME_MAX)
    field_order = ("topic",)

    def clean_topic(self) -> str:
        topic: str = self.cleaned_data["topic"]
        try:
            check_name("topic", topic)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        if topic in _broker().topics:
            raise ValidationError("This topic exists. Change its settings in the list.")
        return topic


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in TopicSettings.__struct_fields__}


def _settings_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    if len(rows) != 1:
        return Plan("Changes the settings of one topic.", refusal="Choose exactly one topic.")
    topic = rows_from_loop(lambda: _broker().topics.get(rows[0].topic))
    if topic is None:
        return Plan("Changes the settings of one topic.", refusal="The topic no longer exists.")
    if topic.queue is not None:
        refusal = "This topic is an SQS queue, whose attributes set them. Change them with the call SetQueueAttributes of SQS."
        return Plan("Changes the settings of one topic.", refusal=refusal)
    settings = topic.messages.settings
    return Plan(
        "Changes the settings of this topic for the whole cluster. Those that you do not change here stay as they are.",
        ["A shorter retention applies to the messages that are there: older ones become dead letters, or are deleted."],
        initial={name: getattr(settings, name) for name in TopicSettings.__struct_fields__},
    )


def _new_topic_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    return Plan(
        "Creates a topic with these settings.",
        initial={name: getattr(TopicSettings(), name) for name in TopicSettings.__struct_fields__},
    )


def _purge_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    messages = count(sum(row.messages for row in rows), "message", "messages")
    topics = count(len(rows), "topic", "topics")
    text = f"Deletes all messages of {topics}: {messages} now, also those in flight. Groups and dead letters stay."
    return Plan(text, ["The messages cannot be restored."])


def _delete_topics_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    messages = count(sum(row.messages for row in rows), "message", "messages")
    dead = count(sum(row.dead for row in rows), "dead letter", "dead letters")
    groups = count(sum(row.groups for row in rows), "group", "groups")
    waiting = sum(row.consumers for row in rows)
    answered = [f"{count(waiting, 'waiting consumer is', 'waiting consumers are')} answered not_found."] if waiting else []
    text = f"Deletes {count(len(rows), 'topic', 'topics')} with {messages}, {dead}, {groups} and the settings."
    return Plan(text, ["Nothing of it can be restored.", *answered])


@admin.register(TopicRow)
class TopicRowAdmin(LiveAdmin):
    """Topics."""

    oldest = duration("oldest_age_ms", "oldest message")

    lead = "Topics with their settings. Open one to see its groups and connected consumers. Every node shows the same."
    list_display = ("topic", "messages", "bytes", "groups", "consumers", "dead", oldest, "published_per_s", "engine", "settings")
    fields = (
        "topic",
        "messages",
        "bytes",
        "groups",
        "consumers",
        "dead",
        oldest,
        "published",
        "published_per_s",
        "engine",
        "settings",
    )
    ordering = ("topic",)
    search_fields = ("topic", "engine")
    actions = ("change_settings", "purge", "delete_dead", "delete_topics")
    list_actions = ("create",)

    def rows(self) -> list[TakenTopic]:
        return engine_rows.add_topics(rows_in_turns(lambda: take_topics(_broker(), _now_ms())))

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        row = self.get_object(request, object_id)
        context = {"tables": self._tables(row.topic)} if row is not None else {}
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _tables(self, topic: str) -> list[dict[str, Any]]:
        backlogs = engine_rows.add_backlogs(rows_in_turns(lambda: take_backlogs(_broker(), _now_ms(), topic)), topic)
        groups = [one for one in backlogs if one.group]
        consumers = [one for one in rows_in_turns(lambda: take_consumers(_broker(), _now_ms())) if one.topic == topic]
        return [
            {
                "title": "Groups",
                "columns": ("Group", "Ready", "Delayed", "In flight", "Dead letters", "Waiting consumers", "Oldest"),
                "rows": [
                    (one.group, one.ready, one.delayed, one.in_flight, one.dead, one.waiting, duration_text(one.oldest_age_ms))
                    for one in groups
                ],
                "empty": "No group consumes it.",
            },
            {
                "title": "Connected consumers",
                "columns": ("Group", "Connected to", "Doing", "Messages"),
                "rows": [(one.group, one.node, one.doing, one.messages) for one in consumers[:100]],
                "empty": "No consumer waits, and none has a message in flight.",
            },
        ]

    @for_list("Create a topic", _new_topic_plan, NewTopicForm)
    def create(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        self._put(request, [given["topic"]], given, "created")

    @asks_first("Change the settings", _settings_plan, TopicForm)
    def change_settings(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        self._put(request, rows, given, "changed")

    def _put(self, request: HttpRequest, topics: list[Any], given: dict[str, Any], what: str) -> None:
        put = named(OPERATIONS, "queue.topic")
        outcome = self.do_each(
            request, topics, put, lambda row: PutTopicRequest(topic=str(row), **_settings(given)), given["reason"]
        )
        done = len(outcome.results)
        report(self, request, done=done, asked=len(topics), what=what, refusal=outcome.refusal, nothing="no topic was named")

    @asks_first("Purge: delete all messages", _purge_plan)
    def purge(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        purge = named(OPERATIONS, "queue.purge")
        outcome = self.do_each(request, rows, purge, lambda row: Purge(topic=row.topic), given["reason"])
        _report_deleted(self, request, outcome, "purged", "messages")

    @asks_first(
        "Delete the dead letters of all groups",
        lambda page, rows: Plan(
            f"Deletes {count(sum(row.dead for row in rows), 'dead letter', 'dead letters')} of {count(len(rows), 'topic', 'topics')}.",
            ["They cannot be restored, or redriven later."],
        ),
    )
    def delete_dead(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        purge = named(OPERATIONS, "queue.purge")
        outcome = self.do_each(request, rows, purge, lambda row: Purge(topic=row.topic, dead=True), given["reason"])
        _report_deleted(self, request, outcome, "purged", "dead letters")

    @asks_first("Delete the topics", _delete_topics_plan)
    def delete_topics(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        delete = named(OPERATIONS, "queue.topic_delete")
        outcome = self.do_each(request, rows, delete, lambda row: DeleteTopic(topic=row.topic), given["reason"])
        self.report_each(
            request,
            outcome,
            "deleted",
            rows,
            nothing="they were deleted before",
            what="topics deleted" if len(rows) > 1 else "topic deleted",
        )


def _report_deleted(page: LiveAdmin, request: HttpRequest, outcome: Any, field: str, what: str) -> None:
    """For calls of which each deletes any number of things."""
    done = outcome.count(field)
    report(page, request, done=done, asked=done, what=f"{what} deleted", refusal=outcome.refusal, nothing=f"there were no {what}")


# ------------------------------------------------------------------- groups


def _delete_groups_plan(page: LiveAdmin, rows: list[Any]) -> Plan:
    groups = [row for row in rows if row.group]
    if not groups:
        return Plan("Deletes groups.", refusal="The chosen topics have no group.")
    dead = count(sum(row.dead for row in groups), "dead letter", "dead letters")
    unfinished = count(
        sum(row.ready + row.delayed + row.in_flight for row in groups), "unfinished message", "unfinished messages"
    )
    text = f"Deletes {count(len(groups), 'group', 'groups')} with {dead}, and their places in the topics ({unfinished})."
    return Plan(text, ["Messages that no other group has to finish are deleted, too. A later consume creates the group again."])


def _group_dead_plan(text: str, warnings: list[str]) -> Any:
    def plan(page: LiveAdmin, rows: list[Any]) -> Plan:
        dead = sum(row.dead for row in rows)
        if not dead:
            return Plan(text.format("dead letters"), refusal="The chosen groups have no dead letters.")
        return Plan(text.format(count(dead, "dead letter", "dead letters")), warnings)

    return plan


@admin.register(BacklogRow)
class BacklogRowAdmin(LiveAdmin):
    """The unfinished messages of each group."""

    oldest = duration("oldest_age_ms", "oldest")

    lead = "Consumer groups and what they have not finished; also the topics that have no group yet."
    list_display = (
        "topic",
        "group",
        "ready",
        "delayed",
        "in_flight",
        "dead",
        "waiting",
        oldest,
        "published_per_s",
        "acked_per_s",
        "bytes",
    )
    fields = list_display
    ordering = ("topic", "group")
    list_filter = (("topic", LiveValuesFilter), ("group", LiveValuesFilter))
    search_fields = ("topic", "group")
    actions = ("redrive_all", "delete_dead", "delete_groups")

    def rows(self) -> list[TakenBacklog]:
        return engine_rows.add_backlogs(rows_in_turns(lambda: take_backlogs(_broker(), _now_ms())))

    @asks_first("Redrive all dead letters", _group_dead_plan("Returns {} to the queue. Their attempts start again at zero.", []))
    def redrive_all(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        groups = [row for row in rows if row.group]
        redrive = named(OPERATIONS, "queue.redrive")
        outcome = self.do_each(request, groups, redrive, lambda row: Redrive(topic=row.topic, group=row.group), given["reason"])
        done = outcome.count("redriven")
        report(
            self,
            request,
            done=done,
            asked=done,
            what="returned to the queue",
            refusal=outcome.refusal,
            nothing="there were no dead letters",
        )

    @asks_first("Delete all dead letters", _group_dead_plan("Deletes {}.", ["They cannot be restored, or redriven later."]))
    def delete_dead(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        groups = [row for row in rows if row.group]
        purge = named(OPERATIONS, "queue.purge")
        outcome = self.do_each(
            request, groups, purge, lambda row: Purge(topic=row.topic, group=row.group, dead=True), given["reason"]
        )
        _report_deleted(self, request, outcome, "purged", "dead letters")

    @asks_first("Delete the groups", _delete_groups_plan)
    def delete_groups(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        groups = [row for row in rows if row.group]
        delete = named(OPERATIONS, "queue.group_delete")
        outcome = self.do_each(
            request, groups, delete, lambda row: DeleteGroup(topic=row.topic, group=row.group), given["reason"]
        )
        self.report_each(
            request,
            outcome,
            "deleted",
            groups,
            nothing="they were deleted before",
            what="groups deleted" if len(groups) > 1 else "group deleted",
        )


@admin.register(ConsumerRow)
class ConsumerRowAdmin(LiveAdmin):
    """Connected consumers."""

    until = duration("until_ms", "waits for another")

    lead = (
        "Calls and subscriptions that wait for a message, and those whose messages are in flight, on every node. Topics on the engine "
        "redis are not included."
    )
    list_display = ("topic", "group", "node", "doing", "messages", until)
    fields = list_display
    ordering = ("topic", "group", "node")
    list_filter = (
        ("topic", LiveValuesFilter),
        ("group", LiveValuesFilter),
        ("node", LiveValuesFilter),
        ("doing", LiveValuesFilter),
    )
    search_fields = ("topic", "group", "node")

    def rows(self) -> list[TakenConsumer]:
        return rows_in_turns(lambda: take_consumers(_broker(), _now_ms()))


# ----------------------------------------------------------------- messages


def _in_flight_plan(text: str, warnings: list[str]) -> Any:
    def plan(page: LiveAdmin, rows: list[Any]) -> Plan:
        others = sum(row.state != IN_FLIGHT for row in rows)
        if others:
            refusal = f"{others} of the {len(rows)} chosen messages are not in flight. Choose messages that a consumer has."
            return Plan(text.format("messages in flight"), refusal=refusal)
        return Plan(text.format(count(len(rows), "message", "messages")), warnings)

    return plan


_LATE = "A consumer that is still working on one can no longer ack it."


@admin.register(MessageRow)
class MessageRowAdmin(LiveAdmin):
    """Messages that groups have not finished."""

    due_in = duration("due_in_ms", "ready or back in")
    age = duration("age_ms", "published ago")

    contents = ("value", "headers")
    lead = "Messages that are ready, delayed or in flight, for each group that has to finish them. Values are shown to admins."
    list_display = ("msg_id", "topic", "group", "key", "state", "attempt", "node", due_in, age, beginning("value"))
    fields = (
        "msg_id",
        "topic",
        "group",
        "key",
        "partition",
        "state",
        "attempt",
        "node",
        due_in,
        age,
        "receipt",
        "headers",
        "value",
    )
    list_filter = (
        ("state", LiveValuesFilter),
        ("topic", LiveValuesFilter),
        ("group", LiveValuesFilter),
        ("node", LiveValuesFilter),
    )
    search_fields = ("msg_id", "topic", "group", "key", "value")
    actions = ("give_back", "dead_letter")

    def rows(self) -> list[TakenMessage | MessageOnEngine]:
        return engine_rows.add_messages(rows_in_turns(lambda: take_messages(_broker(), _now_ms())), dead=False)

    def _hidden(self, request: HttpRequest) -> tuple[str, ...]:
        # With a receipt, a delivery can be ended. The actions need it.
        hidden = super()._hidden(request)
        return hidden if self.has_operate_permission(request) else (*hidden, "receipt")

    @asks_first(
        "Give back to the queue", _in_flight_plan("Gives {} back to the queue now. The attempts count as failed.", [_LATE])
    )
    def give_back(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        self._nack(request, rows, given, "given back", dead=False)

    @asks_first(
        "Move to the dead letters",
        _in_flight_plan("Makes {} dead letters. They are not delivered again unless they are redriven.", [_LATE]),
    )
    def dead_letter(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        self._nack(request, rows, given, "moved to the dead letters", dead=True)

    def _nack(self, request: HttpRequest, rows: list[Any], given: dict[str, Any], what: str, *, dead: bool) -> None:
        def nack(row: MessageRow) -> Nack:
            # The engine shows no receipts; without one, the delivery in flight is meant.
            receipt = row.receipt or None
            return Nack(topic=row.topic, group=row.group, msg_id=row.msg_id, receipt=receipt, delay_ms=0, dead=dead)

        # The operation is for the consumer; here an operator acts.
        outcome = self.do_each(request, rows, named(OPERATIONS, "queue.nack"), nack, given["reason"], needs=OPERATE)
        self.report_each(request, outcome, "nacked", rows, nothing="their deliveries have ended", what=what)


@admin.register(DeadLetterRow)
class DeadLetterRowAdmin(LiveAdmin):
    """Messages that groups no longer try to deliver."""

    contents = ("value", "headers")
    lead = "Messages that a group no longer tries to deliver, with the history of their deliveries. Values are shown to admins."
    list_display = ("msg_id", "topic", "group", "key", "reason", "attempts", "dead_at", beginning("history"), beginning("value"))
    fields = ("msg_id", "topic", "group", "key", "reason", "attempts", "dead_at", "published_at", "history", "headers", "value")
    list_filter = (("topic", LiveValuesFilter), ("group", LiveValuesFilter), ("reason", LiveValuesFilter))
    search_fields = ("msg_id", "topic", "group", "key", "value", "history")
    actions = ("redrive", "delete_dead")

    def rows(self) -> list[TakenDead | DeadOnEngine]:
        return engine_rows.add_messages(rows_in_turns(lambda: take_dead_letters(_broker())), dead=True)

    @asks_first(
        "Redrive",
        lambda page, rows: Plan(
            f"Returns {count(len(rows), 'dead letter', 'dead letters')} to the queue. Attempts start again at zero."
        ),
    )
    def redrive(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        def redrive(row: DeadLetterRow) -> Redrive:
            return Redrive(topic=row.topic, group=row.group, msg_id=row.msg_id)

        outcome = self.do_each(request, rows, named(OPERATIONS, "queue.redrive"), redrive, given["reason"])
        self.report_each(
            request, outcome, "redriven", rows, nothing="they are no longer dead letters", what="returned to the queue"
        )

    @asks_first(
        "Delete",
        lambda page, rows: Plan(
            f"Deletes {count(len(rows), 'dead letter', 'dead letters')}.", ["They cannot be restored, or redriven later."]
        ),
    )
    def delete_dead(self, request: HttpRequest, rows: list[Any], given: dict[str, Any]) -> None:
        def delete(row: DeadLetterRow) -> DeleteDead:
            return DeleteDead(topic=row.topic, group=row.group, msg_id=row.msg_id)

        outcome = self.do_each(request, rows, DELETE_DEAD, delete, given["reason"])
        self.report_each(request, outcome, "deleted", rows, nothing="they are no longer dead letters")
