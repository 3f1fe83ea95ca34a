"""What images are made of and what their tags tell. Nothing is built here."""

from __future__ import annotations

import dataclasses
import re
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from mms_cluster import images_engine, images_wheels
from mms_cluster.errors import ClusterError
from mms_cluster.images import CONTAINERFILES, ROOTFS_CONTAINERFILE
from mms_cluster.images_plan import (
    BASE,
    RECIPES,
    TAG_LENGTH,
    ImageRef,
    Inputs,
    archive_name,
    digest,
    headers,
    image_name,
    in_site,
    order,
    stale_archives,
)

if TYPE_CHECKING:
    from pathlib import Path

INPUTS = Inputs(
    containerfile=b"FROM scratch",
    base="0123456789ab",
    wheels=("a-1-py3-none-any.whl",),
    tools=("pip-1-py3-none-any.whl",),
    locks={"worker": b"a==1"},
    sources={"mms_workloads/pod.py": b"pass"},
)
PATHS = [images_wheels.ROOT / "requirements.lock", *sorted(images_wheels.REQUIREMENTS.glob("*.lock"))]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("containerfile", b"FROM scratch\n", id="containerfile"),
        pytest.param("base", "ba9876543210", id="base"),
        pytest.param("wheels", ("a-2-py3-none-any.whl",), id="another-wheel"),
        pytest.param("tools", (), id="a-tool-less"),
        pytest.param("torch", ("torch-1-cp311-cp311-linux_x86_64.whl",), id="pytorch"),
        pytest.param("locks", {"worker": b"a==2"}, id="lock"),
        pytest.param("sources", {"mms_workloads/pod.py": b"..."}, id="content-of-a-source"),
        pytest.param("sources", {"mms_workloads/bot.py": b"pass"}, id="name-of-a-source"),
    ],
)
def test_each_input_changes_the_tag(field: str, value: Any) -> None:
    assert dataclasses.replace(INPUTS, **{field: value}).tag() != INPUTS.tag()


def test_a_tag_depends_on_nothing_else() -> None:
    assert dataclasses.replace(INPUTS, locks=dict(INPUTS.locks or {})).tag() == INPUTS.tag()
    assert re.fullmatch(rf"[0-9a-f]{{{TAG_LENGTH}}}", INPUTS.tag())


def test_a_change_of_the_sources_leaves_the_other_layers() -> None:
    changed = dataclasses.replace(INPUTS, sources={"mms_workloads/pod.py": b"..."}).layers()
    assert {name for name, value in INPUTS.layers().items() if changed[name] != value} == {"SOURCES"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param([("ab", b"c")], [("a", b"bc")], id="name-and-content"),
        pytest.param([("a", b"bc"), ("d", b"")], [("a", b"b"), ("d", b"c")], id="two-contents"),
        pytest.param([("a", b"")], [], id="an-empty-part"),
    ],
)
def test_moving_bytes_between_parts_changes_the_digest(
    one: list[tuple[str, bytes]], other: list[tuple[str, bytes]]
) -> None:
    assert digest(one) != digest(other)


def test_the_order_of_parts_does_not_count() -> None:
    assert digest([("a", b"1"), ("b", b"2")]) == digest([("b", b"2"), ("a", b"1")])


@pytest.mark.parametrize(
    ("member", "packages", "expected"),
    [
        pytest.param("mms_workloads/pod.py", ("mms_workloads",), True, id="a-package-of-the-image"),
        pytest.param("mms_operator/main.py", ("mms_workloads",), False, id="a-package-of-another"),
        pytest.param("mms_workloads/images/base.Containerfile", ("mms_workloads",), False, id="a-containerfile"),
        pytest.param("massive-0.1.dist-info/METADATA", ("mms_workloads",), True, id="the-version"),
        pytest.param("massive-0.1.dist-info/RECORD", ("mms_workloads",), False, id="the-list-of-files"),
        pytest.param("massive-0.1.dist-info/entry_points.txt", ("mms_workloads",), False, id="commands"),
    ],
)
def test_what_of_the_project_an_image_holds(member: str, packages: tuple[str, ...], expected: bool) -> None:
    assert in_site(member, packages) is expected


def test_the_readme_does_not_reach_the_images(tmp_path: Path) -> None:
    wheel = tmp_path / "p.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p-1.dist-info/METADATA", "Name: p\nVersion: 1\n\n# README")
        archive.writestr("mms_workloads/pod.py", "")
    assert images_wheels.site(wheel, ["mms_workloads"]) == {
        "p-1.dist-info/METADATA": b"Name: p\nVersion: 1\n",
        "mms_workloads/pod.py": b"",
    }
    assert headers(b"Name: p\n\n") == b"Name: p\n"


def test_images_are_built_in_the_order_they_stand_on_each_other() -> None:
    assert order(["worker", BASE, "operator", "worker"]) == [BASE, "operator", "worker"]
    with pytest.raises(KeyError, match="wroker"):
        order(["wroker", "worker"])


def test_only_other_tags_of_the_same_image_are_stale(tmp_path: Path) -> None:
    tag, old = "0" * TAG_LENGTH, "1" * TAG_LENGTH
    current = ImageRef(image_name("worker"), tag, tmp_path / archive_name("worker", tag))
    present = [
        archive_name("worker", tag),
        archive_name("worker", old),
        archive_name("server", old),
        f"mms-worker-{old}.partial",
        f"mms-worker-{old}xtar",
        "notes.txt",
    ]
    assert stale_archives(present, current) == [archive_name("worker", old)]
    assert current.reference == f"localhost/mms-worker:{tag}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_containerfile_takes_its_base_and_runs_without_root(name: str) -> None:
    lines = (CONTAINERFILES / f"{name}.Containerfile").read_text(encoding="utf-8").splitlines()
    assert "FROM ${BASE}" in lines
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 10001:10001"
    assert name == BASE or any(line.startswith("ENTRYPOINT [") for line in lines)


@pytest.mark.parametrize("name", RECIPES)
def test_a_containerfile_asks_for_the_layers_that_its_recipe_fills(name: str) -> None:
    text = (CONTAINERFILES / f"{name}.Containerfile").read_text(encoding="utf-8")
    recipe = RECIPES[name]
    asked = set(re.findall(r"^ARG (\w+)$", text, re.MULTILINE)) - {"BASE"}
    filled = {"DEPENDENCIES"} if recipe.locks else set()
    filled |= {"TORCH"} if recipe.torch else set()
    filled |= {"SOURCES"} if recipe.packages else set()
    filled |= {"TOOLS"} if set(recipe.tools) - {"pip"} else set()
    assert asked == filled
    for argument in asked:
        assert f': "${{{argument}}}"' in text, "an argument that no command names doesn't make its layer anew"


def test_a_root_file_system_has_a_search_path() -> None:
    assert ROOTFS_CONTAINERFILE.startswith("FROM scratch\n")
    assert "/usr/bin" in ROOTFS_CONTAINERFILE.splitlines()[-1]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_a_lock_has_hashes_and_no_addresses(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    locked = re.findall(r"^[a-z0-9][\w.-]*==\S+(?: ; .*)? \\\n +--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert locked
    assert len(locked) == len(re.findall(r"^\S", text, re.MULTILINE))
    assert "://" not in text


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_no_lock_brings_pytorch_or_cuda(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"^(?:torch|triton|nvidia-(?!pytriton)[\w-]+|cuda-[\w-]+)==", text, re.MULTILINE)


def test_every_lock_that_a_recipe_names_is_there() -> None:
    named = {lock for recipe in RECIPES.values() for lock in (*recipe.locks, *recipe.tools)}
    assert named == {path.stem for path in images_wheels.REQUIREMENTS.glob("*.lock")}


def test_the_server_has_the_numpy_that_its_backend_was_compiled_against() -> None:
    """With numpy 2 a model reads copies of a tensor's first element, without an error."""
    assert re.search(r"^numpy==1\.", images_wheels.lock("server").decode(), re.MULTILINE)


def test_wheels_are_for_debian_12_whatever_runs_here() -> None:
    tags = images_wheels.platforms("x86_64")
    assert tags[0] == "manylinux_2_36_x86_64"
    assert "manylinux_2_5_x86_64" in tags
    assert not [tag for tag in tags if re.fullmatch(r"manylinux_2_(3[7-9]|[4-9]\d)_.*", tag)]


def test_a_download_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    folder = tmp_path / "wheels" / "x"
    left = tmp_path / "wheels" / "x.partial"
    left.mkdir(parents=True)
    (left / "half-1-py3-none-any.whl").touch()

    def cut(target: Path) -> None:
        (target / "whole-1-py3-none-any.whl").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images_wheels._once(folder, cut)
    assert not folder.exists()

    found = images_wheels._once(folder, lambda target: (target / "whole-1-py3-none-any.whl").touch())
    assert [wheel.name for wheel in found] == ["whole-1-py3-none-any.whl"]


def test_what_a_failing_program_said_reaches_the_user() -> None:
    with pytest.raises(ClusterError, match=r"(?s)sh -c .* failed with 3.*no space left"):
        images_engine._run(["sh", "-c", "echo no space left >&2; exit 3"])
