"""Task logs, read from the region that stores them, during the task and after it.

A worker ships a task's log to ``s3://<log bucket>/logs/<log path>/<segment>/``: numbered chunks while it runs, the whole
as ``full.log`` at the end (docs/reference/interfaces.md, "Logs"). One try of a task has several segments if it was deferred,
rescheduled or released. `RegionalLogs` finds the regions of a try in the ledger and returns its segments in order.

Logs of the control plane itself (triggers, other executors) are uploaded to the home region's bucket in the same format.

Secrets are masked on the worker, when a line is written; nothing here masks or unmasks.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog

from airbridge.control_plane.task_locations import Note, TaskLocation, of_try
from airbridge.core.aws.object_store import ObjectStore
from airbridge.core.exceptions import ObjectNotFound, StoreError

log = structlog.get_logger(__name__)

FULL = "full.log"
_TRIGGER_SUFFIX = re.compile(r"\.trigger\.(\d+)\.log$")
CONNECT_SECONDS = 2.0
READ_SECONDS = 10.0


def log_prefix(log_path: str) -> str:
    """Return the key prefix of all segments of a try, the same in every region's bucket."""
    return f"logs/{log_path}/"


@dataclass(frozen=True)
class Segment:
    """Log of one work item under one epoch: `full` if it has ended, else the chunks so far."""

    name: str
    region: str
    store: ObjectStore = field(repr=False)
    prefix: str
    chunks: tuple[str, ...]
    full: bool

    @property
    def source(self) -> str:
        """Display name: URL and region."""
        return f"s3://{self.store.bucket}/{self.prefix} ({self.region})"

    def content(self) -> Iterator[bytes]:
        """Yield its bytes. Raises `StoreError`.

        If the task ends meanwhile, the full log replaces the chunks; reading continues there at the same offset.
        """
        done = 0
        if not self.full:
            try:
                for chunk in self.chunks:
                    for piece in self.store.stream(chunk):
                        done += len(piece)
                        yield piece
                return
            except ObjectNotFound:
                pass
        yield from _skip(self.store.stream(self.prefix + FULL), done)


def _skip(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    for piece in pieces:
        if count >= len(piece):
            count -= len(piece)
        else:
            yield piece[count:]
            count = 0


def segments(region: str, store: ObjectStore, log_path: str) -> list[Segment]:
    """Return the segments of a try in one region, in order. Raises `StoreError`."""
    prefix = log_prefix(log_path)
    found: dict[str, list[str]] = {}
    for info in store.list(prefix):
        name, slash, file = info.key.removeprefix(prefix).partition("/")
        if slash and file:
            found.setdefault(name, []).append(file)
    return [
        Segment(
            name,
            region,
            store,
            f"{prefix}{name}/",
            tuple(f"{prefix}{name}/{file}" for file in sorted(files) if file != FULL),
            FULL in files,
        )
        for name, files in sorted(found.items())
    ]


def lines(pieces: Iterable[bytes], *, whole: bool) -> Iterator[str]:
    """Yield the lines of a byte stream. Unless `whole`, an unterminated last line is left out: it is being written."""
    rest = b""
    for piece in pieces:
        *complete, rest = (rest + piece).split(b"\n")
        for line in complete:
            yield line.decode(errors="replace")
    if rest and whole:
        yield rest.decode(errors="replace")


class RegionalLogs:
    """Implementation of Airflow's `RemoteLogIO`: reads logs from all regions, uploads those of the control plane.

    `regions` returns the home region's name and each region's log bucket, `locate` the location of a try. Nothing is
    read or connected before it is needed: Airflow creates this at import.
    """

    processors: tuple[Any, ...] = ()

    def __init__(
        self,
        *,
        regions: Callable[[], tuple[str, Mapping[str, ObjectStore]]] | None = None,
        locate: Callable[[Any], TaskLocation] = of_try,
        withheld: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self._withheld_regions = withheld or (_strict_regions if regions is None else tuple)
        self._regions = regions or _configured_regions
        self._locate = locate

    # --- Reading --------------------------------------------------------------------------------------

    def read(self, relative_path: str, ti: Any) -> tuple[list[str], list[Iterator[str]] | None]:
        """Return the sources of the log of `ti`'s try, and generators of its lines: log header, segments, ledger notes.

        Never raises for an unreachable region: the error is one of the sources.
        """
        location = self._locate(ti)
        found, troubles = self._find(relative_path, location.regions)
        sources = [segment.source for segment in found] + troubles
        streams: list[Iterator[str]] = []
        if location.header:
            streams.append(_notes(location.header, level="info"))
        if found:
            streams.append(_stream(found, running=_is_running(ti)))
        elif location.edge and not troubles:
            sources.append(_no_log_message(ti, location))
        if location.notes:
            streams.append(_notes(location.notes))
        return sources, streams or None

    def _find(self, log_path: str, names: Sequence[str]) -> tuple[list[Segment], list[str]]:
        """Return the segments of the try's regions, in order, and an error message per unreadable region."""
        wanted = self._wanted(names)

        def list_region(name: str) -> list[Segment] | str:
            if name in self._withheld:
                return _withheld_note(name, self._stores[name].bucket, log_path)
            try:
                return segments(name, self._stores[name], log_path)
            except StoreError as error:
                log.warning("logs.region_unreadable", region=name, log_path=log_path, error=str(error))
                return f"The logs of region {name} cannot be read now: {error}"

        with ThreadPoolExecutor(max(1, len(wanted)), "log-regions") as pool:
            answers = list(pool.map(list_region, wanted))
        found = [segment for answer in answers if not isinstance(answer, str) for segment in answer]
        return sorted(found, key=lambda each: each.name), [each for each in answers if isinstance(each, str)]

    def _wanted(self, names: Sequence[str]) -> list[str]:
        """Return the named regions and the home region, which has triggers' logs; all regions if none is named."""
        known = [name for name in names if name in self._stores]
        if not known:
            return list(self._stores)
        return list(dict.fromkeys([*known, self._home]))

    # --- Uploading ------------------------------------------------------------------------------------

    def upload(self, path: str | os.PathLike[str], ti: Any) -> None:
        """Upload the log of a trigger, or of a task that ran on the control plane, to the home region.

        `path` is relative to Airflow's log folder. Never raises: an exception would end Airflow's triggerer.
        """
        relative = Path(path).as_posix()
        local = Path(_log_folder(), relative)
        try:
            key = upload_key(relative, _first_written(local), str(getattr(ti, "id", "unknown")))
            self._stores[self._home].put_file(key, local)
        except (StoreError, OSError) as error:
            log.warning("logs.upload_failed", path=str(local), error=str(error))

    @cached_property
    def _configured(self) -> tuple[str, Mapping[str, ObjectStore]]:
        return self._regions()

    @cached_property
    def _withheld(self) -> frozenset[str]:
        """Regions whose logs are not read: their residency is strict."""
        return frozenset(self._withheld_regions())

    @property
    def _home(self) -> str:
        return self._configured[0]

    @property
    def _stores(self) -> Mapping[str, ObjectStore]:
        return self._configured[1]


def upload_key(relative: str, first_written: datetime, ti_id: str) -> str:
    """Return the key of a log from the control plane: a segment beside those of workers."""
    trigger = _TRIGGER_SUFFIX.search(relative)
    log_path = relative[: trigger.start()] if trigger else relative
    writer = f"trigger-{trigger[1]}" if trigger else f"local-{ti_id}"
    return f"{log_prefix(log_path)}{first_written:%Y%m%dT%H%M%S.%fZ}-0-{writer}/{FULL}"


def _first_written(path: Path) -> datetime:
    """Return the time of the first line, by which segments are ordered; else the file's modification time."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline()
    with suppress(ValueError, KeyError, TypeError):
        return datetime.fromisoformat(json.loads(first)["timestamp"]).astimezone(UTC)
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _stream(found: Sequence[Segment], *, running: bool) -> Iterator[str]:
    """Yield all lines of the segments in order. Airflow's handler requires a generator."""
    for segment in found:
        try:
            yield from lines(segment.content(), whole=segment.full or not running)
        except StoreError as error:
            yield _event(f"The rest of this log cannot be read now: {error}", level="warning")


def _notes(notes: Sequence[Note], level: str = "error") -> Iterator[str]:
    for note in notes:
        yield _event(note.text, level=level, timestamp=note.at.isoformat())


def _event(text: str, **fields: str) -> str:
    """Return a log line in the Task SDK's JSON format."""
    return json.dumps({"event": text, "logger": "airbridge", **fields})


def _no_log_message(ti: Any, location: TaskLocation) -> str:
    regions = ", ".join(location.regions)
    worker = f" (worker {location.worker})" if location.worker else ""
    if _is_running(ti):
        return f"No log has come from region {regions}{worker} yet; a worker uploads new lines every few seconds."
    if location.worker is None:
        return "No worker has run it; see its timeline."
    return f"No log has come from region {regions}{worker}. If the worker was disconnected, it uploads the log once it is connected again."


def _is_running(ti: Any) -> bool:
    return str(getattr(ti, "state", "")) == "running"


def _withheld_note(region: str, bucket: str, log_path: str) -> str:
    where = f"s3://{bucket}/{log_prefix(log_path)}"
    return f"The log stays in region {region}, whose residency is strict: {where}"


def _strict_regions() -> list[str]:
    from airbridge.core.catalogue import Catalogue
    from airbridge.core.regions import Residency
    from airbridge.executor import settings

    catalogue = Catalogue.read(settings.load().regions_file)
    return [region.name for region in catalogue.regions if region.residency is Residency.STRICT]


def _log_folder() -> str:
    from airflow.configuration import conf

    folder: str = conf.get("logging", "base_log_folder")
    return os.path.expanduser(folder)  # noqa: PTH111 - what Airflow does with the same text


def _configured_regions() -> tuple[str, Mapping[str, ObjectStore]]:
    from airbridge.core.aws.object_store import connect
    from airbridge.core.catalogue import Catalogue
    from airbridge.executor import settings

    catalogue = Catalogue.read(settings.load().regions_file)
    stores = {
        region.name: connect(
            region.aws,
            region.log_bucket,
            endpoint_url=region.endpoint_url,
            connect_seconds=CONNECT_SECONDS,
            read_seconds=READ_SECONDS,
            attempts=1,
        )
        for region in catalogue.regions
    }
    return catalogue.home_region, stores
