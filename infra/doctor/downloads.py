"""What a device does: a link is fetched at the address that it names, and the host is asked at its public address."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

from functions.s3.clients import StorageError, configured_endpoint, is_loopback
from functions.s3.clients import region as store_region
from functions.s3.objects import Objects
from functions.s3.regions import WRONG_IN_A_LINK, mismatch, named_region, remedy, sentence
from infra.device.trouble import FetchError
from infra.doctor.checks import Checkup, NotCheckedError, Timed, WrongError
from infra.doctor.host import HOST
from infra.doctor.store import GET

if TYPE_CHECKING:
    from functions.settings import Settings
    from infra.doctor.host import HostLeg
    from infra.doctor.store import StoreLeg
    from infra.http_client import Web

LINK, KEYS, ENDING, PUBLIC = "download link", "device tokens", "tokens' end", "PUBLIC_BASE_URL"

ANSWER_BYTES = 4096
NAMED_DEVICES = 5
_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>")
_FINE = frozenset({200, 206})


class DownloadsLeg:
    """Links as the host makes them, and the host's own address."""

    def __init__(self, settings: Settings, store: StoreLeg | None, host: HostLeg, web: Web) -> None:
        """Nothing is asked yet."""
        self._host = host
        self._settings = settings
        self._store = store
        self._web = web

    def checks(self) -> tuple[Checkup, ...]:
        """All of them, in order."""
        checks: list[Checkup] = []
        if self._store is not None:
            store = self._store
            checks.append(Checkup(LINK, lambda: self._link(store), (GET,)))
        if self._settings.device_token_keys:
            checks += [Checkup(KEYS, self._keys), Checkup(ENDING, self._ending, (KEYS, HOST))]
        if self._settings.public_base_url is not None:
            checks.append(Checkup(PUBLIC, self._public))
        return tuple(checks)

    def _link(self, store: StoreLeg) -> Timed:
        key = store.a_key
        if key is None:
            raise NotCheckedError("there is no file to fetch")
        try:
            url = store.objects.presign(key, filename=key).url
        except StorageError as error:
            raise WrongError(
                f"No link can be signed: {error.message}.", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            ) from None
        place = _place(url)
        variable = (
            "S3_PUBLIC_ENDPOINT_URL" if self._settings.s3_public_endpoint_url else "AWS_ENDPOINT_URL_S3 (or _URL)"
        )
        began_at = time.monotonic()
        status, said = self._fetch(url, place, variable)
        code = found[1] if (found := _CODE.search(said)) else ""
        if status in _FINE:
            alone = "; only devices on this machine can use it" if is_loopback(place) else ""
            return Timed.since(began_at, f"{place} gives the file{alone}")
        if code == "SignatureDoesNotMatch":
            self._explain_mismatch(store, key, place)
        if code in WRONG_IN_A_LINK and (region := named_region(said)):
            ours = store_region(self._settings)
            raise WrongError(
                f"A link to {place} is refused: {mismatch(ours, region)}.", f"{sentence(remedy(region))} for the host."
            )
        if code in {"NoSuchBucket", "NoSuchKey", "InvalidAccessKeyId", ""}:
            raise WrongError(
                f"What answers at {place} is not the store that signs: HTTP {status}{code and f', {code}'}.",
                f"Set {variable} to the address at which devices reach this very store.",
            )
        raise WrongError(
            f"{place} refuses a fresh link: HTTP {status}, {code}.",
            "Look into the store's own log, and into that of the proxy in front of it.",
        )

    def _explain_mismatch(self, store: StoreLeg, key: str, place: str) -> NoReturn:
        """A link for the store's own address that is good at the public one proves that the Host was changed."""
        inside = Objects(store.settings, store.bucket, url_ttl_seconds=60).presign(key, filename=key).url
        own = configured_endpoint("s3", self._settings)
        if own is not None and _place(inside) != place:
            status, _ = self._fetch(url=place + inside.removeprefix(_place(inside)), place=place, variable="")
            if status in _FINE:
                raise WrongError(
                    f"The proxy at {place} changes `Host`: the store sees {urlsplit(own).netloc}, and the link is "
                    "signed for the name that devices use.",
                    "Have the proxy pass `Host` on as it came (nginx: `proxy_set_header Host $http_host;`).",
                )
        raise WrongError(
            f"The store refuses the signature of a link to {place}: it sees another host, path or query.",
            "S3_PUBLIC_ENDPOINT_URL must be exactly the address that devices use, with its port, and a proxy there "
            "must pass `Host` and the path on as they came (nginx: `proxy_set_header Host $http_host;`, and no path "
            "behind `proxy_pass`).",
        )

    def _fetch(self, url: str, place: str, variable: str) -> tuple[int, str]:
        try:
            with self._web.get(url, {"Range": "bytes=0-0"}) as answer:
                return answer.status, answer.beginning(ANSWER_BYTES).decode(errors="replace")
        except FetchError as error:
            own = configured_endpoint("s3", self._settings)
            if is_loopback(place) and own is not None and not is_loopback(own):  # in a container that is itself
                raise NotCheckedError(
                    f"{place} is not the store from here, which is {own}; on a machine whose port leads there devices "
                    "can use it. For others set S3_PUBLIC_ENDPOINT_URL"
                ) from None
            raise WrongError(
                f"Nobody gives the file at {place}: {error}",
                f"Correct {variable}, or open that address: devices fetch from there.",
            ) from None

    def _keys(self) -> str:
        from functions.web.tokens import Keyring, KeyringError  # noqa: PLC0415 - PyJWT only where there are keys

        keys = [key.get_secret_value() for key in self._settings.device_token_keys]
        try:
            Keyring.parse(keys, revoked=self._settings.device_tokens_revoked)
        except KeyringError as error:
            raise WrongError(str(error), "Correct DEVICE_TOKEN_KEYS: `<kid>:<base64 of at least 32 bytes>`.") from None
        return f"{len(keys)} {'key' if len(keys) == 1 else 'keys'}; the first signs"

    def _ending(self) -> str:
        seen = self._host.status().get("device_tokens")
        if seen is None:
            raise NotCheckedError("the host is of an older release")
        if not seen["devices"]:
            raise NotCheckedError("no device has shown the host a token since its start")
        ending = [f"{one['mac']} on {one['expires_at'][:10]}" for one in seen["ending"]]
        if ending:
            more = f" and {len(ending) - NAMED_DEVICES} more" if len(ending) > NAMED_DEVICES else ""
            raise WrongError(
                f"Devices' tokens end within 30 days, or have ended: {', '.join(ending[:NAMED_DEVICES])}{more}.",
                "Make new ones with `bucketbell token MAC`, and bring them to these devices. With `--json`, "
                "`bucketbell mqtt status` names up to 100.",
            )
        return f"none of the {seen['devices']} devices that the host has seen needs a new one within 30 days"

    def _public(self) -> str:
        base = (self._settings.public_base_url or "").rstrip("/")
        try:
            # A host and a function both ask for a token there.
            with self._web.get(f"{base}/manifest", {"Accept": "application/json"}) as answer:
                status, body = answer.status, answer.beginning(ANSWER_BYTES)
        except FetchError as error:
            raise WrongError(
                f"Nobody answers at {base}: {error}",
                "Set PUBLIC_BASE_URL to the host's address as devices and browsers reach it, and have the proxy there "
                "pass everything on to the host.",
            ) from None
        if status == 401 and b"token" in body:  # noqa: PLR2004 - as HTTP says it
            return f"{base} is the host"
        raise WrongError(
            f"What answers at {base} is not the host: HTTP {status}.",
            "Correct PUBLIC_BASE_URL, or have the proxy there pass everything on to the host.",
        )


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
