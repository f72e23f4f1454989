"""Attacks of hostile user code on a worker's host. `HEAD` goes into a DAG file; `TAIL` ends one whose task returns `result()`."""

from __future__ import annotations

TAIL = """
with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def t():
        return result()
    t()
"""

# System calls by number, so that neither glibc nor Python stands between: 438 pidfd_getfd, 452 fchmodat2, 463 setxattrat
# (the same on all machines), 132 utime (x86-64 only), ptrace request 16 PTRACE_ATTACH. -100 is AT_FDCWD.
HEAD = '''
import ctypes, os, resource, signal, socket, subprocess, tempfile, time
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
        # Of CPU time, a limit kills.
        "limits": denied(resource.prlimit, pid, resource.RLIMIT_NOFILE),
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

def open_below(path):
    """Open a file as far as may be, without leave to read or write it, and change its attributes through the descriptor."""
    fd = os.open(path, os.O_PATH)
    os.chmod(f"/proc/self/fd/{fd}", 0o777)

def by_number(number, *args):
    if LIBC.syscall(number, *args) != 0:
        raise OSError(ctypes.get_errno(), "syscall")

def read_and_fchmod(path):
    with open(path, "rb") as opened:
        os.fchmod(opened.fileno(), 0o777)
        os.utime(opened.fileno(), (1, 1))

def on_attributes(path):
    """Every way to change a file's mode, owner, times and extended attributes, which Landlock does not govern."""
    path = os.fspath(path)
    folder = os.path.dirname(path)
    def near():
        return os.open(folder, os.O_PATH)
    raw = os.fsencode(path)
    machine = os.uname().machine == "x86_64"
    return {
        "chmod": denied(os.chmod, path, 0o777),
        "chmod from near": denied(lambda: os.chmod(os.path.basename(path), 0o777, dir_fd=near())),
        "chmod by a descriptor": denied(open_below, path),
        "fchmod of what can be read": denied(read_and_fchmod, path),
        "fchmodat2": denied(by_number, 452, -100, raw, 0o777, 0),
        "chown": denied(os.chown, path, os.getuid(), os.getgid()),
        "utime": denied(os.utime, path, (1, 1)),
        "utime from near": denied(lambda: os.utime(os.path.basename(path), (1, 1), dir_fd=near())),
        "old utime": machine and denied(by_number, 132, raw, None),
        "setxattr": denied(os.setxattr, path, "user.planted", b"x"),
        "setxattrat": denied(by_number, 463, -100, raw, 0, b"user.planted", ctypes.byref((ctypes.c_uint64 * 2)()), 16),
        "removexattr": denied(os.removexattr, path, "user.kept"),
        "chmod of its folder": denied(os.chmod, folder, 0o777),
        "utime of its folder": denied(os.utime, folder, (1, 1)),
        "by a shell": subprocess.run(["chmod", "777", path], capture_output=True).returncode != 0,
        "in namespaces": subprocess.run(
            ["unshare", "-Urm", "sh", "-c", 'umount "$1"; mount -o remount,rw,bind "$2"; chmod 777 "$1"', "sh", path, folder],
            capture_output=True).returncode != 0,
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
