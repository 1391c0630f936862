"""The ends of deliveries: ack, nack, extend, and what is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from dss_api.errors import Refused
from dss_queue.answers import AckResult
from dss_queue.core.commands import Acks, TopicSettings
from dss_queue.redis_engine import messages
from dss_queue.redis_engine.errors import NoGroup, unreadable
from dss_queue.redis_engine.keys import group_keys, partition_keys
from dss_queue.redis_engine.messages import NUMBER_LENGTH, Named, Place, QueueSettings, place_of, serial_of
from dss_queue.redis_engine.servers import Servers

#: The letters of a delivery that a step did not find.
NOT_FOUND = frozenset("ns")
#: The letter of a delivery that a step has left for another one: the call names messages of too many consumes.
LEFT = "l"
NOT_IN_FLIGHT = "the delivery is over: the message is not in flight"


class Nacked(NamedTuple):
    nacked: bool
    dead: bool


class Endings:
    """The part of the engine that ends deliveries."""

    def __init__(self, servers: Servers, partitions: int) -> None:
        self.partitions = partitions
        self._servers = servers

    async def ack(
        self,
        topic: str,
        group: str,
        msg_ids: Sequence[str],
        receipts: Sequence[str] | None,
        settings: TopicSettings,
        *,
        acks: Acks = "primary",
    ) -> list[AckResult]:
        """Finish messages: one step for each partition that they are in. With `receipts`, each message is named once;
        see `AckRequest`.

        Raises:
            Refused: `unknown_outcome`.
        """
        ids = list(msg_ids if receipts is not None else dict.fromkeys(msg_ids))

        async def step(partition: int, numbers: str, serials: str | list[str]) -> str:
            try:
                return await self._ack(topic, partition, group, settings, numbers, serials, acks)
            except NoGroup:
                return "n" * (len(numbers) // NUMBER_LENGTH)

        taken = messages.of_one_consume(ids, None if receipts is None else list(receipts), self.partitions)
        if taken is not None:
            return [_ack_result(*item) for item in zip(ids, await step(*taken), strict=True)]
        given: dict[str, str | None] = dict.fromkeys(ids)
        if receipts is not None:
            given.update(zip(ids, receipts, strict=True))
        places = messages.by_partition(given.items(), self.partitions)
        steps = await asyncio.gather(*(step(partition, named.text, named.serial) for partition, named in places.items()))
        letters: dict[str, str] = {}
        for named, found in zip(places.values(), steps, strict=True):
            letters.update(zip(named.msg_ids, found, strict=True))
        return [_ack_result(msg_id, letters.get(msg_id, "n")) for msg_id in given]

    async def _ack(
        self, topic: str, partition: int, group: str, settings: TopicSettings, numbers: str, serials: str | list[str], acks: Acks
    ) -> str:
        """The letters of `ack`, in as many steps as it takes."""
        letters = await self._letters("ack", topic, partition, group, settings, numbers, serials, acks=acks)
        while LEFT in letters:
            places = [place for place, letter in enumerate(letters) if letter == LEFT]
            rest = "".join(numbers[NUMBER_LENGTH * place : NUMBER_LENGTH * (place + 1)] for place in places)
            of_rest = serials if isinstance(serials, str) else [serials[place] for place in places]
            found = await self._letters("ack", topic, partition, group, settings, rest, of_rest, acks=acks)
            if found.count(LEFT) == len(places):
                raise unreadable("it has done nothing", changes=True)
            after = iter(found)
            letters = "".join(next(after) if letter == LEFT else letter for letter in letters)
        return letters

    async def nack(
        self,
        topic: str,
        group: str,
        msg_id: str,
        receipt: str | None,
        settings: TopicSettings,
        *,
        delay_ms: int | None = None,
        dead: bool = False,
        silent: bool = False,
        acks: Acks = "primary",
    ) -> Nacked:
        """Give a message back.

        Raises:
            Refused: `stale_receipt`, `unknown_outcome`.
        """
        reason = "rejected" if dead else "silent" if silent else "nack"
        delay = -1 if delay_ms is None else delay_ms
        if reason == "silent":
            delay = delay_ms or 0
        letter = await self._of_one("nack", topic, group, msg_id, receipt, settings, reason, delay, acks=acks)
        if letter == "s":
            raise _stale(msg_id)
        return Nacked(letter in "bd", letter == "d")

    async def give_back(self, topic: str, group: str, held: dict[str, str], settings: TopicSettings) -> None:
        """The consumer has gone: its deliveries, receipts by msg_id, end without counting as attempts. One step for each partition: a
        server that hangs holds up the caller once, not for each message."""

        async def step(partition: int, named: Named) -> None:
            try:
                await self._letters("nack", topic, partition, group, settings, named.text, named.serial, "gone", 0)
            except NoGroup:
                return
            except Refused as error:
                if error.code != "unknown_outcome":
                    raise

        places = messages.by_partition(held.items(), self.partitions)
        await asyncio.gather(*(step(*item) for item in places.items()))

    async def extend(
        self,
        topic: str,
        group: str,
        msg_id: str,
        receipt: str | None,
        settings: TopicSettings,
        visibility_ms: int,
        *,
        acks: Acks = "primary",
    ) -> int:
        """Hide a message for `visibility_ms` from now. Returns until when, in the time of the primary.

        Raises:
            Refused: `stale_receipt`.
        """
        place = self._place(msg_id)
        if place is None:
            raise _stale(msg_id)
        serial = serial_of(msg_id, receipt)
        keys = partition_keys(topic, place.partition) + group_keys(topic, place.partition, group)
        try:
            data = await self._servers.call(
                "extend", keys, for_deliveries(settings), place.number, serial, visibility_ms, acks=acks
            )
        except NoGroup:
            raise _stale(msg_id) from None
        _, due_ms, letter = messages.extend_answer.decode(data)
        if letter != "e":
            raise _stale(msg_id)
        return due_ms

    async def _of_one(
        self,
        step: str,
        topic: str,
        group: str,
        msg_id: str,
        receipt: str | None,
        settings: TopicSettings,
        *args: object,
        acks: Acks = "primary",
    ) -> str:
        """The letter of a step on one message; "n" if there is no such message or group."""
        place = self._place(msg_id)
        if place is None:
            return "n"
        serial = serial_of(msg_id, receipt)
        try:
            return await self._letters(step, topic, place.partition, group, settings, place.number, serial, *args, acks=acks)
        except NoGroup:
            return "n"

    async def _letters(
        self,
        step: str,
        topic: str,
        partition: int,
        group: str,
        settings: TopicSettings,
        numbers: str,
        serials: str | list[str],
        *args: object,
        acks: Acks = "primary",
    ) -> str:
        """The letters of a step that ends deliveries.

        Args:
            numbers: one after another.
            serials: of each of them, or one for all.

        Raises:
            NoGroup: see there.
            Refused: `unknown_outcome`.
        """
        keys = partition_keys(topic, partition) + group_keys(topic, partition, group)
        data, is_repeat = await self._servers.call_and_repeats(
            step, keys, for_deliveries(settings), numbers, serials, *args, acks=acks, repeatable=bool(serials) and all(serials)
        )
        _, letters = messages.letters_answer.decode(data)
        if len(letters) * NUMBER_LENGTH != len(numbers):
            raise unreadable(f"{len(letters)} letters", changes=True)
        if is_repeat and not NOT_FOUND.isdisjoint(letters):
            raise Refused(
                "unknown_outcome", "the answer was lost, and a repeat found nothing in flight: it may have taken effect"
            )
        return letters

    def _place(self, msg_id: str) -> Place | None:
        place = place_of(msg_id)
        return place if place is not None and place.partition < self.partitions else None


def for_deliveries(settings: TopicSettings) -> tuple[int, int, int, bool]:
    """What ends of deliveries need of the settings."""
    return settings.max_attempts, settings.backoff_ms, settings.retention_ms, isinstance(settings, QueueSettings)


def _ack_result(msg_id: str, letter: str) -> AckResult:
    if letter == "s":
        return AckResult(msg_id=msg_id, acked=False, code="stale_receipt")
    return AckResult(msg_id=msg_id, acked=letter == "a")


def _stale(msg_id: str) -> Refused:
    return Refused("stale_receipt", NOT_IN_FLIGHT, msg_ids=[msg_id])
