"""Ceph's object gateway on the smallest cluster: one monitor, one OSD on disk, one gateway."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

from infra.local.process import PartError, Process, free_port
from infra.local.stores import LOCAL_CREDENTIALS, LOOPBACK, Store
from tests.matrix.stores.install import find_ceph

COMMAND_SECONDS = 60.0
STOP_SECONDS = 10.0
OSD_BYTES = 4 << 30  # a sparse file: it takes what is written

# Nobody but this machine gets at it, so its parts need not prove to each other who they are. `mgr` is not needed: it
# counts. One copy of everything is enough, and few placement groups start sooner. The OSD's file takes O_DIRECT.
CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail crit = 1
mon pg warn min per osd = 0
run dir = {directory}/run
pid file = {directory}/run/$type.$id.pid
admin socket = {directory}/run/$name.asok
log file = {directory}/$name.log
crash dir = {directory}/crash
mon data = {directory}/mon
osd data = {directory}/osd
osd objectstore = bluestore
osd memory target = 939524096
bluestore block create = true
bluestore block size = {osd_bytes}
[client]
keyring =
[client.rgw]
ms mon client mode = crc secure
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dynamic resharding = false
"""


class Ceph(Store):
    """The gateway is the store's process; the monitor and the OSD live and die with it."""

    def __init__(self, directory: Path) -> None:
        programs = find_ceph()
        if programs is None:
            raise PartError("Ceph is not here: run `make ceph`")
        self._programs = programs
        self._directory = directory.absolute()
        self._configuration_file = self._directory / "ceph.conf"
        self._monitor_port = free_port()
        port = free_port()
        gateway = ("-f", "-n", "client.rgw", "--auth-client-required=none")
        super().__init__(
            "radosgw",
            self._command("radosgw", *gateway),
            self._directory,
            port=port,
            credentials=LOCAL_CREDENTIALS,
            ready_path="/",
            environment={},
            without=("CEPH_",),
        )
        self.monitor = Process("ceph-mon", self._command("ceph-mon", "-f", "-i", "a"), self._directory)
        self.disk = Process("ceph-osd", self._command("ceph-osd", "-f", "-i", "0"), self._directory)

    def start(self) -> Ceph:
        """Monitor, OSD, gateway; the first time they are made."""
        is_new = not self._configuration_file.exists()
        try:
            if is_new:
                self._make_monitor()
            self.monitor.start()
            if is_new:
                self._make_disk()
            self.disk.start()
            super().start()
            if is_new:
                keys = (f"--access-key={self.access_key}", f"--secret-key={self.secret_key}")
                self._run("radosgw-admin", "user", "create", "--uid=matrix", "--display-name=matrix", *keys)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """The gateway first: it would wait for the others."""
        for part in self._parts():
            Process.stop(part, timeout_seconds)

    def kill(self) -> None:
        """All three at once."""
        for part in self._parts():
            Process.kill(part)

    def _parts(self) -> tuple[Process, Process, Process]:
        return self, self.disk, self.monitor

    def _make_monitor(self) -> None:
        for name in ("run", "crash/posted", "mon", "osd"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        fsid = str(uuid.uuid4())
        v2, v1 = self._monitor_port, free_port()
        self._configuration_file.write_text(
            CONFIGURATION.format(
                fsid=fsid, mon_v2=v2, mon_v1=v1, directory=self._directory, port=self.port, osd_bytes=OSD_BYTES
            )
        )
        map_file = str(self._directory / "monmap")
        addresses = f"[v2:{LOOPBACK}:{v2},v1:{LOOPBACK}:{v1}]"
        self._run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", addresses, map_file)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", map_file)

    def _make_disk(self) -> None:
        identity = str(uuid.uuid4())
        self._run("ceph", "osd", "new", identity)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)
        self._run("ceph", "osd", "crush", "add-bucket", "machine", "host", "root=default")
        self._run("ceph", "osd", "crush", "add", "0", "1.0", "root=default", "host=machine")

    def _command(self, program: str, *arguments: str) -> list[str]:
        configuration = () if program == "monmaptool" else ("-c", str(self._configuration_file))
        return [str(self._programs[program]), *configuration, *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(program, *arguments), capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )
        if done.returncode != 0:
            raise PartError(f"`{program} {arguments[0]} …` failed: {(done.stdout + done.stderr).strip()[-1000:]}")
