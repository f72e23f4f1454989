"""Blocking calls in daemon threads: threads are kept for a while, and no call waits for another."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from airbridge.core.aws.daemon_thread import DaemonThreads, in_daemon_thread

name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="")


async def run_twice(threads: DaemonThreads, pause: float = 0.0) -> tuple[threading.Thread, threading.Thread]:
    first = await threads.run(threading.current_thread)
    await asyncio.sleep(pause)
    return first, await threads.run(threading.current_thread)


def test_threads_are_reused() -> None:
    """Calls one after the other share a thread, which the interpreter does not wait for."""
    first, second = asyncio.run(run_twice(DaemonThreads(), pause=0.05))
    assert first is second
    assert first.daemon


def test_idle_threads_end() -> None:
    """A thread without a call ends after the idle time."""
    first, second = asyncio.run(run_twice(DaemonThreads(idle_seconds=0.02), pause=0.2))
    assert first is not second
    assert not first.is_alive()


def test_blocked_call_holds_up_no_other() -> None:
    """However many calls block, the next one starts at once."""
    release = threading.Event()

    async def run() -> str:
        threads = DaemonThreads()
        blocked = [asyncio.ensure_future(threads.run(release.wait)) for _ in range(50)]
        await asyncio.sleep(0)
        answer = await asyncio.wait_for(threads.run(lambda: "at once"), 5)
        release.set()
        await asyncio.gather(*blocked)
        return answer

    assert asyncio.run(run()) == "at once"


def test_no_call_is_lost() -> None:
    """A call that is handed to a thread at the end of its idle time is run."""

    async def run() -> int:
        threads = DaemonThreads(idle_seconds=0.0005)
        done = 0
        for _ in range(300):
            await asyncio.sleep(0.0005)
            done += await asyncio.wait_for(threads.run(lambda: 1), 5)
        return done

    assert asyncio.run(run()) == 300


def test_error_leaves_thread_usable() -> None:
    """An error reaches the caller, and its thread takes the next call."""

    async def run() -> None:
        threads = DaemonThreads()
        first = await threads.run(threading.current_thread)
        await asyncio.sleep(0.05)
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0)
        await asyncio.sleep(0.05)
        assert await threads.run(threading.current_thread) is first

    asyncio.run(run())


def test_context_is_the_callers() -> None:
    """Each call sees the context of its caller, and nothing of the call before it."""

    async def call(threads: DaemonThreads, value: str) -> str:
        if value:
            name.set(value)
        return await threads.run(name.get)

    async def run() -> list[str]:
        threads = DaemonThreads()
        return [await asyncio.create_task(call(threads, value)) for value in ("first", "", "second")]

    assert asyncio.run(run()) == ["first", "", "second"]


def test_cancelled_call_runs_on() -> None:
    """A call whose caller is cancelled runs to its end, and its thread takes the next call."""
    release, ended = threading.Event(), threading.Event()

    def work() -> threading.Thread:
        release.wait(5)
        ended.set()
        return threading.current_thread()

    async def run() -> None:
        threads = DaemonThreads()
        task = asyncio.ensure_future(threads.run(work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        assert await asyncio.to_thread(ended.wait, 5)
        await asyncio.sleep(0.05)
        await threads.run(lambda: None)

    asyncio.run(run())


def script(text: str) -> tuple[str, float]:
    """Run a script; return its output, and the seconds that it took after it printed "ending"."""
    code = textwrap.dedent(text)
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.readline()
        began = time.monotonic()
        output += process.stdout.read()
        assert process.wait(30) == 0
    return output, time.monotonic() - began


def test_interpreter_does_not_wait() -> None:
    """A process ends although calls are blocked and threads are idle."""
    output, seconds = script("""
        import asyncio, time
        from airbridge.core.aws.daemon_thread import in_daemon_thread

        async def main():
            await in_daemon_thread(lambda: None)
            asyncio.ensure_future(in_daemon_thread(lambda: time.sleep(20)))
            asyncio.ensure_future(in_daemon_thread(lambda: time.sleep(20)))
            await asyncio.sleep(0.1)

        asyncio.run(main())
        print("ending", flush=True)
    """)
    assert output == "ending\n"
    assert seconds < 10


def test_forked_process_makes_its_own() -> None:
    """A process that was forked does not hand calls to its parent's threads."""
    output, _ = script("""
        import asyncio, os
        from airbridge.core.aws.daemon_thread import in_daemon_thread

        def ask():
            return asyncio.run(asyncio.wait_for(in_daemon_thread(lambda: "answered"), 5))

        assert ask() == "answered"
        import time
        time.sleep(0.1)
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            print("ending", os.waitstatus_to_exitcode(status), ask(), flush=True)
        else:
            ask()
    """)
    assert output == "ending 0 answered\n"


def test_shared_threads_are_kept() -> None:
    """The module's function keeps its threads from one event loop to the next."""
    first = asyncio.run(in_daemon_thread(threading.current_thread))
    time.sleep(0.05)
    assert asyncio.run(in_daemon_thread(threading.current_thread)) is first
