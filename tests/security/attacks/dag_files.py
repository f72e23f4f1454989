"""DAG files of a hostile author, for the process that parses them. Each raises ``RuntimeError("reached: [...]")`` with what it reached."""

from __future__ import annotations

HEAD = '''
import ctypes, os, re, signal, socket, subprocess, sys, tempfile
from pathlib import Path
from airflow.sdk import DAG

LIBC = ctypes.CDLL(None, use_errno=True)

def works(attempt):
    try:
        return attempt() is not False
    except Exception:
        return False

def ancestors():
    """The zygote and the dag-processor."""
    pid, found = os.getppid(), []
    while pid > 1 and len(found) < 2:
        found.append(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found

def memory(pid):
    """All of a process's writable memory."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as content:
        for line in maps:
            span, mode = line.split()[:2]
            if mode.startswith("rw") and "[v" not in line:
                start, end = (int(part, 16) for part in span.split("-"))
                try:
                    content.seek(start)
                    yield content.read(end - start)
                except (OSError, OverflowError, ValueError):
                    continue

def by_number(number, *args):
    if LIBC.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), "syscall")
'''

TAIL = """
FOUND = sorted(name for name, attempt in list(ATTEMPTS.items()) if works(attempt))
FOUND += [name for name in ATTEMPTS if name.startswith("open: ")]
if FOUND:
    raise RuntimeError(f"reached: {FOUND}")
with DAG("harmless", schedule=None):
    pass
"""

# System calls by their numbers on x86-64: 302 prlimit64, 141 setpriority, 101 ptrace (0x4206 is PTRACE_SEIZE), 272 unshare (0x10000000 is
# CLONE_NEWUSER), 321 bpf, 425 io_uring_setup. Address family 16 is netlink, resource 7 RLIMIT_NOFILE. ~4 leaves out
# cap_dac_read_search, which confined code may keep; 70 MiB is above its RLIMIT_FSIZE of 64 MiB.
_ATTEMPTS = """
# What is looked for stands backwards here, and is looked for backwards: this process is looked through as well.
MARKS = [mark.encode() for mark in {marks!r}]
CLOSED = {closed!r}
PORT = {port!r}

def holds(data):
    backwards = data[::-1]
    return any(mark in backwards for mark in MARKS)

def open_files():
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{{number}}")
        except OSError:
            continue
        if not target.startswith(("socket:", "/dev/null", "pipe:", "/dev/urandom", "anon_inode")) and "/proc/" not in target and not target.endswith(".py"):
            found.append(target)
    if found:
        ATTEMPTS.update({{f"open: {{target}}": lambda: True for target in found}})
    return bool(found)

def connect(family, address):
    with socket.socket(family) as sock:
        sock.settimeout(2)
        sock.connect(address)

ATTEMPTS = {{
    "own environment": lambda: holds(repr(dict(os.environ)).encode()) or holds(Path("/proc/self/environ").read_bytes()),
    "own memory": lambda: any(holds(data) for data in memory("self")),
    "own configuration": lambda: holds(repr(__import__("airflow.configuration").configuration.conf.as_dict(display_sensitive=True)).encode()),
    "open files": open_files,
    **{{f"environment of {{n}}": lambda pid=pid: Path(f"/proc/{{pid}}/environ").read_bytes() for n, pid in enumerate(ancestors())}},
    **{{f"memory of {{n}}": lambda pid=pid: open(f"/proc/{{pid}}/mem", "rb").close() for n, pid in enumerate(ancestors())}},
    **{{f"descriptors of {{n}}": lambda pid=pid: os.readlink(f"/proc/{{pid}}/fd/0") for n, pid in enumerate(ancestors())}},
    **{{f"root of {{n}}": lambda pid=pid: os.listdir(f"/proc/{{pid}}/root/") for n, pid in enumerate(ancestors())}},
    **{{f"signal to {{n}}": lambda pid=pid: os.kill(pid, signal.SIGCONT) for n, pid in enumerate(ancestors())}},
    **{{f"limits of {{n}}": lambda pid=pid: by_number(302, pid, 7, None, ctypes.create_string_buffer(16)) for n, pid in enumerate(ancestors())}},
    **{{f"priority of {{n}}": lambda pid=pid: by_number(141, 0, pid, os.getpriority(0, pid)) for n, pid in enumerate(ancestors())}},
    **{{f"processors of {{n}}": lambda pid=pid: os.sched_setaffinity(pid, os.sched_getaffinity(pid)) for n, pid in enumerate(ancestors())}},
    "priority of the user": lambda: by_number(141, 2, 0, 0),
    **{{f"trace of {{n}}": lambda pid=pid: by_number(101, 0x4206, pid, 0, 0) for n, pid in enumerate(ancestors())}},
    **{{f"read {{path}}": lambda path=path: Path(path).read_bytes() for path in CLOSED}},
    **{{f"mode of {{path}}": lambda path=path: os.chmod(path, 0o777) for path in CLOSED}},
    **{{f"times of {{path}}": lambda path=path: os.utime(path, (1, 1)) for path in CLOSED}},
    **{{f"write {{path}}": lambda path=path: open(path, "ab").close() for path in CLOSED}},
    **{{f"plant beside {{path}}": lambda path=path: Path(path + ".planted").write_text("x") for path in CLOSED}},
    "own file": lambda: Path(__file__).write_text("x"),
    "TCP": lambda: connect(socket.AF_INET, ("127.0.0.1", PORT)),
    "UDP": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "metadata": lambda: connect(socket.AF_INET, ("169.254.169.254", 80)),
    "unix sockets": lambda: socket.socket(socket.AF_UNIX).close(),
    "netlink": lambda: socket.socket(16, 3).close(),
    "datagrams from a pair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "network of a program": lambda: subprocess.run(
        [sys.executable, "-c", "import socket; socket.create_connection(('127.0.0.1', int(__import__('sys').argv[1])))", str(PORT)],
        capture_output=True).returncode == 0,
    "namespaces": lambda: by_number(272, 0x10000000),
    "io_uring": lambda: by_number(425, 1, ctypes.create_string_buffer(256)),
    "bpf": lambda: by_number(321, 0, None, 0) if ctypes.get_errno() != 22 else False,
    "own session": os.setsid,
    "another group": lambda: os.setpgid(0, os.getppid()),
    "privileges": lambda: int(re.search(r"CapEff:\\s*(\\w+)", Path("/proc/self/status").read_text())[1], 16) & ~4 != 0,
    "more descriptors": lambda: __import__("resource").setrlimit(7, (100_000, 100_000)),
    "a huge file": lambda: Path(tempfile.gettempdir(), "huge").write_bytes(bytes(70 * 1024 * 1024)),
    "variable": lambda: __import__("airflow.sdk").sdk.Variable.get("secret"),
    "connection": lambda: __import__("airflow.sdk").sdk.Connection.get("secret"),
    "variable written": lambda: __import__("airflow.sdk").sdk.Variable.set("secret", "x") or False,  # an error is only logged: the supervisor tells
    "database": lambda: __import__("airflow.settings").settings.Session(),
}}
"""


def hostile(*, marks: list[str], closed: list[str], port: int) -> str:
    """Return a DAG file that tries everything: secrets that contain `marks`, files `closed` to it, a server at `port`."""
    return HEAD + _ATTEMPTS.format(marks=[mark[::-1] for mark in marks], closed=closed, port=port) + TAIL
