"""Manifests on disk: what is read, and how changes show."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdns.cluster import documents, manifests
from kdns.cluster.manifests import Change, ManifestSource
from kdns.cluster.objects import Object, Service


def manifest(name: str, address: str = "10.96.0.1", namespace: str = "default") -> str:
    return (
        f"apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
        f"spec:\n  clusterIP: {address}\n"
    )


def addresses(items: Iterable[Object]) -> dict[str, str]:
    """Cluster IP by name."""
    return {item.name: item.cluster_ips[0] for item in items if isinstance(item, Service)}


def state(source: ManifestSource) -> dict[str, str]:
    return addresses(source.load().objects.values())


def problems(source: ManifestSource) -> list[str]:
    return [str(problem) for problem in source.load().problems]


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a.yaml").write_text(manifest("a"))
    (tmp_path / "b.yml").write_text(manifest("b"))
    (tmp_path / "deep" / "er" / "c.json").write_text(
        '{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c"}, "spec": {"clusterIP": "10.96.0.1"}}'
    )
    for other in ("notes.txt", "a.yaml~", ".a.yaml", ".hidden/x.yaml"):
        (tmp_path / other).write_text(manifest("other"))
    assert set(state(ManifestSource([tmp_path]))) == {"a", "b", "c"}
    assert set(state(ManifestSource([tmp_path / "notes.txt", str(tmp_path / "deep")]))) == {"other", "c"}


def test_last_file_wins_and_both_are_named(tmp_path: Path) -> None:
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text(manifest("web", "10.96.0.1"))
    two.write_text(f"{manifest('api')}---\n{manifest('web', '10.96.0.2')}")
    source = ManifestSource([tmp_path])
    assert state(source)["web"] == "10.96.0.2"
    (problem,) = problems(source)
    assert problem.startswith(f"{two}:8: Service default/web is also in {one}")
    assert state(ManifestSource([two, one]))["web"] == "10.96.0.1"
    assert state(ManifestSource([tmp_path, one]))["web"] == "10.96.0.1"
    two.unlink()
    assert (state(source), problems(source)) == ({"web": "10.96.0.1"}, [])


def test_the_same_object_in_two_files_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "1.yaml").write_text(manifest("web"))
    (tmp_path / "2.yaml").write_text(manifest("web"))
    assert problems(ManifestSource([tmp_path])) == []


def test_the_order_of_labels_makes_no_difference(tmp_path: Path) -> None:
    one, other = (
        manifest("web").replace("name: web", f"name: web\n  labels: {{{text}}}")
        for text in ("a: x, b: y", "b: y, a: x")
    )
    (tmp_path / "1.yaml").write_text(one)
    (tmp_path / "2.yaml").write_text(f"{one}---\n{other}")
    assert problems(ManifestSource([tmp_path])) == []


@pytest.mark.parametrize(
    ("damage", "line"), [("kind: ]\n", 1), ("kind: Service\napiVersion: v1\nmetadata: 7\n", 3), ("", 1)]
)
def test_a_file_that_cannot_be_used_keeps_its_last_good_objects(tmp_path: Path, damage: str, line: int) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(manifest("web"))
    source = ManifestSource([tmp_path])
    before = state(source)
    file.write_text(damage)
    assert state(source) == before == {"web": "10.96.0.1"}
    (problem,) = problems(source)
    assert problem.startswith(f"{file}:{line}: ")
    file.write_text(manifest("web", "10.96.0.9"))
    assert (state(source), problems(source)) == ({"web": "10.96.0.9"}, [])


def test_files_and_folders_without_permission_keep_their_objects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text(manifest("a"))
    (tmp_path / "sub" / "b.yaml").write_text(manifest("b"))
    source = ManifestSource([tmp_path])
    before = state(source)
    os.utime(tmp_path / "a.yaml", (0, 0))
    scandir = os.scandir

    def refuse(path: Path, *_: object) -> Any:
        if path.name in ("a.yaml", "sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    assert state(source) == before
    assert [Path(problem.split(":")[0]).name for problem in problems(source)] == ["sub", "a.yaml"]


def test_a_folder_that_is_gone_keeps_its_objects_and_a_file_does_not(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file.yaml"
    folder.mkdir()
    (folder / "a.yaml").write_text(manifest("a"))
    file.write_text(manifest("b"))
    source = ManifestSource([folder, file])
    assert set(state(source)) == {"a", "b"}
    folder.rename(tmp_path / "elsewhere")
    file.unlink()
    assert set(state(source)) == {"a"}
    assert [problem.split(":")[0] for problem in problems(source)] == [str(folder), str(file)]
    folder.mkdir()
    assert state(source) == {}
    assert [problem.split(":")[0] for problem in problems(source)] == [str(file)]


def test_what_is_no_file_is_reported_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "nowhere.yaml").symlink_to("gone")
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "a.yaml").write_text(manifest("a"))
    source = ManifestSource([tmp_path])
    assert state(source) == {"a": "10.96.0.1"}
    assert len(problems(source)) == 3


def test_a_file_that_is_too_large_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_FILE", 1000)
    (tmp_path / "a.yaml").write_text(manifest("a") + "#" * 1000)
    assert "too large" in problems(ManifestSource([tmp_path]))[0]


def test_only_files_that_changed_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(manifest(name))
        os.utime(tmp_path / f"{name}.yaml", (1000, 1000))
    source = ManifestSource([tmp_path])
    source.load()
    read: list[str] = []
    parse = documents.parse

    def noted(data: bytes, file: str) -> documents.Content:
        read.append(file)
        return parse(data, file)

    monkeypatch.setattr(documents, "parse", noted)
    source.load()
    assert read == []
    os.utime(tmp_path / "b.yaml", (2000, 2000))
    source.load()
    assert read == [str(tmp_path / "b.yaml")]


def test_a_file_written_twice_within_one_tick_of_the_clock_is_not_missed(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(manifest("a", "10.96.0.1"))
    now = time.time_ns()
    os.utime(file, ns=(now, now))
    source = ManifestSource([file])
    assert state(source) == {"a": "10.96.0.1"}
    file.write_text(manifest("a", "10.96.0.2"))
    os.utime(file, ns=(now, now))
    assert state(source) == {"a": "10.96.0.2"}


def test_refresh_tells_only_what_is_different(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"{manifest('a')}---\n{manifest('b')}---\n{manifest('c')}")
    source = ManifestSource([file])
    assert [item.name for item in source.refresh().put] == ["a", "b", "c"]
    assert not source.refresh()
    file.write_text(f"{manifest('a')}---\n{manifest('b', '10.96.0.2')}")
    change = source.refresh()
    assert [item.name for item in change.put] == ["b"]
    assert change.deleted == (("Service", "default", "c"),)
    file.write_text("[")
    change = source.refresh()
    assert (change.put, change.deleted, len(change.problems), change.solved) == ((), (), 1, ())
    file.write_text(manifest("a"))
    assert source.refresh().solved == change.problems


@given(st.binary(max_size=100))
def test_random_bytes_never_raise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "random.yaml"
    file.write_bytes(data)
    assert ManifestSource([file]).load().problems


# Following: each test starts with a.yaml in a folder, does something, and has a second to see it.


Act = Callable[[], None]


def follow(source: ManifestSource, act: Act, expected: dict[str, str], limit: float = 1.0) -> list[Change]:
    """Changes after `act`, until they add up to what is expected."""

    async def run() -> list[Change]:
        known = addresses(source.load().objects.values())
        seen: list[Change] = []
        acted = False

        async with aclosing(source.changes()) as changes:

            async def watch() -> None:
                async for change in changes:
                    if acted:
                        seen.append(change)
                    for key in change.deleted:
                        known.pop(key[2])
                    known.update(addresses(change.put))
                    if known == expected:
                        return

            watcher = asyncio.create_task(watch())
            await asyncio.sleep(0.6)
            acted = True
            act()
            await asyncio.wait_for(watcher, limit)
        return seen

    return asyncio.run(run())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    (path / "a.yaml").write_text(manifest("a"))
    return path


def test_edit(folder: Path) -> None:
    source = ManifestSource([folder])
    changes = follow(source, lambda: _write(folder / "a.yaml", manifest("a", "10.96.0.2")), {"a": "10.96.0.2"})
    assert [item.name for change in changes for item in change.put] == ["a"]


def test_add(folder: Path) -> None:
    expected = {"a": "10.96.0.1", "b": "10.96.0.1"}
    follow(ManifestSource([folder]), lambda: _write(folder / "b.yaml", manifest("b")), expected)


def test_delete(folder: Path) -> None:
    _write(folder / "b.yaml", manifest("b"))
    follow(ManifestSource([folder]), (folder / "b.yaml").unlink, {"a": "10.96.0.1"})


def test_rename_within_the_folder_changes_nothing(folder: Path) -> None:
    def act() -> None:
        (folder / "a.yaml").rename(folder / "z.yaml")
        _write(folder / "b.yaml", manifest("b"))

    changes = follow(ManifestSource([folder]), act, {"a": "10.96.0.1", "b": "10.96.0.1"})
    assert all(change.deleted == () for change in changes)


def test_rename_over_a_file(folder: Path) -> None:
    _write(folder / "a.tmp", manifest("a", "10.96.0.2"))
    for source in (ManifestSource([folder]), ManifestSource([folder / "a.yaml"])):
        _write(folder / "a.yaml", manifest("a"))
        _write(folder / "a.tmp", manifest("a", "10.96.0.2"))
        follow(source, lambda: _void((folder / "a.tmp").rename(folder / "a.yaml")), {"a": "10.96.0.2"})


def test_a_new_subfolder_is_followed_too(folder: Path) -> None:
    source = ManifestSource([folder])
    follow(source, lambda: _write(folder / "sub" / "b.yaml", manifest("b")), {"a": "10.96.0.1", "b": "10.96.0.1"})
    follow(
        source,
        lambda: _write(folder / "sub" / "b.yaml", manifest("b", "10.96.0.2")),
        {"a": "10.96.0.1", "b": "10.96.0.2"},
    )


def test_a_path_that_appears_later(tmp_path: Path) -> None:
    source = ManifestSource([tmp_path / "not" / "yet"])
    follow(source, lambda: _write(tmp_path / "not" / "yet" / "b.yaml", manifest("b")), {"b": "10.96.0.1"})


@pytest.mark.parametrize("path", [".", "a.yaml"])
def test_config_map_mount(tmp_path: Path, path: str) -> None:
    mount = tmp_path / "mount"
    for version, address in (("1", "10.96.0.1"), ("2", "10.96.0.2")):
        _write(mount / f"..{version}" / "a.yaml", manifest("a", address))
    (mount / "..data").symlink_to("..1")
    (mount / "a.yaml").symlink_to("..data/a.yaml")
    (mount / "..data_tmp").symlink_to("..2")
    source = ManifestSource([mount / path])
    assert state(source) == {"a": "10.96.0.1"}
    changes = follow(source, lambda: _void((mount / "..data_tmp").rename(mount / "..data")), {"a": "10.96.0.2"})
    assert len(changes) == 1
    assert problems(source) == []


def test_a_link_to_a_folder_that_is_set_to_another(tmp_path: Path) -> None:
    for version, address in (("1", "10.96.0.1"), ("2", "10.96.0.2")):
        _write(tmp_path / "releases" / version / "a.yaml", manifest("a", address))
    (tmp_path / "current").symlink_to("releases/1")
    (tmp_path / "next").symlink_to("releases/2")
    source = ManifestSource([tmp_path / "current"])
    follow(source, lambda: _void((tmp_path / "next").rename(tmp_path / "current")), {"a": "10.96.0.2"})


def test_a_linked_file_that_is_written_where_it_lies(tmp_path: Path, folder: Path) -> None:
    _write(tmp_path / "far" / "b.yaml", manifest("b"))
    (folder / "b.yaml").symlink_to(tmp_path / "far" / "b.yaml")
    act = lambda: _write(tmp_path / "far" / "b.yaml", manifest("b", "10.96.0.2"))  # noqa: E731
    follow(ManifestSource([folder]), act, {"a": "10.96.0.1", "b": "10.96.0.2"})


def test_without_inotify_changes_show_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*paths: str, **options: object) -> None:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(manifests, "awatch", exhausted)
    follow(ManifestSource([folder]), lambda: _write(folder / "a.yaml", manifest("a", "10.96.0.2")), {"a": "10.96.0.2"})


def test_broken_file_is_reported_while_following(folder: Path) -> None:
    def act() -> None:
        _write(folder / "a.yaml", manifest("a") + "x: [\n")
        _write(folder / "b.yaml", manifest("b"))

    changes = follow(ManifestSource([folder]), act, {"a": "10.96.0.1", "b": "10.96.0.1"})
    found = [problem for change in changes for problem in change.problems]
    assert [(Path(problem.file).name, problem.line) for problem in found] == [("a.yaml", 9)]


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _void(_: object) -> None:
    pass
