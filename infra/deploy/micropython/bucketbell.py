"""A device on MicroPython 1.23 or newer: hears of its files by MQTT 3.1.1, downloads, verifies and replaces them.

Copy this file to the board, connect the network, set the clock if you use TLS, then:

    import bucketbell
    bucketbell.Board(
        "a1-b2-c3-d4-e5-f6", token, "http://host.example:8080", "mqtt://user:password@broker.example",
        {"esp32/firmware.bin": "firmware.bin"},
    ).run()

The dictionary names the assets that this device takes, and where each goes; its config goes to `config.json`.
MicroPython alone is needed: MQTT and HTTP are below.
"""

import hashlib
import json
import os
import random
import select
import socket
import struct
import time

PORTS = {"http": 80, "https": 443, "mqtt": 1883, "mqtts": 8883}
CHUNK_BYTES = MAX_PACKET_BYTES = 4096
FILES_PER_PAGE = 20
TIMEOUT_SECONDS = 10
KEEPALIVE_SECONDS = 60
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 1, 300


def connect(url, ca):
    """A connection to where `url` leads; what comes before the host in it, the host with its port, and the path."""
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    user, _, host = ("@" + place).rpartition("@")
    name, _, port = host.partition(":")
    link = socket.socket()
    try:
        link.settimeout(TIMEOUT_SECONDS)
        link.connect(socket.getaddrinfo(name, int(port or PORTS[scheme]), 0, socket.SOCK_STREAM)[0][-1])
        if scheme in ("https", "mqtts"):
            import tls

            context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)  # which verifies
            context.load_verify_locations(ca)
            link = context.wrap_socket(link, server_hostname=name)
    except Exception:
        link.close()
        raise
    return link, user[1:], host, slash + path


def get(url, headers, ca):
    """Status, headers in lower case, and the connection, from which the body can be read. Close it."""
    link, _, host, path = connect(url, ca)
    try:
        headers = dict(headers, Host=host, Connection="close")
        said = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        link.write(f"GET {path} HTTP/1.1\r\n{said}\r\n".encode())
        status, found = int(link.readline().split()[1]), {}
        while line := link.readline().strip():
            name, _, value = line.decode().partition(":")
            found[name.lower()] = value.strip()
    except Exception:
        link.close()
        raise
    return status, found, link


def size_of(path):
    """In bytes; 0 where there is no such file."""
    try:
        return os.stat(path)[6]
    except OSError:
        return 0


def text(value):
    """As MQTT writes text."""
    return struct.pack("!H", len(value.encode())) + value.encode()


class Broker:
    """A subscription to `topics`, QoS 1, in a session that the broker keeps. OSError when it is lost."""

    def __init__(self, url, client_id, topics, ca):
        self.link, user, _, _ = connect(url, ca)
        self.poll = select.poll()
        self.poll.register(self.link, select.POLLIN)
        name, colon, password = user.partition(":")
        who = text(client_id) + (text(name) if name else b"") + (text(password) if colon else b"")
        flags = (0x80 if name else 0) | (0x40 if colon else 0)  # Clean Session is off
        self.send(0x10, text("MQTT") + struct.pack("!BBH", 4, flags, KEEPALIVE_SECONDS) + who)
        kind, body = self.receive()
        if kind != 0x20 or body[1]:
            raise OSError(f"the broker refuses this device: {body[1]}")
        self.send(0x82, b"\0\1" + b"".join(text(topic) + b"\1" for topic in topics))

    def send(self, kind, body=b""):
        """One packet of less than 16,384 bytes."""
        size = len(body)
        self.link.write(bytes((kind, size) if size < 128 else (kind, size & 127 | 128, size >> 7)) + body)
        self.sent_at = time.time()

    def keep_alive(self):
        """Say something if nothing was said for a while; called in the middle of a download too."""
        if time.time() - self.sent_at >= KEEPALIVE_SECONDS // 2:
            self.send(0xC0)

    def read(self, size):
        """All of it."""
        data = self.link.read(size) if size else b""
        if data is None or len(data) < size:
            raise OSError("the broker closed the connection")
        return data

    def receive(self):
        """The first byte of the next packet, and what follows its length."""
        kind, size, shift, more = self.read(1)[0], 0, 0, 128
        while more:
            byte = self.read(1)[0]
            size, shift, more = size | (byte & 127) << shift, shift + 7, byte & 128
        if size > MAX_PACKET_BYTES:
            raise OSError(f"the broker sends a packet of {size} bytes")
        return kind, self.read(size)

    def hear(self):
        """Topic and payload of a message, "" for a topic once all is subscribed, None for anything else."""
        if not self.poll.poll(KEEPALIVE_SECONDS * 500):
            self.keep_alive()
            if not self.poll.poll(TIMEOUT_SECONDS * 1000):
                raise OSError("the broker is silent")
        kind, body = self.receive()
        if kind == 0x90:
            if 0x80 in body[2:]:
                raise OSError("the broker forbids the subscription")
            return "", b""
        if kind & 0xF0 != 0x30:
            return None
        end = start = 2 + struct.unpack("!H", body)[0]
        if kind & 0x06:
            start += 2
            self.send(0x40, body[end:start])  # at once: the manifest knows of what a power cut interrupts
        return body[2:end].decode(), body[start:]


class Board:
    """A board with its files in `directory`. `ca` is the authority's certificate (DER); `on_file` hears a path.

    With `own_topic` it also hears what is for it alone: where the host has DEVICE_TOPICS, and the broker allows it.
    """

    def __init__(
        self,
        mac,
        token,
        server,
        broker,
        assets,
        ca=None,
        directory=".",
        on_file=print,
        topic_prefix="iotsupport",
        *,
        own_topic=False,
    ):
        self.mac, self.server, self.url, self.ca, self.on_file = mac.lower(), server.rstrip("/"), broker, ca, on_file
        self.headers = {"Authorization": "Bearer " + token, "Accept": "application/json"}
        self.topics = {topic_prefix + "/updates/configs": "config", topic_prefix + "/updates/assets": "asset"}
        if own_topic:
            self.topics[f"{topic_prefix}/devices/{self.mac}/updates"] = None
        self.assets, self.directory, self.broker = assets, directory + "/", None
        try:
            with open(self.directory + "bucketbell.json") as file:
                self.notes = json.load(file)  # which version each file is, and which one was begun
        except (OSError, ValueError):
            self.notes = {}

    def run(self):
        """Hear, catch up and fetch, for ever; whatever fails is tried again, with growing pauses."""
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                self.broker = Broker(self.url, "device-" + self.mac, self.topics, self.ca)
                while True:
                    topic, payload = self.broker.hear() or (None, None)
                    if topic == "":
                        self.catch_up()
                        delay = FIRST_RETRY_SECONDS
                    elif topic in self.topics:
                        name = json.loads(payload)["filename"]
                        own = "config" if name.lower() == self.mac + ".json" else "asset"
                        self.fetch(self.topics[topic] or own, name)
            except Exception as error:  # a message that makes no sense, too, must not end it
                print("bucketbell:", repr(error))
            if self.broker is not None:
                self.broker.link.close()
                self.broker = None
            time.sleep(delay / 2 + delay * random.getrandbits(10) / 2048)
            delay = min(2 * delay, LONGEST_RETRY_SECONDS)

    def catch_up(self):
        """Fetch all that the manifest knows better; a file that fails does not hold up the others."""
        following, trouble = "", None
        while following is not None:
            page = self.ask(f"/manifest?limit={FILES_PER_PAGE}{following and '&next=' + following}")
            for one in page["objects"]:
                try:
                    self.fetch(one["kind"], one["filename"], one)
                except Exception as error:
                    trouble = error
            following = page["next"]
        if trouble is not None:
            raise trouble

    def ask(self, path):
        """The server's JSON answer; None for 404."""
        status, headers, link = get(self.server + path, self.headers, self.ca)
        try:
            if status not in (200, 404):
                raise OSError(f"the server answers {status}")
            return json.loads(link.read(int(headers["content-length"]))) if status == 200 else None
        finally:
            link.close()

    def fetch(self, kind, filename, listed=None):
        """Bring a file up to date, if it is one of this device's."""
        if kind == "config" and filename.lower() == self.mac + ".json":
            place, path = "config.json", "/configs/" + filename
        elif kind == "asset" and filename in self.assets:
            place, path = (
                self.assets[filename],
                "/assets?filename=" + "".join(f"%{byte:02X}" for byte in filename.encode()),
            )
        else:
            return
        if listed is not None and self.has(place, listed):
            return
        found = self.ask(path)
        if found is not None and not self.has(place, found):
            self.download(place, found)
            self.note(place, version(found))
            self.on_file(self.directory + place)

    def has(self, place, found):
        """Whether that version is in place."""
        return self.notes.get(place) == version(found) and size_of(self.directory + place) == found["size"]

    def note(self, name, value):
        """Write it down, by a rename."""
        self.notes[name] = value
        with open(self.directory + "bucketbell.new", "w") as file:
            json.dump(self.notes, file)
        os.rename(self.directory + "bucketbell.new", self.directory + "bucketbell.json")

    def begun(self, part, place, found):
        """What an earlier attempt has of that version: its digest so far, and how many bytes."""
        digest, done, buffer = hashlib.sha256(), 0, memoryview(bytearray(CHUNK_BYTES))
        if self.notes.get("part") != [place] + version(found):
            open(part, "wb").close()
            self.note("part", [place] + version(found))
        if size_of(part):
            with open(part, "rb") as file:
                while count := file.readinto(buffer):
                    digest.update(buffer[:count])
                    done += count
        return digest, done

    def download(self, place, found):
        """Download what is missing, verify it, and put it in place by one rename."""
        part, size = self.directory + "bucketbell.part", found["size"]
        digest, done = self.begun(part, place, found)
        if done != size:
            headers = {"Range": f"bytes={done}-"} if done else {}
            if found["etag"]:
                headers["If-Match"] = '"' + found["etag"] + '"'
            status, said, link = get(found["url"], headers, self.ca)
            try:
                if status == 200:  # all of it, also from a store that knows no ranges
                    digest, done = hashlib.sha256(), 0
                elif status != 206 or not said.get("content-range", "").startswith(f"bytes {done}-"):
                    raise OSError(f"the store answers {status}")
                done = self.receive(link, part, digest, done, size)
            finally:
                link.close()
        came = digest.digest().hex()
        if done != size or found.get("sha256") not in (None, came):
            os.remove(part)
            raise OSError(f"{place} came damaged: {done} bytes, sha256 {came}")
        os.rename(part, self.directory + place)

    def receive(self, link, part, digest, done, size):
        """Append what comes to the part and its digest, until there are `size` bytes."""
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with open(part, "ab" if done else "wb") as file:
            while done < size:
                count = link.readinto(buffer[: min(CHUNK_BYTES, size - done)])
                if not count:
                    raise OSError(f"the store ended the connection after {done} bytes")
                file.write(buffer[:count])
                digest.update(buffer[:count])
                done += count
                self.broker.keep_alive()
        return done


def version(found):
    """What makes a version of a file, in the manifest and in the answer."""
    return [found["etag"] or found["last_modified"], found["size"]]
