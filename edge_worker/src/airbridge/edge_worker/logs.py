"""Task logs: written to a local file by the task's supervisor, shipped from here to the region's bucket.

While a task runs, what is new goes out in numbered chunks; at its end the whole goes out as ``full.log`` and the chunks
go. A log leaves this machine's disk only when the bucket has it, however long that takes and however often the worker
starts again. Layout: docs/architecture.md, "Logs".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.journal_rows import ForgetLog, Key, LogRow, key_of
from airbridge.edge_worker.queue import in_daemon_thread
from airbridge.edge_worker.retry import Backoff
from airbridge.executor.exceptions import StoreError
from airbridge.executor.protocol import Grant
from airbridge.executor.store import ObjectStore

log = structlog.get_logger(__name__)

FULL: Final = "full.log"
MAX_UPLOADS: Final = 4
INLINE_BYTES: Final = 8 * 1024 * 1024
"""Up to this size a log goes out in one simple request."""


@dataclass
class _Log:
    row: LogRow
    offset: int = 0
    chunks: int = 0
    adopted: bool = False
    """Whether an earlier process began it: how many chunks are out is for the bucket to say."""
    shipping: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def path(self) -> Path:
        return Path(self.row.path)


class LogShipper:
    """See the module. `store` makes the log bucket's store; it is called in threads."""

    def __init__(
        self,
        directory: Path,
        store: Callable[[], ObjectStore],
        journal: Journal,
        *,
        backoff: Callable[[], Backoff],
        chunk_seconds: float,
        chunk_bytes: int,
    ) -> None:
        self._directory = directory
        self._store = store
        self._journal = journal
        self._backoff = backoff
        self._chunk_seconds = chunk_seconds
        self._chunk_bytes = chunk_bytes
        self._running: dict[Key, _Log] = {}
        self._ended: dict[Key, _Log] = {}
        self._uploads: dict[Key, asyncio.Task[None]] = {}
        self._limit = asyncio.Semaphore(MAX_UPLOADS)

    def row_for(self, grant: Grant) -> LogRow:
        """Return where the log of a granted work item is written, and where it goes."""
        segment = f"{grant.start_date:%Y%m%dT%H%M%S.%fZ}-{grant.epoch}-{grant.item_id}"
        path = self._directory / f"{grant.item_id}-{grant.epoch}.log"
        return LogRow(
            str(grant.item_id), grant.epoch, f"logs/{grant.log_path.strip('/')}/{segment}", str(path)
        )

    def follow(self, row: LogRow) -> None:
        """Ship what is written to this log from now on."""
        self._running[key_of(row)] = _Log(row)

    def end(self, key: Key) -> None:
        """Ship this log in full: nothing is written to it any more."""
        ended = self._running.pop(key, None)
        if ended is not None:
            self._ended[key] = ended
            self._upload(ended)

    def adopt(self, row: LogRow) -> None:
        """Ship a log that an earlier process left."""
        ended = _Log(row, adopted=True)
        self._ended[key_of(row)] = ended
        self._upload(ended)

    @property
    def pending(self) -> int:
        """Logs that have ended and are not shipped yet."""
        return len(self._ended)

    @property
    def bytes(self) -> int:
        """Bytes of all logs that lie here."""
        return sum(_size(one.path) for one in [*self._running.values(), *self._ended.values()])

    async def run(self) -> None:
        """Ship the chunks of running tasks until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._chunk_seconds)
                await asyncio.gather(*(self._ship_chunk(one) for one in [*self._running.values()]))
        finally:
            for upload in self._uploads.values():
                upload.cancel()
            await asyncio.gather(*self._uploads.values(), return_exceptions=True)

    async def drained(self) -> None:
        """Return once every ended log is shipped."""
        while self._uploads:
            await asyncio.wait(self._uploads.values())

    def drop_oldest(self) -> bool:
        """Give up the oldest ended log, because the disk is full and results go first. False if there is none.

        Its reader finds a line that says so, once the bucket can be reached.
        """
        for one in self._ended.values():
            size = _size(one.path)
            if size > len(_DROPPED):
                one.path.write_text(_DROPPED)
                log.error("log.dropped", item_id=one.row.item_id, bytes=size, prefix=one.row.prefix)
                return True
        return False

    # --- shipping --------------------------------------------------------------------------------

    async def _ship_chunk(self, one: _Log) -> None:
        async with one.shipping:
            key = f"{one.row.prefix}/{one.chunks + 1:08d}.log"
            try:
                data = await asyncio.to_thread(_read_lines, one.path, one.offset, self._chunk_bytes)
                if not data or key_of(one.row) not in self._running:
                    return
                async with self._limit:
                    await in_daemon_thread(lambda: self._store().put(key, data))
            except (StoreError, OSError) as error:
                log.warning("log.chunk_failed", key=key, detail=str(error))
                return
            one.offset += len(data)
            one.chunks += 1

    def _upload(self, one: _Log) -> None:
        key = key_of(one.row)
        task = asyncio.create_task(self._upload_persistently(one))
        self._uploads[key] = task
        task.add_done_callback(lambda _: self._uploads.pop(key, None))

    async def _upload_persistently(self, one: _Log) -> None:
        backoff = self._backoff()
        while True:
            try:
                async with one.shipping, self._limit:
                    await in_daemon_thread(lambda: self._put_full(one))
                break
            except FileNotFoundError:
                log.info("log.none", path=one.row.path, prefix=one.row.prefix)
                break
            except (StoreError, OSError) as error:
                pause = backoff.pause()
                log.warning(
                    "log.upload_failed",
                    prefix=one.row.prefix,
                    detail=str(error),
                    retry_seconds=round(pause, 2),
                )
            await asyncio.sleep(pause)
        await self._delete_quietly(await self._chunk_keys(one))
        with suppress(OSError):
            one.path.unlink(missing_ok=True)
        self._ended.pop(key_of(one.row), None)
        self._journal.submit(ForgetLog(key_of(one.row)))

    def _put_full(self, one: _Log) -> None:
        target = f"{one.row.prefix}/{FULL}"
        if one.path.stat().st_size <= INLINE_BYTES:
            self._store().put(target, one.path.read_bytes())
        else:
            self._store().put_file(target, one.path)

    async def _chunk_keys(self, one: _Log) -> list[str]:
        if not one.adopted:
            return [f"{one.row.prefix}/{number:08d}.log" for number in range(1, one.chunks + 1)]
        try:
            found = await in_daemon_thread(lambda: [*self._store().list(f"{one.row.prefix}/")])
        except StoreError as error:
            log.warning("log.chunks_not_listed", prefix=one.row.prefix, detail=str(error))
            return []
        return [info.key for info in found if not info.key.endswith(f"/{FULL}")]

    async def _delete_quietly(self, keys: list[str]) -> None:
        """Delete chunks that full.log has made superfluous; readers prefer it, so leaving them is harmless."""
        if not keys:
            return
        try:
            await in_daemon_thread(lambda: self._store().delete(keys))
        except StoreError as error:
            log.warning("log.chunks_not_deleted", keys=len(keys), detail=str(error))


_DROPPED: Final = (
    '{"level": "error", "logger": "airbridge.edge_worker", '
    '"event": "This log was given up on the worker: its disk was full, and results go before logs."}\n'
)


def _read_lines(path: Path, offset: int, most: int) -> bytes:
    """Return whole lines from `offset`; a line longer than `most` comes in pieces."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(most)
    except FileNotFoundError:
        return b""
    end = data.rfind(b"\n") + 1
    return data[:end] if end else (data if len(data) == most else b"")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
