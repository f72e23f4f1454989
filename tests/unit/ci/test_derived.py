"""Derived worker images: what one may not change, its place in build, manifest, environments and promotion."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.ci.small_build import REVISION, write_build, write_image
from tests.unit.ci.tree import ROOT, Tree, digest

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import BuildError, CiError, PromotionRefused
from airbridge.ci.images import inventory, sbom
from airbridge.ci.images.assemble import Output, assemble, read_records, write_derived
from airbridge.ci.images.base import pinned
from airbridge.ci.images.derived import DerivedBuilder, Recipe, problems
from airbridge.ci.images.layout import Layout, digest_of
from airbridge.ci.parity import built, checks
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import as_text
from airbridge.ci.release import pins
from airbridge.ci.release.manifest import DerivedImage, Manifest, parse
from airbridge.ci.release.pins import WorkerImages
from airbridge.ci.rollout.promotion import Promotion

BASE_FILES = {
    "usr/bin/tini": "tini",
    "usr/bin/python3.11": "python",
    "usr/lib/python3.11/os.py": "",
    "opt/airbridge/bin/airbridge-worker": "",
    "opt/airbridge/lib/python3.11/site-packages/structlog-25.4.0.dist-info/METADATA": "Name: structlog\nVersion: 25.4.0\n",
}
ENVIRONMENT = ["PATH=/opt/airbridge/bin:/usr/bin", "PYTHONUNBUFFERED=1"]
LABELS = {"io.airbridge.airflow": "3.0.4"}


def member(path: str, mode: int = 0o644, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    """An entry of a layer."""
    made = tarfile.TarInfo(path)
    made.mode, made.type = mode, kind
    return made


def on_top(base: Layout, folder: Path, *members: tarfile.TarInfo, **settings: Any) -> Layout:
    """An image of one more layer, with `settings` changed in its configuration."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for each in members:
            tar.addfile(each)
    layer = gzip.compress(packed.getvalue(), mtime=0)
    config = json.loads(json.dumps(base.config))
    config["rootfs"]["diff_ids"].append(digest_of(packed.getvalue()))
    config["config"] |= settings
    content = json.dumps(config).encode()
    manifest = json.loads(base.manifest_bytes)
    manifest["layers"].append({**manifest["layers"][0], "digest": digest_of(layer), "size": len(layer)})
    manifest["config"] |= {"digest": digest_of(content), "size": len(content)}
    folder.mkdir(parents=True)
    for below in base.layers:
        (folder / below["digest"].removeprefix("sha256:")).write_bytes(base.blob(below["digest"]))
    for blob in (layer, content):
        (folder / digest_of(blob).removeprefix("sha256:")).write_bytes(blob)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return Layout(folder)


@pytest.fixture
def base(tmp_path: Path) -> Layout:
    """A small edge worker."""
    layout = write_image(tmp_path / "base", BASE_FILES, LABELS)
    config = json.loads(json.dumps(layout.config))
    config["config"] |= {"Env": ENVIRONMENT, "Entrypoint": ["/usr/bin/tini", "--"]}
    content = json.dumps(config).encode()
    manifest = json.loads(layout.manifest_bytes)
    manifest["config"] |= {"digest": digest_of(content), "size": len(content)}
    (layout.folder / digest_of(content).removeprefix("sha256:")).write_bytes(content)
    (layout.folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return Layout(layout.folder)


def test_additions_are_allowed(base: Layout, tmp_path: Path) -> None:
    """Files beside the platform's, directories above them written again, variables and labels of its own."""
    made = on_top(
        base,
        tmp_path / "tools",
        member("usr/bin/jq", 0o755),
        member("opt", 0o755, tarfile.DIRTYPE),
        member("usr/lib/python3", 0o755, tarfile.DIRTYPE),
        member("usr/lib/python3/dist-packages/x.py"),
        member("var/lib/dpkg/.wh.lock"),
        Env=[*ENVIRONMENT, "LD_LIBRARY_PATH=/usr/local/cuda/lib64"],
        Labels={**LABELS, "com.example.team": "data"},
    )
    assert list(problems(base, made)) == []


LINK = tarfile.SYMTYPE
CHANGES: dict[str, tuple[tuple[tarfile.TarInfo, ...], dict[str, Any], str]] = {
    "a package of the platform": ((member("opt/airbridge/lib/python3.11/site-packages/x.pth"),), {}, "writes /opt/airbridge/lib"),
    "a way around": ((member("usr/../opt/airbridge/x.py"),), {}, "writes /opt/airbridge/x.py"),
    "the platform's directory": ((member("opt/airbridge", 0o777, tarfile.DIRTYPE),), {}, "writes /opt/airbridge, which"),
    "a removal": ((member("opt/.wh.airbridge"),), {}, "removes /opt/airbridge"),
    "a removal above": ((member(".wh.opt"),), {}, "removes /opt"),
    "an emptied directory": ((member("opt/.wh..wh..opq"),), {}, "removes /opt, which"),
    "a link in place of a directory": ((member("opt", kind=LINK),), {}, "writes /opt, which"),
    "the interpreter": ((member("usr/bin/python3.11"),), {}, "writes /usr/bin/python3.11"),
    "the interpreter's link": ((member("usr/bin/python3", kind=LINK),), {}, "writes /usr/bin/python3"),
    "the standard library": ((member("usr/lib/python3.11/json/__init__.py"),), {}, "writes /usr/lib/python3.11/json"),
    "what starts it": ((member("usr/bin/tini"),), {}, "writes /usr/bin/tini"),
    "a preloaded library": ((member("etc/ld.so.preload"),), {}, "writes /etc/ld.so.preload"),
    "a way to another user": ((member("usr/bin/sudo", 0o4755),), {}, "`chmod a-s /usr/bin/sudo`"),
    "root": ((), {"User": ""}, "sets User to ''"),
    "another entry point": ((), {"Entrypoint": ["/bin/sh"]}, "sets Entrypoint"),
    "a volume": ((), {"Volumes": {"/data": {}}}, "sets Volumes"),
    "a label of the platform": ((), {"Labels": {}}, "sets the label io.airbridge.airflow to None"),
    "a path": ((), {"Env": ["PATH=/evil", ENVIRONMENT[1]]}, "sets PATH to '/evil'"),
    "a missing variable": ((), {"Env": ENVIRONMENT[:1]}, "sets PYTHONUNBUFFERED to None"),
    "a module path": ((), {"Env": [*ENVIRONMENT, "PYTHONPATH=/x"]}, "sets PYTHONPATH"),
    "a preload variable": ((), {"Env": [*ENVIRONMENT, "LD_PRELOAD=/x.so"]}, "sets LD_PRELOAD"),
    "a setting of the worker": ((), {"Env": [*ENVIRONMENT, "AIRBRIDGE_WORKER_SLOTS=9"]}, "sets AIRBRIDGE_WORKER_SLOTS"),
}  # fmt: skip


@pytest.mark.parametrize(("members", "settings", "says"), CHANGES.values(), ids=CHANGES)
def test_changes_of_the_platform_are_named(
    base: Layout,
    tmp_path: Path,
    members: tuple[tarfile.TarInfo, ...],
    settings: dict[str, Any],
    says: str,
) -> None:
    """Each change of what belongs to the platform is one problem that names it."""
    found = list(problems(base, on_top(base, tmp_path / "tools", *members, **settings)))
    assert any(says in problem for problem in found), found


def test_another_base_is_named(base: Layout, tmp_path: Path) -> None:
    """An image whose last stage is not on the release's worker is refused with the two lines that it needs."""
    other = write_image(tmp_path / "other", {"usr/bin/jq": ""}, LABELS)
    assert "FROM ${BASE_IMAGE}" in next(iter(problems(base, other)))


@pytest.mark.parametrize("name", ["edge-worker", "worker", "control-plane", "Tools", "a/b", "-x", "x" * 33])
def test_taken_and_odd_names_are_refused(tree: Tree, name: str) -> None:
    """Names of the platform, and those that no repository can have."""
    with pytest.raises(BuildError, match="--name"):
        Recipe.of(tree.checkout, tree.root / "tools.Dockerfile", name)


def test_recipe_outside_the_checkout_is_refused(tree: Tree, tmp_path: Path) -> None:
    """A release is built from the files of its commit."""
    with pytest.raises(BuildError, match="outside"):
        Recipe.of(tree.checkout, tmp_path / "tools.Dockerfile", "tools")


@pytest.fixture
def facts(tree: Tree) -> Facts:
    """The tree's facts; its checked-out commit is the build's."""
    tree.write("images/tools/Dockerfile", "ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\n")
    return Facts(Checkout(tree.root, lambda *_, **__: REVISION))


def derived_build(facts: Facts, folder: Path, *members: tarfile.TarInfo) -> Output:
    """A build with a derived image of one more layer."""
    output = write_build(Output(folder / "dist"), facts, base=pinned(facts.checkout).name)
    part = output.part("amd64")
    made = on_top(Layout(part / "edge-worker"), part / "tools", member("usr/bin/jq"), *members)
    bill = sbom.document("tools", made, inventory.take(made))
    write_derived(output, read_records(output)["amd64"], "tools", "images/tools/Dockerfile", bill)
    assemble(output)
    return output


def test_manifest_names_image_base_and_recipe(facts: Facts, tmp_path: Path) -> None:
    """The release has the derived image with the digest of the worker below it; parity finds nothing to say."""
    output = derived_build(facts, tmp_path)
    release = parse(output.manifest.read_text(), "x").release
    assert release.derived["tools"].base == release.images["edge-worker"].digest
    assert release.derived["tools"].dockerfile == "images/tools/Dockerfile"
    assert set(release.all_images) == {"control-plane", "edge-worker", "tools"}
    assert as_text(list(built.check(facts, output))) == ""


def _alter_layer(output: Output) -> None:
    release = parse(output.manifest.read_text(), "x").release
    part = release.derived["tools"].parts["amd64"]
    folder = output.image("tools")
    stored = json.loads((folder / f"{part.digest.removeprefix('sha256:')}.manifest.json").read_text())
    (folder / stored["layers"][-1]["digest"].removeprefix("sha256:")).write_bytes(b"x")


def _alter_bill(output: Output) -> None:
    output.sbom("tools", "amd64").write_text("{}")


def _move_base(output: Output) -> None:
    content = json.loads(output.manifest.read_text())
    content["release"]["derived"]["tools"]["base"] = digest(77)
    output.manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (_alter_layer, "there is no intact tools"),
        (_alter_bill, "the manifest says"),
        (_move_base, "must be on the release's edge-worker"),
    ],
)
def test_altered_derived_build_is_found(
    facts: Facts, tmp_path: Path, alter: Callable[[Output], None], says: str
) -> None:
    """Other bytes, another SBOM, another base than the release's worker."""
    output = derived_build(facts, tmp_path)
    alter(output)
    assert says in as_text(list(built.check(facts, output)))


def test_platform_change_is_a_finding_of_the_build(facts: Facts, tmp_path: Path) -> None:
    """What was built beside `airbridge-ci build` is held to the same rules."""
    output = derived_build(facts, tmp_path, member("opt/airbridge/x.py"))
    assert "tools writes /opt/airbridge/x.py" in as_text(list(built.check(facts, output)))


def with_tools(tree: Tree, number: int, *, derived: bool = True) -> Manifest:
    """A signed release of the tree with the derived image `tools`, or without one."""
    loaded = tree.release(number)
    worker = loaded.release.images["edge-worker"]
    images = {
        "tools": DerivedImage(
            digest=digest(number * 1000 + 500),
            parts=worker.parts,
            base=worker.digest,
            dockerfile="images/tools/Dockerfile",
        )
    }
    release = loaded.release.model_copy(update={"derived": images if derived else {}})
    return Manifest(release=release).signed(tree.key)


def test_signature_covers_derived_images(tree: Tree) -> None:
    """A digest that was changed under the signature is refused; a release without derived images keeps its bytes."""
    made = with_tools(tree, 2)
    text = made.text().replace(digest(2500), digest(2501))
    with pytest.raises(CiError, match="altered"):
        parse(text, "x").verify({made.signatures[0].kid: tree.key.public_key()})
    assert "derived" not in tree.release(2).text()


def test_promotion_writes_and_replaces_derived_images(tree: Tree) -> None:
    """The table is written with the release; the images that leave are admitted until the next one, then forgotten."""
    path = pins.toml_path("dev")
    for number, expected in ((2, {}), (3, {"tools": f"tools@{digest(2500)}"})):
        Promotion(tree.checkout, "dev", with_tools(tree, number), None).write()
        images = tomllib.loads(tree.read(path))["images"]
        assert images["derived"] == {"tools": f"tools@{digest(number * 1000 + 500)}"}
        assert images.get("previous_derived", {}) == expected
    for number in (4, 5):
        Promotion(tree.checkout, "dev", with_tools(tree, number, derived=False), None).write()
    images = tomllib.loads(tree.read(path))["images"]
    assert "derived" not in images
    assert tomllib.loads(tree.read(path))["pipelines"]


def test_pool_without_its_image_stops_the_promotion(tree: Tree) -> None:
    """A release that lacks the image which a pool names does not move, and nothing is written."""
    Promotion(tree.checkout, "dev", with_tools(tree, 2), None).write()
    path = pins.toml_path("dev")
    tree.write(path, tree.read(path).replace("[[region.pool]]\n", '[[region.pool]]\nimage = "tools"\n', 1))
    before = tree.read(path)
    with pytest.raises(PromotionRefused, match="names image tools"):
        Promotion(Checkout(tree.root), "dev", with_tools(tree, 3, derived=False), None).write()
    assert tree.read(path) == before


def test_waiting_repository_survives_a_promotion(tree: Tree) -> None:
    """A placeholder makes the repository of an image that no release has yet; parity accepts it, and no pool may name it."""
    path = pins.toml_path("dev")
    table = f'[images.derived]\ngpu = "gpu@sha256:{64 * "0"}"\n\n[pipelines]'
    tree.write(path, tree.read(path).replace("[pipelines]", table))
    Promotion(Checkout(tree.root), "dev", with_tools(tree, 2), None).write()
    assert set(tomllib.loads(tree.read(path))["images"]["derived"]) == {"gpu", "tools"}
    tree.write(path, tree.read(path).replace("[[region.pool]]\n", '[[region.pool]]\nimage = "gpu"\n', 1))
    assert "names image gpu" in as_text(checks.check(Checkout(tree.root), synthesised=False))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (f"tools@{digest(2500)}", f"tools@{digest(2501)}", "derived.tools is sha256:"),
        (f"tools@{digest(2500)}", "tools:latest", "derived.tools is tools:latest"),
        (f"tools@{digest(2500)}", f"other@{digest(2500)}", "derived.tools is an image of other"),
        (f'tools = "tools@{digest(2500)}"\n', "", "derived.tools is missing"),
    ],
)
def test_hand_edited_table_is_found(tree: Tree, old: str, new: str, says: str) -> None:
    """Another digest, a tag, another image, a removed line: each is named at its place."""
    Promotion(tree.checkout, "dev", with_tools(tree, 2), None).write()
    tree.edit(pins.toml_path("dev"), old, new)
    found = as_text(checks.check(Checkout(tree.root), synthesised=False))
    assert says in found
    assert "infra/environments/dev.toml:" in found


def test_architecture_of_a_derived_image_is_checked(tree: Tree) -> None:
    """A pool of Graviton instances cannot run a derived image that was built for amd64 alone; one that no pool names may be so."""
    made = with_tools(tree, 2)
    tools = made.release.derived["tools"]
    derived = {"tools": tools.model_copy(update={"parts": {"amd64": tools.parts["amd64"]}})}
    release = made.release.model_copy(update={"derived": derived})
    Promotion(tree.checkout, "dev", Manifest(release=release).signed(tree.key), None).write()
    path = pins.toml_path("dev")
    tree.write(path, tree.read(path).replace("[[region.pool]]\n", '[[region.pool]]\nimage = "tools"\n', 1))
    found = as_text(checks.check(Checkout(tree.root), synthesised=False))
    assert "tools has no image for arm64" in found


def test_images_by_pool() -> None:
    """A pool's digest by the image that it names; a missing one is refused with those that there are."""
    images = WorkerImages(digest(1), {"tools": digest(2)})
    assert (images.of_pool(None), images.of_pool("tools")) == (digest(1), digest(2))
    with pytest.raises(CiError, match="no image gpu; it has: tools"):
        images.of_pool("gpu")


def test_documented_recipe_is_the_tested_one() -> None:
    """The how-to shows the very file that the demo builds."""
    page = (ROOT / "docs/how-to/build-images.md").read_text()
    shown = re.search(r"```dockerfile\n(.*?)```", page, re.DOTALL)
    assert shown
    assert textwrap.dedent(shown[1]).strip() == (ROOT / "images/derived/tools.Dockerfile").read_text().strip()


def test_refused_build_leaves_the_earlier_one(
    facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe that changes the platform is refused, and the image that an earlier recipe made stays part of the build."""
    output = derived_build(facts, tmp_path)
    before = output.manifest.read_text()
    builder = DerivedBuilder(facts.checkout, output, "amd64", tmp_path / "work", lambda _: None)
    base = Layout(output.part("amd64") / "edge-worker")
    monkeypatch.setattr(DerivedBuilder, "_source", lambda *_: tmp_path)
    monkeypatch.setattr(
        DerivedBuilder, "_buildah", lambda *_: on_top(base, tmp_path / "bad", member("opt/airbridge/x"))
    )
    with pytest.raises(BuildError, match="writes /opt/airbridge/x"):
        builder.build(Recipe("images/tools/Dockerfile", "tools"))
    assemble(output)
    assert output.manifest.read_text() == before
