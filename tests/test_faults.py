"""Hosts that are killed, and disks that fail, at every step: there is the old dataset afterwards, or the new one."""

import errno
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from harness import faults, server
from harness.faults import CUT, FAIL, FAIL_FROM_HERE_ON, FAIL_TO_LOOK, KILL, NO_FAULT, Fault, Hosts, Job, Outcome
from harness.library import OURS, Bench, Library, Workspace
from harness.photos import Entry, jpeg, make_zip
from harness.scenario import Work
from harness.server import Exchange, Server, content, serving
from test_repairs import adapter_of_a_clone, header

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD as it is used here is Linux's")

Tree = dict[str, Any]

TOML = '[[datasets]]\nimage_directory = "new"\n'
ZIP = make_zip("a.jpg", "sub/", "sub/a.jpg", "sub/deep/B.JPEG", "read.me", ("cut.jpg", jpeg()[:40]))


def record(*photos: tuple[str, str, list[str]]) -> bytes:
    as_found = {"width": 64, "height": 48, "caption_from": "trigger"}
    records = [{"file": file, "from": name, **as_found, "done": done, "warnings": []} for file, name, done in photos]
    lines = [json.dumps(record, separators=(",", ":")) for record in records]
    return ('{"photos": [\n' + ",\n".join(lines) + "\n]}\n").encode()


NEW: Tree = {
    "images/": None,
    "images/a.jpg": jpeg(comment="a.jpg"),
    "images/a.txt": b"new word",
    "images/a_2.jpg": jpeg(comment="sub/a.jpg"),
    "images/a_2.txt": b"new word",
    "images/B.JPEG": jpeg(comment="sub/deep/B.JPEG"),
    "images/B.txt": b"new word",
    "cache/": None,
    "photos.json": record(
        ("a.jpg", "a.jpg", []), ("a_2.jpg", "sub/a.jpg", ["renamed from a.jpg"]), ("B.JPEG", "sub/deep/B.JPEG", [])
    ),
    "dataset.toml": TOML.encode(),
}
PARTS = ("images", "cache", "photos.json", "dataset.toml")


def tree(folder: Path) -> Tree:
    """Every name with its content, a link's target, or nothing for a folder."""
    found: Tree = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_dir():
            found[name + "/"] = None
        else:
            found[name] = path.read_bytes()
    return found


def part_of(found: Tree, part: str) -> Tree:
    return {name: data for name, data in found.items() if name.split("/")[0] == part}


def dataset_of(found: Tree) -> Tree:
    """What a reader sees, who looks for the parts of a dataset and for nothing else."""
    return {name: data for part in PARTS for name, data in part_of(found, part).items()}


def is_of_one(found: Tree, *datasets: Tree) -> bool:
    """Whether every part is there whole or not at all, and all of one dataset; where its TOML is, all of it."""
    if "dataset.toml" in found:
        return dataset_of(found) in datasets
    return any(all(part_of(found, part) in ({}, part_of(one, part)) for part in PARTS) for one in datasets)


def old_dataset(training: Path) -> None:
    for name in ("images/old.jpg", "images/old.txt", "images/a.jpg", "cache/old_zi.safetensors", "cache/more/b.npz"):
        path = training / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"old")
    (training / "dataset.toml").write_bytes(b"old")
    (training / "images.zip").write_bytes(b"left behind by an earlier release")


def partly_removed(training: Path) -> None:
    (training / "images").mkdir(parents=True)
    (training / "images/old.jpg").write_bytes(b"old")


def large(training: Path) -> None:
    old_dataset(training)
    for number in range(5):
        (training / f"images/{number}.jpg").write_bytes(b"old")


def linked_from_elsewhere(training: Path) -> None:
    old_dataset(training.parent / "elsewhere")
    training.mkdir()
    for part in PARTS:
        (training / part).symlink_to(f"../elsewhere/{part}")


BEGINNINGS: dict[str, Callable[[Path], Any]] = {
    "an old dataset": old_dataset,
    "no folder": lambda training: None,
    "an old dataset that is partly removed": partly_removed,
    "an old dataset that is large": large,
    "an old dataset that is linked from elsewhere": linked_from_elsewhere,
}


class Faults:
    """Places with a training folder in them, and runs there."""

    def __init__(self, root: Path, hosts: Hosts, server: Server) -> None:
        self.root = root
        self.hosts = hosts
        self.server = server
        self.url = server.on("/photos.zip", ZIP)
        self.missing_url = server.url("/not-there.zip")
        self.numbers = itertools.count()

    def place(self, beginning: str = "an old dataset") -> Path:
        place = self.new_folder()
        place.mkdir()
        BEGINNINGS[beginning](place / "training")
        return place

    def new_folder(self) -> Path:
        return self.root / f"place{next(self.numbers)}"

    def copy(self, place: Path) -> Path:
        return Path(shutil.copytree(place, self.new_folder(), symlinks=True))

    def prepare(self, place: Path, fault: Fault = NO_FAULT, url: str = "") -> Outcome:
        return self.hosts.run(Job(str(place), str(place / "training"), url or self.url, TOML), fault)

    def launch(self, place: Path, fault: Fault = NO_FAULT) -> Outcome:
        return self.hosts.run(Job(str(place), str(place / "training")), fault)

    def steps(self, beginning: str = "an old dataset") -> list[str]:
        """What a run does that nothing stops."""
        place = self.place(beginning)
        steps = self.prepare(place).ok().steps
        assert tree(place / "training") == NEW
        return steps

    def check_a_run_that_fails(self, place: Path, *datasets: Tree) -> None:
        """Which leaves one of these, and nothing else."""
        outcome = self.prepare(place, url=self.missing_url)
        assert outcome.error is not None
        assert "404" in outcome.error["message"]
        assert tree(place / "training") in datasets

    def check_next_runs(self, place: Path, *datasets: Tree) -> None:
        """Ends with the place."""
        copy = self.copy(place)
        self.check_a_run_that_fails(copy, *datasets)
        self.prepare(place).ok()
        assert tree(place / "training") == NEW
        shutil.rmtree(copy)
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults.build(tmp_path_factory.mktemp("faults"))


def hosts_of(library: Library, shim: Path, root: Path) -> Iterator[Hosts]:
    with serving() as server, faults.hosts(shim, library, root, server) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def our_hosts(shim: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    for hosts in hosts_of(OURS, shim, tmp_path_factory.mktemp("hosts")):
        for host in hosts.all:
            adapter_of_a_clone(False)(host.workspace)
        yield hosts


@pytest.fixture
def ours(tmp_path: Path, our_hosts: Hosts, server: Server) -> Faults:
    return Faults(tmp_path, our_hosts, server)


@pytest.fixture
def theirs(tmp_path: Path, the_original: Library, shim: Path, server: Server) -> Iterator[Faults]:
    for hosts in hosts_of(the_original, shim, tmp_path / "hosts"):
        yield Faults(tmp_path, hosts, server)


def kills(steps: list[str]) -> Iterator[Fault]:
    """Before each step, and in the middle of each write. Killed after one is killed before the next."""
    for number, step in enumerate(steps, 1):
        yield Fault(KILL, number)
        if "write" in step:
            yield Fault(CUT, number)


@pytest.mark.parametrize("beginning", BEGINNINGS)
def test_a_host_killed_at_any_step_leaves_the_old_dataset_or_the_new_one(ours: Faults, beginning: str) -> None:
    steps = ours.steps(beginning)
    ends = list(kills(steps))
    if beginning != "an old dataset":
        # Beside any dataset the new one is built in the same steps.
        ends = [end for end in ends if "/.dataset-new/" not in steps[end.step - 1] and end.kind == KILL]
        assert ends

    def check(end: Fault) -> None:
        place = ours.place(beginning)
        old = dataset_of(tree(place / "training"))
        assert ours.prepare(place, end).was_killed
        assert is_of_one(tree(place / "training"), old, NEW)
        ours.check_next_runs(place, old, NEW)

    ours.hosts.each(check, ends)


def test_so_does_one_that_is_killed_or_errs_while_it_recovers(ours: Faults) -> None:
    """From every state of the folders that a killed run leaves."""
    old: Tree = {}
    states: dict[frozenset[str], Path] = {}
    for end in kills(ours.steps()):
        place = ours.place()
        old = dataset_of(tree(place / "training"))
        ours.prepare(place, end)
        names = frozenset("/".join(name.split("/")[:2]) for name in tree(place / "training"))
        states.setdefault(frozenset(name for name in names if not name.startswith(".dataset-new/")), place)
    ends = []
    for place in states.values():
        kinds = [(KILL, "", "mkdir")]
        if (place / "training/.dataset-ready").exists():
            # Otherwise nothing but rubbish is moved.
            kinds += [(FAIL, "", "mkdir"), (FAIL_TO_LOOK, "statx", "images.zip")]
        for kind, call, first_thing_after in kinds:
            steps = ours.prepare(ours.copy(place), Fault(kind, 0), ours.missing_url).steps
            recovered = next(number for number, step in enumerate(steps, 1) if first_thing_after in step)
            numbers = (number for number, step in enumerate(steps[:recovered], 1) if step.startswith(call))
            ends += [(place, Fault(kind, number, errno.EIO)) for number in numbers]

    def check(place_and_end: tuple[Path, Fault]) -> None:
        place, end = place_and_end
        place = ours.copy(place)
        assert ours.prepare(place, end, ours.missing_url).was_killed == (end.kind == KILL)
        assert is_of_one(tree(place / "training"), old, NEW)
        ours.check_a_run_that_fails(place, old, NEW)
        shutil.rmtree(place)

    ours.hosts.each(check, ends)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_disk_that_refuses_any_step_leaves_the_old_dataset_or_the_new_one(ours: Faults, error: int) -> None:
    steps = ours.steps()
    # A quota is in the way of what takes room alone.
    numbers = [number for number, step in enumerate(steps, 1) if error != errno.EDQUOT or "write" in step]

    def check(number: int) -> None:
        place = ours.place()
        old = dataset_of(tree(place / "training"))
        outcome = ours.prepare(place, Fault(FAIL, number, error))
        if outcome.error is None:
            # The new dataset is in place by then.
            assert dataset_of(tree(place / "training")) == NEW
            assert "not all of it can be deleted" in outcome.warnings()[-1]
        else:
            assert "OSError" in outcome.error["bases"]
            assert outcome.error["errno"] == error
            assert str(place) in outcome.error["message"]
            assert dataset_of(tree(place / "training")) == old
        ours.check_next_runs(place, old, NEW)

    ours.hosts.each(check, numbers)


def test_so_does_one_that_refuses_any_look_at_what_is_there(ours: Faults) -> None:
    place = ours.place()
    looks = ours.prepare(place, Fault(FAIL_TO_LOOK, 0)).ok().steps

    def check(number: int) -> None:
        place = ours.place()
        old = dataset_of(tree(place / "training"))
        outcome = ours.prepare(place, Fault(FAIL_TO_LOOK, number, errno.EIO))
        # A zip that cannot be read is a bad one, too.
        assert outcome.error is None or "Input/output error" in outcome.error["message"]
        assert dataset_of(tree(place / "training")) == (old if outcome.error else NEW)
        ours.check_a_run_that_fails(place, old, NEW)
        shutil.rmtree(place)

    ours.hosts.each(check, range(1, len(looks) + 1))


def test_so_does_one_that_refuses_all_from_any_step_on(ours: Faults) -> None:
    def check(number: int) -> None:
        place = ours.place()
        old = dataset_of(tree(place / "training"))
        outcome = ours.prepare(place, Fault(FAIL_FROM_HERE_ON, number, errno.EIO))
        assert outcome.error is None or outcome.error["errno"] == errno.EIO
        assert is_of_one(tree(place / "training"), old, NEW)
        ours.check_a_run_that_fails(place, old, NEW)
        shutil.rmtree(place)

    ours.hosts.each(check, range(1, len(ours.steps()) + 1))


FLAT_ZIP = make_zip("a.jpg", "b.jpg")


def test_the_original_leaves_neither(theirs: Faults) -> None:
    """So the tests above can fail. It stops on a zip with folders."""
    theirs.url = theirs.server.on("/flat.zip", FLAT_ZIP)
    done = theirs.place()
    steps = theirs.prepare(done).ok().steps
    new = dataset_of(tree(done / "training"))
    left_neither, stayed_so = [], []

    def check(end: Fault) -> None:
        place = theirs.place()
        old = dataset_of(tree(place / "training"))
        assert theirs.prepare(place, end).was_killed
        if dataset_of(tree(place / "training")) not in (old, new):
            left_neither.append(end)
        theirs.prepare(place, url=theirs.missing_url)
        if dataset_of(tree(place / "training")) not in (old, new):
            stayed_so.append(end)

    ends = list(kills(steps))
    theirs.hosts.each(check, ends)
    assert len(left_neither) > len(ends) / 2
    assert len(stayed_so) == len(ends)


# ---- two runs ---------------------------------------------------------------------------------------------------


def two_runs(faults: Faults) -> tuple[Path, Outcome, Outcome]:
    """The second is started and ends while the first waits for its zip."""
    go_on = Event()

    def slow(exchange: Exchange) -> None:
        go_on.wait(30)
        content(FLAT_ZIP)(exchange)

    place = faults.place()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(faults.prepare, place, url=faults.server.on("/slow.zip", slow))
        try:
            assert faults.server.wait_for_requests(1)
            second = faults.prepare(place, url=faults.server.on("/other.zip", make_zip("other.jpg")))
        finally:
            go_on.set()
        return place, first.result(), second


def photos(place: Path) -> set[str]:
    return {path.name for path in (place / "training/images").glob("*.jpg")}


def test_a_second_run_in_the_folder_is_refused_and_the_first_unharmed(ours: Faults) -> None:
    place, first, second = two_runs(ours)
    first.ok()
    assert second.error is not None
    assert "RuntimeError" in second.error["bases"]
    assert "another run" in second.error["message"]
    assert second.steps == []
    assert len(ours.server.requests) == 1
    assert photos(place) == {"a.jpg", "b.jpg"}


def test_two_runs_of_the_original_mix(theirs: Faults) -> None:
    place, first, second = two_runs(theirs)
    first.ok()
    second.ok()
    assert photos(place) == {"a.jpg", "b.jpg", "other.jpg"}


# ---- the adapter ------------------------------------------------------------------------------------------------

RENAMED = "base_weights_musubi.safetensors"


@pytest.mark.parametrize("earlier", [None, b"of an earlier run"])
def test_an_adapter_is_renamed_whole_or_not_at_all(ours: Faults, earlier: bytes | None) -> None:
    def used_place() -> Path:
        place = ours.place()
        if earlier:
            (place / "training" / RENAMED).write_bytes(earlier)
        return place

    first = ours.launch(used_place()).ok()
    assert first.adapter
    whole = bytes.fromhex(first.adapter)
    assert b"lora_unet_" in whole

    def check(fault: Fault) -> None:
        place = used_place()
        before = tree(place / "training")
        outcome = ours.launch(place, fault)
        assert tree(place / "training").get(RENAMED) == earlier
        assert outcome.adapter is None
        if fault.kind == FAIL:
            assert outcome.error is not None
            assert outcome.error["errno"] == fault.error
            assert tree(place / "training") == before
        assert ours.launch(place).ok().adapter == first.adapter
        assert tree(place / "training") == before | {RENAMED: whole}

    numbers = range(1, len(first.steps) + 1)
    failures = [Fault(FAIL, number, error) for number in numbers for error in (errno.ENOSPC, errno.EIO)]
    ours.hosts.each(check, [*kills(first.steps), *failures])


# ---- a full disk ------------------------------------------------------------------------------------------------


def run_short_of_room(work: Work):
    """Twice in one folder: on a disk that is spoiled, and on one that is as it should be again."""
    import os
    import subprocess
    from pathlib import Path

    from musubitraining.main import MusubiTraining

    class Trainer(MusubiTraining):
        def _run_cmd(self, step, cmd, *, cwd):
            with open(cmd[cmd.index("--base_weights") + 1], "rb") as adapter:
                self.adapter_bytes = len(adapter.read())

    disk, spoiled = Path(work.path("disk")), work.extra["spoiled"]
    training, ballast = disk / "training", disk / "ballast"
    for name in ("images/old.jpg", "images/old.txt", "cache/old_zi.safetensors", "dataset.toml"):
        (training / name).parent.mkdir(parents=True, exist_ok=True)
        (training / name).write_text("old")
    trainer = work.trainer(Trainer, absolute_path_training_folder=str(training))

    def found():
        return {str(path): path.is_file() and path.read_bytes() for path in training.rglob("*")}

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)

    def run():
        if work.extra.get("launch"):
            trainer._launch_training(str(training / "dataset.toml"))
        else:
            toml = work.toml + "#" * work.extra.get("letters of the toml", 0)
            trainer._prepare_dataset(toml, work.url, "w" * work.extra.get("letters of the word", 4))

    before, state = found(), os.statvfs(disk)
    ballast.mkdir()
    if "bytes free" in spoiled:
        with open(ballast / "b", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - spoiled["bytes free"])
    elif "files free" in spoiled:
        for number in range(os.statvfs(disk).f_favail - spoiled["files free"]):
            (ballast / str(number)).touch()
    else:
        remount("ro")
    error = None
    try:
        run()
    except Exception as raised:
        error = [isinstance(raised, OSError), getattr(raised, "errno", None), str(raised)]
    report = {"error": error, "the old dataset is untouched": found() == before}
    if "read-only" in spoiled:
        remount("rw")
    for path in ballast.iterdir():
        path.unlink()
    run()
    names = sorted(str(path.relative_to(training)) for path in training.rglob("*"))
    return {**report, "names": names, "adapter_bytes": getattr(trainer, "adapter_bytes", None)}


def on_a_small_disk(library: Library, workspace: Workspace) -> Library:
    """With 16 MB mounted on `<work>/disk`, where its process alone sees them."""
    disk, program = workspace.root / "disk", workspace.root / "on-a-small-disk"
    disk.mkdir()
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c"]
    mount = f"mount -t tmpfs -o size=16m,nr_inodes=100 none {shlex.quote(str(disk))}"
    try:
        tried = subprocess.run([*namespace, mount], capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no small disk can be made here: {error}")
    if tried.returncode:
        pytest.skip(f"no small disk can be mounted here: {tried.stderr.strip()}")
    inside = mount + ' && exec "$0" "$@"'
    program.write_text(f'#!/bin/sh\nexec {shlex.join([*namespace, inside, library.python])} "$@"\n')
    program.chmod(0o755)
    return Library(library.name, str(program))


MB = 1 << 20
BIG_PHOTOS = make_zip(*(Entry(f"{number}.jpg", jpeg() + bytes(MB), stored=True) for number in range(3)))
SHRUNK_PHOTOS = make_zip(*((f"{number}.jpg", jpeg() + bytes(MB - 1000)) for number in range(3)))
BIG_ADAPTER = header({"diffusion_model.layers.0.attention.to_q.lora_A.weight": ("BF16", [1024, 1024], 2 * MB)})
BIG_ADAPTER += bytes(2 * MB)
ROOM_FOR_ONE = {"bytes free": MB}

SHORTAGES: dict[str, tuple[server.Reply, dict[str, Any], int, str]] = {
    "a download of a length that is said": (
        server.content(BIG_PHOTOS),
        {"spoiled": ROOM_FOR_ONE},
        errno.ENOSPC,
        rf"the download needs {len(BIG_PHOTOS)} bytes and \d{{6,7}} are free",
    ),
    "a download of a length that is not said": (
        server.without_length(BIG_PHOTOS),
        {"spoiled": ROOM_FOR_ONE},
        errno.ENOSPC,
        r"the disk is full \(\d+ bytes free\).*images\.zip",
    ),
    "photos that are larger than their zip": (
        server.content(SHRUNK_PHOTOS),
        {"spoiled": ROOM_FOR_ONE},
        errno.ENOSPC,
        rf"extracting the zip needs {3 * (len(jpeg()) + MB - 1000)} bytes and \d{{6,7}} are free",
    ),
    "captions": (
        server.content(FLAT_ZIP),
        {"spoiled": ROOM_FOR_ONE, "letters of the word": 600_000},
        errno.ENOSPC,
        r"the disk is full \(\d+ bytes free\).*b\.txt",
    ),
    "dataset.toml": (
        server.content(FLAT_ZIP),
        {"spoiled": ROOM_FOR_ONE, "letters of the toml": 2 * MB},
        errno.ENOSPC,
        r"the disk is full \(\d+ bytes free\).*dataset\.toml",
    ),
    "files": (
        server.content(FLAT_ZIP),
        {"spoiled": {"files free": 2}},
        errno.ENOSPC,
        r"the disk takes no more files \(all of its 100 inodes are in use\)",
    ),
    "the renamed adapter": (
        server.content(FLAT_ZIP),
        {"spoiled": ROOM_FOR_ONE, "launch": True},
        errno.ENOSPC,
        r"the renamed adapter needs 2097\d\d\d bytes and \d{6,7} are free",
    ),
    "anything, on a read-only disk": (
        server.content(FLAT_ZIP),
        {"spoiled": {"read-only": True}},
        errno.EROFS,
        r"Read-only file system.*<work>/disk/training",
    ),
}


@pytest.mark.parametrize("what", SHORTAGES)
def test_a_disk_without_room_is_named_and_the_next_run_has_it(bench: Bench, what: str) -> None:
    reply, extra, number, message = SHORTAGES[what]
    workspace = bench.workspace()
    workspace.url = workspace.server.on("/photos.zip", reply)
    workspace.extra = extra
    adapter_of_a_clone(False)(workspace)
    (workspace.models / "zimage_turbo_training_adapter_v2.safetensors").write_bytes(BIG_ADAPTER)
    result = workspace.run(on_a_small_disk(OURS, workspace), run_short_of_room).ok().result
    is_os_error, found_number, found_message = result["error"]
    assert is_os_error
    assert found_number == number
    assert re.search(message, found_message), found_message
    assert result["the old dataset is untouched"]
    if "launch" in extra:
        assert result["adapter_bytes"] > 2 * MB
        assert RENAMED in result["names"]
    else:
        assert "images/0.jpg" in result["names"] or "images/a.jpg" in result["names"]
        assert "images/old.jpg" not in result["names"]
    assert [name for name in result["names"] if name.startswith(".") or "part" in name or "zip" in name] == []


def test_a_full_disk_costs_the_original_the_old_dataset(bench: Bench) -> None:
    workspace = bench.workspace()
    workspace.serve(BIG_PHOTOS)
    workspace.extra = {"spoiled": ROOM_FOR_ONE}
    library = on_a_small_disk(bench.the_original(), workspace)
    assert not workspace.run(library, run_short_of_room).ok().result["the old dataset is untouched"]


def test_a_training_folder_that_is_a_file_is_named(ours: Faults) -> None:
    place = ours.new_folder()
    place.mkdir()
    (place / "training").write_text("a file")
    outcome = ours.prepare(place)
    assert outcome.error is not None
    assert "NotADirectoryError" in outcome.error["bases"]
    assert str(place / "training") in outcome.error["message"]
    assert tree(place) == {"training": b"a file"}


def test_a_photo_is_put_right_or_the_old_dataset_stays(ours: Faults) -> None:
    url = ours.server.on("/lying.zip", make_zip(("lying.jpg", jpeg(orientation=6)), "a.jpg"))
    place = ours.place()
    steps = ours.prepare(place, url=url).ok().steps
    new = dataset_of(tree(place / "training"))
    assert new["images/lying.jpg"] not in (b"", jpeg(orientation=6))
    first = next(number for number, step in enumerate(steps, 1) if "/right0" in step)
    last = next(number for number, step in enumerate(steps, 1) if "/.dataset-ready" in step)
    ends = [end for end in kills(steps) if first <= end.step < last]
    assert any(end.kind == CUT for end in ends)
    ends += [Fault(FAIL, end.step, errno.ENOSPC) for end in ends if end.kind == KILL]

    def check(end: Fault) -> None:
        place = ours.place()
        old = dataset_of(tree(place / "training"))
        outcome = ours.prepare(place, end, url)
        assert outcome.was_killed == (end.kind != FAIL)
        assert outcome.was_killed or outcome.error is not None
        assert is_of_one(tree(place / "training"), old, new)
        ours.prepare(place, url=url).ok()
        assert tree(place / "training") == new

    ours.hosts.each(check, ends)
