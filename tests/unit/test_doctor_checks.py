"""What is checked, what is not, and when: the order and the deadlines of `bucketbell doctor`."""

from __future__ import annotations

import threading

from infra.doctor.checks import Checkup, Finding, NotCheckedError, Timed, WrongError, examine

SECRET = "a-secret-in-an-exception"


def fail() -> str:
    """Something is wrong."""
    raise WrongError("It is broken.", "Mend it.")


def unknown() -> str:
    """Nobody can tell."""
    raise NotCheckedError("nobody tells")


def crash() -> str:
    """A mistake of our own."""
    raise RuntimeError(SECRET)


def well() -> str:
    """All is well."""
    return "fine"


def told(*checks: Checkup, total_seconds: float = 10.0) -> list[Finding]:
    """The findings, which were also heard one by one."""
    heard: list[Finding] = []
    found = examine(checks, heard.append, total_seconds=total_seconds)
    assert heard == found
    return found


def test_what_depends_on_something_that_is_not_well_is_not_checked() -> None:
    """Whatever it is, and also at second hand; what it does not depend on is looked at."""
    found = told(
        Checkup("a", fail),
        Checkup("b", unknown),
        Checkup("after a", well, ("a",)),
        Checkup("after that", well, ("after a",)),
        Checkup("after b", well, ("b",)),
        Checkup("alone", well),
    )
    assert [(one.name, one.health) for one in found] == [
        ("a", "wrong"),
        ("b", "not checked"),
        ("after a", "not checked"),
        ("after that", "not checked"),
        ("after b", "not checked"),
        ("alone", "ok"),
    ]
    assert (found[0].detail, found[0].remedy) == ("It is broken.", "Mend it.")
    assert found[2].detail == "it needs: a"


def test_what_is_not_part_of_the_installation_is_not_waited_for() -> None:
    """A host without a database has a broker all the same."""
    assert told(Checkup("broker", well, ("database",)))[0].health == "ok"


def test_a_check_that_hangs_is_given_up() -> None:
    """And the next goes on."""
    never = threading.Event()
    found = told(Checkup("hangs", lambda: str(never.wait(60)), seconds=0.05), Checkup("next", well))
    assert [one.health for one in found] == ["wrong", "ok"]
    assert "no answer within" in found[0].detail
    never.set()


def test_when_the_time_is_over_the_rest_is_not_checked() -> None:
    """Also what had begun: it was not slow, there was no time for it."""
    never = threading.Event()
    found = told(Checkup("hangs", lambda: str(never.wait(60))), Checkup("next", well), total_seconds=0.05)
    assert [(one.health, one.detail) for one in found] == [("not checked", "there was no time left for it")] * 2
    never.set()


def test_a_check_that_fails_itself_finds_nothing_and_tells_no_secret() -> None:
    """Only what kind of mistake it is."""
    found = told(Checkup("crash", crash))[0]
    assert found.health == "not checked"
    assert "RuntimeError" in found.detail
    assert SECRET not in str(found)


def test_milliseconds_are_told_where_they_tell_something() -> None:
    """And nowhere else."""
    found = told(Checkup("timed", lambda: Timed("fine", 1.5)), Checkup("well", well))
    assert [one.milliseconds for one in found] == [1.5, None]
