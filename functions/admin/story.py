"""Pure: what became of an upload, in words: each event, what is in the way now, and the answer in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from functions.admin.conclusion import Case, judge, not_announced
from functions.admin.known import HeardEvent, Known, iso, lasting, moment, told
from functions.admin.schemas import HeardAnswer, ObjectAnswer, RouteAnswer, SaidAnswer, WhyAnswer
from functions.events.routes import Detection, Routes, Skip, Upload

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def shown_route(routes: Routes, action: Upload | Detection | Skip) -> RouteAnswer:
    """Whether a key is announced, and where; or why not, and what to do."""
    if isinstance(action, Upload):
        own = None if action.own is None else action.own.topic
        return RouteAnswer(announced=True, topic=action.message.topic, device_topic=own, filename=action.filename)
    if isinstance(action, Detection):
        return RouteAnswer(announced=True, topic=f"<topic prefix>/camera/{action.camera_id}/event", camera=True)
    detail, remedy = _skipped(routes)[action.reason]
    return RouteAnswer(announced=False, reason=action.reason, detail=detail, remedy=remedy)


def _skipped(routes: Routes) -> dict[str, tuple[str, str]]:
    configs, assets, events = routes.configs_prefix, routes.assets_prefix, routes.events_prefix
    cameras = "" if events is None else f", cameras' events as {events}<camera>/<event>.json"
    return {
        "unmapped": (
            "no rule announces this key",
            f"Upload configs as {configs}<mac>.json and assets as {assets}<path>{cameras}.",
        ),
        "folder_marker": ("it is the marker of a folder, and no file", "Upload a file into the folder."),
        "bad_config_name": (
            "a config is named after its device's MAC address, and this is none",
            f"Upload it as {configs}a1-b2-c3-d4-e5-f6.json, with dashes; a file for all devices under {assets}.",
        ),
        "bad_asset_name": (
            "a device cannot store a file of this name: an empty, `.` or `..` part, a control character, or too long",
            "Upload it under another name.",
        ),
        "bad_event_name": (
            "the name of a camera's event is not valid",
            f"Upload it as {events}<camera>/<event>.json; neither may hold +, # or a control character.",
        ),
    }


def heard(events: Sequence[HeardEvent]) -> tuple[HeardAnswer, ...]:
    """The events, for programs."""
    return tuple(
        HeardAnswer(
            at=moment(one.at),
            until=moment(one.until),
            times=one.times,
            door=one.source,
            outcome=one.outcome,
            reason=one.reason,
            reason_code=one.reason_code,
            id=one.identity.hex(),
            etag=one.etag or None,
            event_time=one.event_time or None,
            detail=told(one),
        )
        for one in events
    )


def unanswered(key: str, route: RouteAnswer) -> WhyAnswer:
    """What can be known where another process publishes."""
    found = ObjectAnswer(state="not_checked", detail="this function may not read the bucket")
    words = (
        "On Lambda another function publishes, and keeps no record of events. Its log (NotifyFunction) names what "
        "failed; what it could not announce is in the queue or its dead-letter queue. docs/aws.md says how to look."
    )
    if not route.announced:
        words = not_announced(key, route).words
    return WhyAnswer(
        key=key,
        scope="lambda",
        object=found,
        route=route,
        events=(),
        left_out=0,
        known_since=None,
        asked_at=None,
        sweep="not_checked",
        in_the_way=(),
        story=(),
        verdict="elsewhere" if route.announced else "not_announced",
        well=False,
        answer=words,
    )


def answered(key: str, route: RouteAnswer, found: ObjectAnswer, known: Known) -> WhyAnswer:
    """Put together what is known."""
    case = Case(key, route, found, known, _mine(found, known.events))
    answer = judge(case)
    return WhyAnswer(
        key=key,
        scope="host",
        object=found,
        route=route,
        events=heard(known.events),
        left_out=known.left_out,
        known_since=moment(known.since),
        asked_at=moment(known.now),
        sweep=known.sweep,
        in_the_way=tuple(_in_the_way(case)),
        story=tuple(_story(case)),
        verdict=answer.word,
        well=answer.well,
        answer=answer.words,
    )


def _mine(found: ObjectAnswer, events: tuple[HeardEvent, ...]) -> tuple[HeardEvent, ...]:
    if found.etag is None:
        return events
    return tuple(one for one in events if not one.etag or one.etag == found.etag)


def _story(case: Case) -> Iterable[SaidAnswer]:
    """In order of time; what holds now comes last."""
    found, known = case.found, case.known
    lines: list[tuple[float, str]] = []
    if found.last_modified is not None:
        name = "" if found.etag is None else f", etag {found.etag}"
        lines.append((found.last_modified.timestamp(), f"uploaded: {found.size} bytes{name} (by the store's clock)"))
    lines += [(one.at, told(one)) for one in known.events]
    if known.sweep_at is not None and not case.mine:
        lines.append((known.sweep_at, f"the sweep's record: {known.sweep_detail}"))
    lines.sort(key=lambda line: line[0])
    if known.left_out:
        yield SaidAnswer(at=None, text=f"{known.left_out} older events are left out here")
    for at, text in lines:
        yield SaidAnswer(at=moment(at), text=text)
    yield SaidAnswer(at=None, text=_presence(found))
    yield SaidAnswer(at=None, text=_place(case))
    if known.on_way:
        yield SaidAnswer(at=None, text=f"on its way to the broker: {len(known.on_way)}")
    for text in _in_the_way(case):
        yield SaidAnswer(at=None, text=text)
    yield SaidAnswer(at=None, text=f"this host remembers events since {iso(known.since)}")


def _presence(found: ObjectAnswer) -> str:
    if found.state == "present":
        return "the file is in the bucket"
    return "there is no such file in the bucket" if found.state == "absent" else f"not checked: {found.detail}"


def _place(case: Case) -> str:
    route = case.route
    too = f", and its device's own: {route.device_topic}" if route.device_topic else ""
    return f"its topic is {route.topic}{too}" if route.announced else f"it is not announced: {route.detail}"


def _in_the_way(case: Case) -> Iterable[str]:
    known = case.known
    if known.broker is None:
        yield "no broker is configured: set MQTT_URL"
    elif not known.connected:
        yield f"the broker {known.broker} is not connected: {known.trouble or 'not yet'}"
    if known.held is not None:
        held = known.held
        state = "it is given up until that ends" if held.is_given_up else "it is tried again"
        yield f"it has failed for {lasting(held.seconds)}, for one reason: {held.reason}; {state}"
    if known.sweep == "unannounced":
        yield f"the sweep: {known.sweep_detail}"
    if known.sweep_trouble:
        yield f"the bucket cannot be swept: {known.sweep_trouble}"
