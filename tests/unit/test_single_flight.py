"""Who asks the same at the same moment shares one answer, which is never older than the question."""

from __future__ import annotations

import asyncio

from infra.host.web.single_flight import SingleFlight, Tell
from tests.hosts import on_uvloop


class Store:
    """Calls that the test answers, and what each client was told."""

    def __init__(self) -> None:
        self.flights = SingleFlight[str](lambda answer: answer == "failed")
        self.calls: list[tuple[str, Tell[str]]] = []
        self.told: dict[str, str] = {}

    async def ask(self, client: str, key: str = "a") -> None:
        """Ask, and let the loop turn."""
        self.ask_soon(client, key)
        await turn()

    def ask_soon(self, client: str, key: str = "a") -> None:
        """Ask, in this turn of the loop."""
        self.flights.ask(
            key, lambda tell: self.calls.append((key, tell)), lambda answer: self.told.update({client: answer})
        )

    async def answer(self, number: int, answer: str) -> None:
        """Answer one of the calls."""
        self.calls[number][1](answer)
        await turn()


async def turn() -> None:
    """What is due now happens."""
    for _ in range(3):
        await asyncio.sleep(0)


@on_uvloop
async def test_who_asks_in_the_same_moment_shares_the_first_call() -> None:
    """Nobody has to wait for another's call to come along."""
    store = Store()
    for client in "abcde":
        store.ask_soon(client)
    await turn()
    assert len(store.calls) == 1
    await store.answer(0, "1")
    assert store.told == dict.fromkeys("abcde", "1")


@on_uvloop
async def test_an_answer_is_not_older_than_the_question() -> None:
    """Ten ask while two calls are under way: they wait for one more call together. Another key has one of its own."""
    store = Store()
    await store.ask("first")
    await store.ask("second")
    for number in range(10):
        await store.ask(f"late-{number}")
    await store.ask("stranger", "b")
    assert [key for key, _ in store.calls] == ["a", "a", "b"]
    await store.answer(0, "1")
    assert len(store.calls) == 4
    await store.answer(1, "2")
    await store.answer(2, "3")
    assert store.told == {"first": "1", "second": "2", "stranger": "3"}
    await store.answer(3, "4")
    assert {store.told[f"late-{number}"] for number in range(10)} == {"4"}
    await store.ask("next day")
    assert len(store.calls) == 5, "nothing is kept"
    await store.answer(4, "5")
    assert store.told["next day"] == "5"


@on_uvloop
async def test_who_waits_behind_a_failure_shares_it() -> None:
    """A store that hangs is not asked again for those who have waited for it already."""
    store = Store()
    await store.ask("first")
    await store.ask("second")
    await store.ask("third")
    await store.answer(1, "failed")
    assert store.told == {"second": "failed", "third": "failed"}
    await store.answer(0, "1")
    assert (store.told["first"], len(store.calls)) == ("1", 2)


@on_uvloop
async def test_nothing_of_a_key_is_kept() -> None:
    """Of millions of questions none takes memory once it is answered."""
    store = Store()
    for number in range(10):
        await store.ask("somebody", f"{number}")
        await store.answer(number, "1")
    assert not store.flights._running  # noqa: SLF001 - nothing else shows it
    assert not store.flights._waiting  # noqa: SLF001 - as above
