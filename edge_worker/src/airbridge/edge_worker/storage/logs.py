"""Task logs: written to a local file by the task's supervisor, shipped from here to the region's bucket.

While a task runs, what is new goes out in numbered chunks; at its end the whole goes out as ``full.log`` and the chunks
go. A log leaves this machine's disk only when the bucket has it, however long that takes and however often the worker
starts again. Layout: docs/reference/interfaces.md, "Logs".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from airbridge.core.aws.daemon_thread import in_daemon_thread
from airbridge.core.backoff import Backoff
from airbridge.core.exceptions import StoreError
from airbridge.core.protocol import Grant
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import ForgetLog, KeepLog, Key, LogRow, key_of
from airbridge.edge_worker.transfer.interfaces import RegionStore

log = structlog.get_logger(__name__)

FULL: Final = "full.log"
MAX_UPLOADS: Final = 4
# Up to this size a log goes out in one simple request.
INLINE_BYTES: Final = 8 * 1024 * 1024


@dataclass
class _Log:
    row: LogRow
    offset: int = 0
    chunks: int = 0
    #: Whether its file is only read after `written`: of triggers there may be thousands of logs.
    announced: bool = False
    unread: bool = True
    #: Its row on the way into the journal, or there; None if it is there for sure.
    kept: asyncio.Future[None] | None = None
    #: Whether an earlier process began it: the bucket lists the chunks that it has shipped.
    adopted: bool = False
    #: Whether the bucket has all of it. The file is kept until it is `closed`: what became of the task may be added.
    shipped: bool = False
    lines_added: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    shipping: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def path(self) -> Path:
        return Path(self.row.path)


class LogShipper:
    """See the module. `store` makes the log bucket's store; it is called in threads."""

    def __init__(
        self,
        directory: Path,
        store: Callable[[], RegionStore],
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

    def written(self, row: LogRow) -> None:
        """Ship what was just written to this log, a trigger's, with the next chunk; the next process, if this one ends before."""
        found = self._running.get(key_of(row))
        if found is None:
            kept = self._journal.submit(KeepLog(row))
            self._running[key_of(row)] = _Log(row, announced=True, kept=kept)
            return
        found.unread = True
        if found.kept is not None and found.kept.done() and found.kept.exception() is not None:
            found.kept = self._journal.submit(KeepLog(row))

    def resume(self, row: LogRow) -> None:
        """Go on with a log that an earlier process began, of a trigger that starts again."""
        self._running[key_of(row)] = _Log(row, announced=True, adopted=True)

    def end(self, key: Key, *, keep: bool = False) -> None:
        """Ship this log in full: the task writes to it no more. With `keep`, lines may be added until it is closed."""
        ended = self._running.pop(key, None)
        if ended is not None:
            if not keep:
                ended.closed.set()
            self._ended[key] = ended
            self._upload(ended)

    def reopen(self, key: Key) -> bool:
        """Return whether a line may be added to this log; if it is shipped, it will be shipped again with the line."""
        if key in self._running:
            return True
        ended = self._ended.get(key)
        if ended is None or ended.closed.is_set():
            return False
        ended.shipped = False
        ended.lines_added += 1
        return True

    def close(self, key: Key) -> None:
        """Add no more lines to an ended log."""
        ended = self._ended.get(key)
        if ended is not None:
            ended.closed.set()

    def adopt(self, row: LogRow) -> None:
        """Ship a log that an earlier process left."""
        ended = _Log(row, adopted=True)
        ended.closed.set()
        self._ended[key_of(row)] = ended
        self._upload(ended)

    @property
    def pending(self) -> int:
        """Logs that have ended and are not shipped yet."""
        return sum(not one.shipped for one in self._ended.values())

    @property
    def bytes(self) -> int:
        """Bytes of all local logs."""
        return sum(_size(one.path) for one in [*self._running.values(), *self._ended.values()])

    async def run(self) -> None:
        """Ship the chunks of running tasks until cancelled."""
        try:
            while True:
                await asyncio.sleep(self._chunk_seconds)
                due = [one for one in self._running.values() if one.unread]
                for one in due:
                    one.unread = not one.announced
                await asyncio.gather(*(self._ship_chunk(one) for one in due))
        finally:
            for upload in self._uploads.values():
                upload.cancel()
            await asyncio.gather(*self._uploads.values(), return_exceptions=True)

    async def drained(self) -> None:
        """Return once every ended log is shipped."""
        while self._uploads:
            await asyncio.wait(self._uploads.values())

    def drop_oldest(self) -> bool:
        """Drop the oldest ended log, because results have precedence on a full disk. False if there is none.

        A line about it is shipped in its place.
        """
        for one in self._ended.values():
            size = _size(one.path)
            try:
                if one.shipped and size:
                    one.closed.set()
                    one.path.unlink(missing_ok=True)
                    return True
                if size > len(_DROPPED):
                    one.path.write_text(_DROPPED)
                    log.error("log.dropped", item_id=one.row.item_id, bytes=size, prefix=one.row.prefix)
                    return True
            except OSError as error:  # the next may be dropped
                log.warning("log.not_dropped", item_id=one.row.item_id, detail=str(error))
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
                one.unread = True
                return
            one.offset += len(data)
            one.chunks += 1

    def _upload(self, one: _Log) -> None:
        key = key_of(one.row)
        task = asyncio.create_task(self._upload_persistently(one))
        self._uploads[key] = task
        task.add_done_callback(lambda _: self._uploads.pop(key, None))

    async def _upload_persistently(self, one: _Log) -> None:
        """Ship a log, and again if lines were added; then delete its chunks in the bucket and its file."""
        while not one.shipped:
            before = one.lines_added
            await self._put_persistently(one)
            one.shipped = one.lines_added == before
            await one.closed.wait()
        # After full.log: a reader in between sees both, never neither.
        await self._delete_quietly(await self._chunk_keys(one))
        with suppress(OSError):
            one.path.unlink(missing_ok=True)
        self._ended.pop(key_of(one.row), None)
        self._journal.submit(ForgetLog(key_of(one.row)))

    async def _put_persistently(self, one: _Log) -> None:
        backoff = self._backoff()
        while True:
            try:
                # Not while a chunk is being shipped: it would reappear after the chunks are deleted.
                async with one.shipping, self._limit:
                    await in_daemon_thread(lambda: self._put_full(one))
                return
            except FileNotFoundError:
                log.info("log.none", path=one.row.path, prefix=one.row.prefix)
                return
            except (StoreError, OSError) as error:
                pause = backoff.failed()
                log.warning(
                    "log.upload_failed",
                    prefix=one.row.prefix,
                    detail=str(error),
                    retry_seconds=round(pause, 2),
                )
            await asyncio.sleep(pause)

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
