"""What hostile user code tries on a worker's host. `HEAD` goes into a DAG file; ``attack(name, function, *args)`` notes what came of it."""

from __future__ import annotations

HEAD = '''
import ctypes, os, signal, socket, subprocess, tempfile, time
from datetime import datetime
from pathlib import Path
from airflow.sdk import DAG, task

LIBC = ctypes.CDLL(None, use_errno=True)

def denied(function, *args):
    """Whether the attempt came to nothing."""
    try:
        function(*args)
    except OSError:
        return True
    return False

def ptrace_attach(pid):
    if LIBC.ptrace(16, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")

def read_memory(pid):
    class Vector(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
    place = int(Path(f"/proc/{os.getpid()}/maps").read_text().split("-")[0], 16)
    buffer = ctypes.create_string_buffer(16)
    local = Vector(ctypes.cast(buffer, ctypes.c_void_p), 16)
    remote = Vector(place, 16)
    if LIBC.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "process_vm_readv")

def steal_descriptor(pid):
    pidfd = os.pidfd_open(pid)
    for number in range(40):
        if LIBC.syscall(438, pidfd, number, 0) >= 0:
            return
    raise OSError(ctypes.get_errno(), "pidfd_getfd")

def open_descriptors(folder):
    """Open what a process has open; root may see which numbers there are, and no more."""
    for number in os.listdir(folder):
        try:
            os.readlink(folder / number)
        except PermissionError:
            os.close(os.open(folder / number, os.O_RDONLY))

def on_process(pid):
    """Every way into another process: what was denied, by name."""
    proc = Path(f"/proc/{pid}")
    return {
        "memory": denied((proc / "mem").open, "rb"),
        "environment": denied((proc / "environ").read_bytes),
        "maps": denied((proc / "maps").read_bytes),
        "descriptors": denied(open_descriptors, proc / "fd"),
        "working directory": denied(os.listdir, proc / "cwd"),
        "root": denied(os.listdir, proc / "root/"),
        "process_vm_readv": denied(read_memory, pid),
        "pidfd_getfd": denied(steal_descriptor, pid),
        "signal": denied(os.kill, pid, signal.SIGCONT),
        "ptrace": denied(ptrace_attach, pid),
    }

def on_file(path):
    """Every way to a file or directory."""
    path = Path(path)
    return {
        "read": denied(path.read_bytes),
        "list": denied(os.listdir, path),
        "write": denied(path.open, "ab"),
        "create beside": denied((path.parent / "planted").write_text, "x"),
        "remove": denied(path.unlink),
        "rename": denied(path.rename, "/var/tmp/stolen"),
        "link": denied(os.link, path, tempfile.gettempdir() + "/linked"),
        "by a shell": subprocess.run(["cat", str(path)], capture_output=True).returncode != 0,
    }

def got_through(tried):
    """What was not denied, as a flat list."""
    return [f"{what}: {how}" for what, ways in tried.items() for how, was_denied in ways.items() if not was_denied]

def ancestors():
    """The supervisor, its template or zygote, and so on up to the agent and beyond."""
    pid, found = os.getppid(), []
    while pid > 1:
        found.append(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found
'''
