"""The Dockerfiles take everything by hash, from the one pinned base, and run as an unprivileged user."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from packaging.specifiers import SpecifierSet

from airbridge.ci.checkout import Source
from airbridge.ci.exceptions import BuildError
from airbridge.ci.images import debs
from airbridge.ci.images.base import DEBIAN_SUITE, PIN_FILE, PINNED
from airbridge.ci.images.specs import ARCHITECTURES, IMAGES, LICENCE, REPOSITORY, USER, Architecture, Image
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding

_BASE = "${BASE_IMAGE}"
#: What a RUN may call: nothing that reaches a network, and nothing that runs what another step downloaded.
_PROGRAMS = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(?:dpkg (?:--path-exclude='/usr/share/(?:doc|man)/\*' )*--install /debs/\*\.deb$|python3 -c '[^']*'(?: > \S+)?$|python3 -m compileall |/opt/airbridge/bin/python -m compileall "
    r"|/opt/airbridge/bin/python -c '[^']*'|/context/tools/uv venv |/context/tools/uv pip install (?:--\S+ (?:/\S+ |copy )?)+--requirement /context/(?:third-party|own)\.txt$|echo '|install -d |find / -xdev |rm -r?f |cd /opt/airbridge/|sed -i )"
)
_OFFLINE = ("--offline", "--no-index", "--no-deps", "--require-hashes", "--requirement")
#: Arguments with a value of their own in the Dockerfile; those of the build have none.
_DEFAULTS = {"SOURCE_DATE_EPOCH": "0"}
_WORDS = {
    "ARG", "FROM", "RUN", "COPY", "ENV", "LABEL", "USER", "WORKDIR", "STOPSIGNAL", "HEALTHCHECK", "VOLUME", "ENTRYPOINT", "CMD",
}  # fmt: skip
_OWN = "ci/src/airbridge/ci/parity/dockerfiles.py has the list"
_BOOT_SCRIPT = "infra/src/airbridge/infra/constructs/compute/worker_image.py"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, with its continuation lines joined, and the line it starts on."""

    line: int
    word: str
    rest: str


def instructions(source: Source) -> list[Instruction]:
    """A Dockerfile's instructions, in order."""
    found: list[Instruction] = []
    start, text = 0, ""
    for number, raw in enumerate(source.lines, start=1):
        if not raw.strip() or raw.lstrip().startswith("#"):
            continue
        start, text = (number, raw.strip()) if not text else (start, f"{text} {raw.strip()}")
        if text.endswith("\\"):
            text = text[:-1].rstrip()
            continue
        word, _, rest = text.partition(" ")
        found.append(Instruction(start, word.upper(), rest.strip()))
        text = ""
    return found


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in images/."""
    yield from _base(facts)
    for image in IMAGES:
        source = facts.checkout.source(image.dockerfile)
        parsed = instructions(source)
        yield from _origins(source, parsed)
        yield from _mounts(source, parsed)
        yield from _installs(source, parsed)
        yield from _programs(source, parsed)
        yield from _runtime(source, parsed)
        yield from _labels(source, parsed, image)
    yield from _debs(facts)
    yield from _owner_of_state(facts)


def _base(facts: Facts) -> Iterator[Finding]:
    source = facts.checkout.source(PIN_FILE)
    lines = [number for number, line in enumerate(source.lines, start=1) if line.startswith("FROM")]
    found = PINNED.search(source.text)
    if found is None or len(lines) != 1:
        actual = f"names {len(lines)} bases" if len(lines) != 1 else f"says {source.lines[lines[0] - 1]}"
        yield Finding(
            PIN_FILE,
            lines[0] if lines else 1,
            "base-digest",
            actual,
            "must be one FROM name:tag@sha256:<digest>",
        )
        return
    python, _, flavour = found["tag"].partition("-")
    if not SpecifierSet(facts.requires_python).contains(f"{python}.0" if python.count(".") == 1 else python):
        yield Finding(
            PIN_FILE,
            lines[0],
            "base-python",
            f"the base has Python {python}",
            f"must be {facts.requires_python}",
        )
    if not flavour.endswith(DEBIAN_SUITE):
        expected = f"must be of {DEBIAN_SUITE}, as the packages in {debs.FILE}"
        yield Finding(PIN_FILE, lines[0], "base-suite", f"the base is {found['tag']}", expected)


def _origins(source: Source, parsed: list[Instruction]) -> Iterator[Finding]:
    stages: set[str] = set()
    for step in parsed:
        if step.word == "FROM":
            image, _, stage = (
                step.rest.partition(" AS ") if " AS " in step.rest else step.rest.partition(" as ")
            )
            if image not in (_BASE, *stages):
                yield Finding(
                    source.path,
                    step.line,
                    "base-pin",
                    f"is FROM {image}",
                    f"must be FROM {_BASE}, which {PIN_FILE} pins",
                )
            stages |= {stage} if stage else set()
        elif step.word == "ARG" and step.rest.startswith("BASE_IMAGE="):
            yield Finding(
                source.path,
                step.line,
                "base-pin",
                f"ARG {step.rest}",
                f"must have no default: {PIN_FILE} pins the base",
            )
        elif (
            step.word == "COPY"
            and (other := re.search(r"--from=(\S+)", step.rest))
            and other[1] not in stages
        ):
            yield Finding(
                source.path,
                step.line,
                "copy-origin",
                f"copies from {other[1]}",
                "must copy from a stage of its own",
            )
        elif step.word == "ADD":
            yield Finding(
                source.path,
                step.line,
                "copy-origin",
                f"ADD {step.rest}",
                "must COPY from the context, which has hashes",
            )


def _installs(source: Source, parsed: list[Instruction]) -> Iterator[Finding]:
    for step in (step for step in parsed if step.word == "RUN"):
        for command in re.split(r"&&|;", step.rest):
            if re.search(r"\bpip3? install\b", command) and not re.search(
                r"--require-hashes\b.*--requirement\b", command
            ):
                actual = f"installs without hashes: {command.strip()[:80]}"
                yield Finding(
                    source.path,
                    step.line,
                    "unhashed-install",
                    actual,
                    "must be --require-hashes --requirement FILE",
                )
            if found := re.search(r"\b(apt-get|apt|apk) (install|add)\b|\b(curl|wget|git clone)\b", command):
                actual = f"fetches with {found[0]}"
                yield Finding(
                    source.path,
                    step.line,
                    "unhashed-install",
                    actual,
                    f"must come by hash, through {debs.FILE} or uv.lock",
                )


def _runtime(source: Source, parsed: list[Instruction]) -> Iterator[Finding]:
    last = {step.word: step for step in parsed}
    user = last.get("USER")
    if user is None or user.rest != f"{USER}:{USER}":
        actual = f"USER is {user.rest if user else 'missing: root'}"
        yield Finding(source.path, user.line if user else 1, "image-user", actual, f"must be {USER}:{USER}")
    entry = last.get("ENTRYPOINT")
    if entry is None or "/tini" not in entry.rest:
        actual = f"ENTRYPOINT is {entry.rest if entry else 'missing'}"
        yield Finding(
            source.path,
            entry.line if entry else 1,
            "image-entrypoint",
            actual,
            "must start tini, which reaps and forwards signals",
        )
    check = last.get("HEALTHCHECK")
    if check is None or not re.search(r'\bCMD \["[a-z-]+", ', check.rest):
        actual = f"HEALTHCHECK is {check.rest if check else 'missing'}"
        yield Finding(
            source.path, check.line if check else 1, "image-healthcheck", actual, "must run a command"
        )
    for word in ("USER", "ENTRYPOINT", "HEALTHCHECK", "CMD", "STOPSIGNAL"):
        if len(twice := [step for step in parsed if step.word == word]) > 1:
            actual = f"has {word} {len(twice)} times"
            yield Finding(
                source.path, twice[-1].line, "image-twice", actual, "must have it once: the last one wins"
            )


def _labels(source: Source, parsed: list[Instruction], image: Image) -> Iterator[Finding]:
    """The labels that the build fills in, and those that say what the image is; each once, none overwritten."""
    expected = {
        "org.opencontainers.image.title": f"airbridge-{image.name}",
        "org.opencontainers.image.source": REPOSITORY,
        "org.opencontainers.image.licenses": LICENCE,
        "org.opencontainers.image.revision": "${REVISION}",
        "org.opencontainers.image.version": "${VERSION}",
        "org.opencontainers.image.base.name": "${BASE_NAME}",
        "io.airbridge.airflow": "${AIRFLOW_VERSION}",
        "io.airbridge.protocol": "${PROTOCOL_VERSION}",
    }
    labels = [step for step in parsed if step.word == "LABEL"]
    line = labels[0].line if labels else 1
    for label, value in expected.items():
        found = [
            each[1]
            for step in labels
            for each in re.finditer(rf'(?<![\w.]){re.escape(label)}=("[^"]*"|\S+)', step.rest)
        ]
        if found != [f'"{value}"']:
            actual = f"there is no {label}" if not found else f"{label} is {', '.join(found)}"
            at = next((n for n, text in enumerate(source.lines, start=1) if f"{label}=" in text), line)
            yield Finding(source.path, at, "image-label", actual, f'must be "{value}", once')


def _mounts(source: Source, parsed: list[Instruction]) -> Iterator[Finding]:
    """Mounts are of the context alone, and the frontend is buildah's own."""
    for step in (step for step in parsed if step.word == "RUN"):
        for mount in re.findall(r"--mount=(\S+)", step.rest):
            if not re.fullmatch(r"type=bind,source=(?:debs,target=/debs|\.,target=/context)", mount):
                expected = "must be a bind mount of the context: type=bind,source=debs or source=."
                yield Finding(source.path, step.line, "copy-origin", f"mounts {mount}", expected)
        for option in re.findall(r"^((?:--(?!mount)\S+ ?)+)", step.rest):
            yield Finding(
                source.path,
                step.line,
                "copy-origin",
                f"RUN {option.strip()}",
                "must have no option but --mount",
            )
    for number, line in enumerate(source.lines, start=1):
        if found := re.match(r"^\s*#\s*(syntax|escape|check)\s*=", line):
            yield Finding(
                source.path,
                number,
                "copy-origin",
                f"names a {found[1]}",
                "must have no parser directive: a frontend is an image",
            )


def _programs(source: Source, parsed: list[Instruction]) -> Iterator[Finding]:
    """Every command of every RUN is one of those that the build needs."""
    for step in parsed:
        if step.word not in _WORDS:
            yield Finding(
                source.path,
                step.line,
                "image-instruction",
                f"has {step.word}",
                f"must be one of {', '.join(sorted(_WORDS))}",
            )
        if step.word == "ARG" and "=" in step.rest:
            name, _, value = step.rest.partition("=")
            if _DEFAULTS.get(name) != value and name != "BASE_IMAGE":
                yield Finding(
                    source.path,
                    step.line,
                    "image-argument",
                    f"ARG {step.rest}",
                    "must have no default: the build says it",
                )
        if step.word != "RUN":
            continue
        script = re.sub(r"--mount=\S+ ", "", step.rest)
        for command in _commands(script):
            unfit = not _PROGRAMS.match(command) or "$(" in command.replace(
                "$(command -v python3)", ""
            ).replace("$(cat /tmp/stdlib)", "")
            missing = (
                [each for each in _OFFLINE if each not in command.split()]
                if " pip install " in command
                else []
            )
            if unfit or missing or re.search(r"https?:|urllib|socket|/dev/tcp|git\+", command):
                actual = f"runs {command[:90]}"
                expected = (
                    f"must have {' '.join(missing)}"
                    if missing
                    else f"must be one of the build's own commands ({_OWN})"
                )
                yield Finding(source.path, step.line, "unhashed-install", actual, expected)


def _commands(script: str) -> list[str]:
    """A script's commands: what stands between operators that are not quoted."""
    parts = [""]
    for token in re.findall(r"""'[^']*'|"[^"]*"|&&|\|\||[;|&]|[^'"&|;]+|['"]""", script):
        if token in ("&&", "||", ";", "|", "&"):
            parts.append("")
        else:
            parts[-1] += token
    return [part.strip() for part in parts if part.strip()]


def _debs(facts: Facts) -> Iterator[Finding]:
    yield from _packages(facts, debs.FILE, lambda each: debs.listed(facts.checkout, each))
    yield from _packages(facts, debs.BASE_FILE, lambda each: debs.of_base(facts.checkout, each))


def _packages(
    facts: Facts, file: str, packages: Callable[[Architecture], tuple[debs.Deb, ...]]
) -> Iterator[Finding]:
    """Findings in a list of Debian packages."""
    source = facts.checkout.source(file)
    try:
        listed = {architecture: packages(architecture) for architecture in ARCHITECTURES}
    except BuildError as error:
        yield Finding(file, 1, "deb-file", str(error).replace("\n", "; "), "must be a valid list")
        return
    versions = {name: {(deb.name, deb.version) for deb in found} for name, found in listed.items()}
    for name, version in sorted(set.symmetric_difference(*versions.values())):
        line = source.line(rf'^version = "{re.escape(version)}"')
        yield Finding(
            file,
            line,
            "deb-architectures",
            f"{name} {version} is not there for every architecture",
            "must be",
        )
    for deb in (deb for found in listed.values() for deb in found):
        if not deb.path.endswith(f"/{deb.file_name}"):
            line = source.line(rf'^path = "{re.escape(deb.path)}"')
            expected = f"must be {deb.file_name}"
            yield Finding(file, line, "deb-path", f"path is {deb.path}", expected)


def _owner_of_state(facts: Facts) -> Iterator[Finding]:
    """The instance's boot script gives the state folder to the images' user."""
    if not facts.checkout.has(_BOOT_SCRIPT):
        return
    source = facts.checkout.source(_BOOT_SCRIPT)
    found = re.search(r"^chown (?:-R )?(\d+):(\d+) /var/lib/airbridge", source.text, re.MULTILINE)
    if found and {found[1], found[2]} != {str(USER)}:
        line = source.line(r"^chown (?:-R )?\d+:\d+ /var/lib/airbridge")
        yield Finding(
            source.path,
            line,
            "state-owner",
            f"gives the state folder to {found[1]}:{found[2]}",
            f"the images run as {USER}:{USER}",
        )
