"""Which cameras are known, and which of them Home Assistant must be told about."""

from __future__ import annotations

import threading

from functions.cameras.discovery import Cameras
from functions.cameras.message import Camera

FRONT = Camera("front", "Front door")


def test_a_camera_is_due_before_its_first_event_and_with_a_new_name() -> None:
    """And at no other event."""
    cameras = Cameras()
    assert cameras.heard(FRONT)
    assert not cameras.heard(FRONT)
    assert cameras.heard(Camera("front", "Porch"))
    assert not cameras.heard(Camera("front", "Porch"))
    assert cameras.all() == (Camera("front", "Porch"),)


def test_a_camera_without_a_name_is_due_once() -> None:
    """No name is a name too."""
    cameras = Cameras()
    assert cameras.heard(Camera("front"))
    assert not cameras.heard(Camera("front"))


def test_a_forgotten_camera_is_announced_again() -> None:
    """After its removal, or after a discovery message that failed."""
    cameras = Cameras()
    cameras.heard(FRONT)
    assert cameras.forget("front")
    assert not cameras.forget("front")
    assert cameras.all() == ()
    assert cameras.heard(FRONT)


def test_what_was_heard_stands_above_what_was_found() -> None:
    """A document that was found may be older than an event that was heard."""
    cameras = Cameras(limit=3)
    cameras.heard(FRONT)
    back, side, far = Camera("back", "Back"), Camera("side", "Side"), Camera("far", "Far")
    assert cameras.found([Camera("front", "Old name"), back, back, side, far]) == (back, side)
    assert set(cameras.all()) == {FRONT, back, side}
    cameras.heard(far)
    assert FRONT in cameras.all()
    assert len(cameras.all()) == 3


def test_the_cameras_heard_last_are_kept() -> None:
    """Beyond the limit the one that was silent longest goes, and is announced again when it speaks."""
    cameras = Cameras(limit=2)
    one, two, three = Camera("1"), Camera("2"), Camera("3")
    for camera in (one, two, one, three):
        cameras.heard(camera)
    assert cameras.all() == (one, three)
    assert cameras.heard(two)


def test_threads_share_the_cameras() -> None:
    """Each camera is due exactly once, however many threads hear of it."""
    cameras = Cameras()
    due: list[Camera] = []
    heard = [Camera(str(number)) for number in range(200)]

    def hear() -> None:
        due.extend(camera for camera in heard if cameras.heard(camera))

    threads = [threading.Thread(target=hear) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert sorted(camera.camera_id for camera in due) == sorted(camera.camera_id for camera in heard)
