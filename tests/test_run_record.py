"""The record of a run: what reads `run.json` and `events.jsonl`, and the figure of its loss."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from musubitraining import TrainingRun, loss_curve, run_events, run_fields, run_record
from musubitraining.run_events import Done, Failed, Progress, Started, StepFinished, StepStarted, Warned, line, parse
from musubitraining.run_record import Checkpoint, GpuReading, LossPoint, Output, RunError, RunSoFar, Sample

DEMO = Path(__file__).parent / "recorded/runs/demo"
DOCS = Path(__file__).parents[1] / "docs/run-record.md"
AT = datetime(2026, 11, 23, 14, 2, 11, 250_000, tzinfo=timezone.utc)

JUNK: list[Any] = [
    None, True, -1, 1.5, 10**400, -(10**400), 1e308, math.nan, math.inf, "", "x", "\0", "\ud800", [], [[]], {},
    {"x": {}}, [None], [1, 2, 3, 4, 5], [{"path": 3}], {"train": 3}, ["a"] * 50,
]  # fmt: skip


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A training folder with the record of a real run of the demonstration."""
    return shutil.copytree(DEMO, tmp_path / "training")


def of(*events: run_events.Event) -> TrainingRun:
    so_far = RunSoFar()
    for event in events:
        so_far.take(event)
    return so_far.run()


def write(folder: Path, record: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


# --- What a real run has left


def test_a_record_is_read(demo: Path) -> None:
    run = TrainingRun.load(demo)
    assert (run.outcome, run.trigger_word, run.output_name) == ("done", "zwxcat", "output_lora_model")
    assert [step.step for step in run.steps] == [
        "dataset", "precache:latents", "precache:text_encoder", "train", "convert:comfyui",
    ]  # fmt: skip
    assert all(step.seconds is not None and step.seconds >= 0 for step in run.steps)
    assert [point.step for point in run.loss] == list(range(1, 201))
    assert run.loss[0].average_loss > 2 * run.loss[-1].average_loss
    assert [output.kind for output in run.outputs] == ["lora", "comfyui"]
    assert [len(output.sha256 or "") for output in run.outputs] == [64, 64]
    assert len(run.photos) == 6
    assert run.photos[0].source == run.photos[0].file == "cat_eyes.jpg"
    assert run.commands["train"][:3] == ("python", "-m", "accelerate.commands.launch")
    assert run.started_at
    assert run.ended_at
    assert run.seconds == pytest.approx((run.ended_at - run.started_at).total_seconds(), abs=0.01)
    assert run.seconds_per_step
    assert 200 * run.seconds_per_step < run.seconds
    assert run.folder == demo


def test_the_events_alone_make_the_same_record(demo: Path) -> None:
    loaded = TrainingRun.load(demo)
    (demo / "run.json").unlink()
    attached = TrainingRun.attach(demo)
    assert attached == loaded
    assert attached.to_dict() == json.loads((DEMO / "run.json").read_text())


def test_a_record_may_be_named_itself(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)
    assert TrainingRun.load("run.json") == TrainingRun.load(demo)
    assert TrainingRun.load(Path("run.json")).folder == demo


def test_saved_and_loaded_it_is_the_same(demo: Path, tmp_path: Path) -> None:
    run = TrainingRun.load(demo)
    other = tmp_path / "other"
    other.mkdir()
    assert run.save(other) == other / "run.json"
    assert TrainingRun.load(other) == run
    assert os.listdir(other) == ["run.json"]
    with pytest.raises(ValueError, match="was not read from a folder"):
        replace(run, folder=None).save()


def test_what_cannot_be_saved_leaves_the_old_record(demo: Path) -> None:
    before = (demo / "run.json").read_bytes()
    run = replace(TrainingRun.load(demo), arguments={"callback": object()})
    with pytest.raises(TypeError):
        run.save()
    with pytest.raises(OSError, match=r"nowhere/\.run\.json"):
        TrainingRun.load(demo).save(demo / "nowhere")
    assert (demo / "run.json").read_bytes() == before
    assert sorted(os.listdir(demo)) == ["events.jsonl", "run.json"]


def test_a_saved_record_is_strict_json(tmp_path: Path) -> None:
    run = of(
        Started(at=AT, seconds=0.0, arguments={"a": [math.nan, {"b": math.inf}]}),
        Progress(step="train", done=1, average_loss=math.nan),
    )

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(run.save(tmp_path).read_text(), parse_constant=refuse)
    assert found["loss"] == [[1, None, None]]
    assert found["arguments"] == {"a": [None, {"b": None}]}
    assert math.isnan(TrainingRun.load(tmp_path).loss[0].average_loss)


# --- Events


EVERY_KIND = [
    Started(
        at=AT, seconds=0.0, version=1, versions={"torch": "2.9"}, arguments={"seed": 42}, options={"network_dim": 16},
        launch_options={}, dataset_options={"upright": True}, learning_rate=2e-4, folders={"training": "/t"},
    ),
    StepStarted(at=AT, seconds=1.0, step="train", argv=("python", "-é", "\n")),
    StepFinished(at=AT, seconds=2.5, step="dataset", duration=1.5, exit_code=-9, photos=({"file": "a.jpg"},)),
    Progress(at=AT, seconds=3.0, step="train", done=0, total=9, average_loss=0.0, rate=0.5, seconds_left=0.0),
    run_events.CheckpointSaved(at=AT, seconds=4.0, path="/o/a", step=0, bytes=0, sha256="00"),
    run_events.SampleWritten(at=AT, seconds=4.5, path="/o/s.png", step=3, epoch=1, prompt="a cat"),
    Warned(at=AT, seconds=5.0, message="[train] x"),
    run_events.GpuRead(at=AT, seconds=6.0, used_bytes=1, total_bytes=2, utilisation_percent=99.0),
    run_events.Retried(at=AT, seconds=7.0, what="download", attempt=2, wait=0.5, reason="503"),
    Failed(at=AT, seconds=8.0, outcome="cancelled", type="Cancelled", message="m", reason="r", step="train"),
    Done(at=AT, seconds=9.0, outputs=({"path": "/o/a", "bytes": 3},)),
]  # fmt: skip


@pytest.mark.parametrize("event", EVERY_KIND, ids=lambda event: type(event).__name__)
def test_an_event_is_a_line_and_a_line_an_event(event: run_events.Event) -> None:
    told = line(event)
    assert told.endswith("}\n")
    assert told.count("\n") == 1
    found = parse(told)
    # A zero is no less a value than another number.
    assert dataclasses.asdict(found) == dataclasses.asdict(event)  # type: ignore[call-overload]
    assert type(found) is type(event)


def test_every_kind_is_tried() -> None:
    assert {type(event) for event in EVERY_KIND} == set(run_events.KINDS.values())


def test_a_loss_that_is_no_number_is_not_a_missing_one() -> None:
    nan = parse('{"event": "progress", "step": "train", "done": 3, "average_loss": null}')
    none = parse('{"event": "progress", "step": "train", "done": 4}')
    assert isinstance(nan, Progress)
    assert isinstance(none, Progress)
    assert nan.average_loss is not None
    assert math.isnan(nan.average_loss)
    assert none.average_loss is None
    again = parse(line(nan))
    assert isinstance(again, Progress)
    assert again.average_loss is not None
    assert [point.step for point in of(nan, none).loss] == [3]


def test_events_are_told_apart_by_what_they_say() -> None:
    run = of(
        Started(at=AT, seconds=0.0, folders={"output": "/o"}),
        StepStarted(at=AT, seconds=1.0, step="precache:latents"),
        StepStarted(at=AT, seconds=1.5, step="precache:text_encoder"),
        StepFinished(at=AT, seconds=3.0, step="precache:text_encoder", exit_code=0),
        StepFinished(at=AT, seconds=4.0, step="precache:latents", duration=2.75, exit_code=1),
        StepFinished(at=AT, seconds=4.0, step="never begun"),
        # The bar is drawn with the loss of the last step first.
        Progress(seconds=5.0, step="train", done=2, average_loss=9.0),
        Progress(seconds=5.0, step="train", done=2, average_loss=1.5),
        Progress(seconds=4.5, step="train", done=1, average_loss=9.0),
        Progress(seconds=9.0, step="train", done=4, average_loss=1.0),
        run_events.GpuRead(seconds=9.0, used_bytes=7),
        run_events.GpuRead(used_bytes=7),
        run_events.CheckpointSaved(path="/a", step=2),
        run_events.CheckpointSaved(path="/a", step=4),
        run_events.SampleWritten(path="/s", step=4),
        Warned(message="w"),
        Failed(at=AT, seconds=10.0, type="E", message="m", reason="r", step="train"),
    )
    assert [(step.step, step.seconds, step.exit_code) for step in run.steps] == [
        ("precache:latents", 2.75, 1),
        ("precache:text_encoder", 1.5, 0),
    ]
    assert run.loss == (LossPoint(1, 9.0, 4.5), LossPoint(2, 1.5, 5.0), LossPoint(4, 1.0, 9.0))
    assert run.seconds_per_step == 1.5
    assert run.gpu == (GpuReading(9.0, 7),)
    assert run.checkpoints == (Checkpoint(path="/a", step=4),)
    assert run.samples == (Sample(path="/s", step=4),)
    assert (run.outcome, run.seconds, run.ended_at) == ("failed", 10.0, AT)
    assert run.error == RunError(type="E", message="m", reason="r", step="train")
    assert run.warnings == ("w",)
    assert run.folders.output == "/o"


def test_a_run_without_an_end_is_running() -> None:
    run = of(Started(at=AT, seconds=0.0), StepStarted(seconds=2.0, step="train"), Warned(message="no time"))
    assert (run.outcome, run.seconds, run.ended_at, run.steps[0].seconds) == ("running", 2.0, None, None)
    assert of(Started(), Failed(outcome="cancelled")).outcome == "cancelled"
    assert of(Started(), Done(outputs=({"path": "/a"}, {"kind": "lora"}))).outputs == (Output(path="/a"),)


def test_another_start_begins_another_run(demo: Path) -> None:
    with (demo / "events.jsonl").open("a") as file:
        file.write(line(Started(at=AT, seconds=0.0, arguments={"trigger_word": "dog"})))
    run = TrainingRun.attach(demo)
    assert (run.outcome, run.trigger_word, run.loss, run.outputs) == ("running", "dog", (), ())


def test_what_is_not_known_is_passed_over(demo: Path) -> None:
    lines = (demo / "events.jsonl").read_text().splitlines(keepends=True)
    strange = [
        '{"event": "danced", "step": "train"}\n', "\n", "[]\n", '"done"\n', "{}\n", '{"event": ["done"]}\n',
        '{"event": "progress", "step": "train"}\n', '{"event": "progress", "step": 1, "done": 3}\n',
        "{" * 100_000 + "\n", "[" * 100_000 + "\n", '{"event": "warning"}\n', "\udcff\n",
    ]  # fmt: skip
    known = [re.sub(r'^{"event": ', '{"mood": {"good": [1]}, "event": ', one) for one in lines]
    mixed = itertools.chain.from_iterable(zip(known, itertools.cycle(strange), strict=False))
    (demo / "events.jsonl").write_text("".join(mixed), encoding="utf-8", errors="surrogateescape")
    assert TrainingRun.attach(demo) == TrainingRun.load(demo)
    write(demo, json.loads((DEMO / "run.json").read_text()) | {"mood": "good", "weather": None})
    assert TrainingRun.load(demo) == TrainingRun.attach(demo)


def test_events_may_be_cut_anywhere(demo: Path) -> None:
    content = (DEMO / "events.jsonl").read_bytes()
    whole = list(run_events.read(DEMO / "events.jsonl"))
    for length in [*range(0, 3000, 7), *random.Random(6).sample(range(len(content)), 60)]:
        (demo / "events.jsonl").write_bytes(content[:length])
        found = list(run_events.read(demo / "events.jsonl"))
        assert found == whole[: len(found)]
        assert len(found) >= content[:length].count(b"\n")
        assert TrainingRun.attach(demo).outcome == ("done" if len(found) == len(whole) else "running")


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_any_value_may_be_anything(tmp_path: Path, junk: Any) -> None:
    record = json.loads((DEMO / "run.json").read_text())
    for member in record.keys() - {"version"}:
        run = TrainingRun.load(write(tmp_path, record | {member: junk}))
        run.save()
        assert TrainingRun.load(tmp_path).to_dict() == run.to_dict()
        assert run._repr_html_()
    for member in ("photos", "steps", "outputs", "checkpoints", "samples", "loss", "gpu"):
        run = TrainingRun.load(write(tmp_path, record | {member: [junk, *record[member]]}))
        assert run._repr_html_()
    for number, name in enumerate(record["photos"][0]):
        photos = [record["photos"][0] | {name: junk}]
        found = TrainingRun.load(write(tmp_path, record | {"photos": photos})).photos
        assert len(found) in ((0, 1) if number == 0 else (1,))
    event = json.loads((DEMO / "events.jsonl").read_text().splitlines()[0])
    for member in event.keys() - {"event"}:
        assert isinstance(parse(json.dumps(event | {member: junk})), Started)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("2026-11-23T14:02:11Z", AT.replace(microsecond=0)),
        ("2026-11-23T14:02:11.25Z", AT),
        ("2026-11-23T14:02:11.250000999Z", AT),
        ("2026-11-23 15:02:11.25+01:00", AT),
        ("2026-11-23T14:02:11.25", AT),
        ("2026-11-23T09:32:11.25-0430", AT),
        ("2026-13-23T14:02:11Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("2026-11-23T14:02:11+99:99", None),
        ("yesterday", None),
        (1700000000, None),
    ],
)
def test_times_are_read(told: Any, expected: datetime | None) -> None:
    assert run_fields.time(told) == expected


# --- A run that goes on


def test_a_file_is_read_while_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (DEMO / "events.jsonl").read_bytes()
    pieces = iter([content[at : at + 97] for at in range(0, len(content), 97)])

    def grow(seconds: float) -> None:
        """Whenever the reader has all of it and waits, a piece more, which ends anywhere in a line."""
        with (tmp_path / "events.jsonl").open("ab") as file:
            file.write(next(pieces))

    monkeypatch.setattr("time.sleep", grow)
    # It is not there yet when somebody begins to follow it.
    following = replace(of(), folder=tmp_path).events(follow=True)
    assert list(following) == list(run_events.read(DEMO / "events.jsonl"))
    assert list(pieces) == []


def test_following_ends_with_the_run(demo: Path) -> None:
    with (demo / "events.jsonl").open("a") as file:
        file.write(line(Warned(message="behind the end")))
    run = TrainingRun.load(demo)
    assert isinstance(list(run.events(follow=True))[-1], Done)
    assert isinstance(list(run.events())[-1], Warned)


def test_following_ends_where_another_run_begins(demo: Path, tmp_path: Path) -> None:
    file = demo / "events.jsonl"
    unfinished = file.read_text().splitlines(keepends=True)[:-1]
    file.write_text("".join(unfinished))
    for change in ("replaced", "emptied", "removed"):
        file.write_text("".join(unfinished))
        following = TrainingRun.attach(demo).events(follow=True)
        seen = list(itertools.islice(following, len(unfinished)))
        assert len(seen) == len(unfinished)
        if change == "replaced":
            (tmp_path / "new").write_text("".join(unfinished))
            os.replace(tmp_path / "new", file)
        elif change == "emptied":
            file.write_text("")
        else:
            file.unlink()
        assert list(following) == []


def test_following_ends_after_a_silence(demo: Path) -> None:
    file = demo / "events.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    run = TrainingRun.attach(demo)
    assert len(list(run.events(follow=True, timeout=0.0))) == len(list(run_events.read(DEMO / "events.jsonl"))) - 1
    file.unlink()
    assert list(run.events(follow=True, timeout=0.0)) == []
    with pytest.raises(FileNotFoundError, match=r"events\.jsonl not found"):
        list(run.events())


def test_another_process_is_followed(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys, time
from musubitraining.run_events import *
file = open({str(tmp_path / "events.jsonl")!r}, "w", buffering=1)
file.write(line(Started(seconds=0.0)))
sys.stdin.readline()
file.write(line(Progress(seconds=1.0, step="train", done=1, average_loss=0.5)))
sys.stdin.readline()
file.write(line(Done(seconds=2.0)))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin
        following = replace(of(), folder=tmp_path).events(follow=True, timeout=60)
        kinds = [type(next(following))]
        # Each is told before the next is written.
        for _ in range(2):
            process.stdin.write("go on\n")
            process.stdin.flush()
            kinds.append(type(next(following)))
    assert kinds == [Started, Progress, Done]
    assert list(following) == []


# --- What cannot be read


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json not found.*TrainingRun\.attach"):
        TrainingRun.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere not found"):
        TrainingRun.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"events\.jsonl not found"):
        TrainingRun.attach(tmp_path)
    content = (DEMO / "run.json").read_bytes()
    for bad in (b"", content[:-5], content[:1000], b"\xff\xfe", b"[" * 100_000, b"1" * 5000):
        (tmp_path / "run.json").write_bytes(bad)
        with pytest.raises(ValueError, match=r"run\.json cannot be read: expected JSON.*TrainingRun\.attach"):
            TrainingRun.load(tmp_path)
    for other in ([], "x", None, 7, {}, {"version": "1"}, {"version": True}):
        with pytest.raises(ValueError, match="is no record of a run"):
            TrainingRun.load(write(tmp_path, other))
    with pytest.raises(ValueError, match="is of version 2, and this musubitraining reads up to 1"):
        TrainingRun.load(write(tmp_path, {"version": 2}))


def test_an_empty_record_is_one(tmp_path: Path) -> None:
    run = TrainingRun.load(write(tmp_path, {"version": 1}))
    assert replace(run, folder=None) == TrainingRun() == of()
    (tmp_path / "events.jsonl").write_text("")
    assert TrainingRun.attach(tmp_path) == TrainingRun()


# --- What it says of itself


def test_it_says_in_a_line_what_it_is(demo: Path) -> None:
    told = repr(TrainingRun.load(demo))
    assert re.fullmatch(r"<TrainingRun 'output_lora_model', done, [\d.]+ s, step 200, loss 0\.\d+>", told)
    assert repr(TrainingRun()) == "<TrainingRun running>"


def test_it_shows_itself_in_a_notebook(demo: Path) -> None:
    card = TrainingRun.load(demo)._repr_html_()
    assert "zwxcat" in card
    assert "Done" in card
    assert card.count("<svg") == 1
    assert "output_lora_model_comfyui.safetensors" in card
    assert "<script" not in card
    assert len(card) < 10_000


def test_the_card_is_escaped_and_short() -> None:
    evil = "<img src=x onerror=alert(1)>\"'&"
    run = TrainingRun(
        outcome="failed",
        arguments={"trigger_word": evil},
        error=RunError(type=evil, message=evil * 10_000, reason=evil),
        outputs=tuple(Output(path=f"{evil}{number}") for number in range(1000)),
        loss=tuple(LossPoint(step, math.nan if step % 7 else 1.0) for step in range(100_000)),
        versions=replace(TrainingRun().versions, gpu=evil),
    )
    card = run._repr_html_()
    assert "<img" not in card
    assert "&lt;img" in card
    assert len(card) < 50_000


def test_the_record_costs_nothing_that_does_not_use_it() -> None:
    code = """
import sys
import musubitraining.main
from musubitraining import Models, logger
assert not [name for name in sys.modules if name.startswith("musubitraining.run_")]
from musubitraining import TrainingRun
assert TrainingRun is musubitraining.run_record.TrainingRun
print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("PIL", "numpy", "matplotlib")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == ([], "")


def test_the_documentation_names_every_member() -> None:
    told = DOCS.read_text("utf-8")
    kinds = [one for one in vars(run_record).values() if isinstance(one, type) and dataclasses.is_dataclass(one)]
    for kind in [*kinds, *run_events.KINDS.values()]:
        described = kind.__doc__ or ""
        for one in dataclasses.fields(kind):
            if "read" not in one.metadata:
                continue
            assert f"`{one.metadata['key'] or one.name}`" in told, one.name
            inherited = one.name in ("at", "seconds") and issubclass(kind, run_events.Event)
            assert inherited or re.search(rf"^ +{one.name}: ", described, re.MULTILINE), (kind, one.name)
    for name in run_events.KINDS:
        assert f"\n| `{name}` | " in told


# --- The curve


@pytest.mark.parametrize("number", [0, 1, 2, 3, 999, 1000, 1001, 100_000])
def test_a_curve_is_thinned_without_losing_its_shape(number: int) -> None:
    chance = random.Random(number)
    values = [chance.gauss(1, 0.1) for _ in range(number)]
    for place in range(0, number, 1777):
        values[place] = math.nan
    if number > 3:
        values[number // 2] = 50.0
        values[number // 3] = -50.0
    places = loss_curve.thinned(values, 1000)
    assert len(places) <= min(number, 1000)
    assert places == sorted(set(places))
    if number > 3:
        assert {number // 2, number // 3, number - 1, 0} <= set(places)
        assert any(math.isnan(values[place]) for place in places)


def test_a_curve_is_smoothed() -> None:
    assert loss_curve.smoothed([]) == []
    assert loss_curve.smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    noisy = [1 + (-1) ** place * 0.5 for place in range(400)]
    assert max(abs(value - 1) for value in loss_curve.smoothed(noisy)[40:]) < 0.1
    gaps = loss_curve.smoothed([1.0, math.nan, 1.0, math.inf, 1.0])
    assert [math.isnan(value) for value in gaps] == [False, True, False, True, False]
    assert gaps[-1] == pytest.approx(1.0)


# --- The figure


@pytest.fixture
def matplotlib() -> Any:
    return pytest.importorskip("matplotlib")


def test_the_figure_shows_the_loss(demo: Path, matplotlib: Any) -> None:
    del matplotlib
    run = TrainingRun.load(demo)
    figure = run.plot()
    (axes,) = figure.axes
    raw, smooth, checkpoints = axes.get_lines()
    assert list(raw.get_xdata()) == [point.step for point in run.loss]
    assert list(raw.get_ydata()) == [point.average_loss for point in run.loss]
    assert list(smooth.get_ydata()) == loss_curve.smoothed([point.average_loss for point in run.loss])
    assert list(checkpoints.get_xdata()) == [200]
    assert axes.get_xlabel() == "training step"
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_the_figure_of_any_run_can_be_drawn(tmp_path: Path, matplotlib: Any) -> None:
    del matplotlib
    odd = [math.nan, math.inf, 1e300, -1.0, 0.0]
    for loss in ([], [math.nan], odd, [0.5] * 3):
        points = tuple(LossPoint(step, value) for step, value in enumerate(loss))
        samples = (Sample(path="a", step=2), Sample(path="b"))
        TrainingRun(loss=points, samples=samples).plot().savefig(tmp_path / "figure.png")


def test_the_figure_leaves_pyplot_alone(demo: Path, matplotlib: Any) -> None:
    del matplotlib
    code = f"""
import sys
from musubitraining import TrainingRun
TrainingRun.load({str(demo)!r}).plot()._repr_png_()
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_it_says_what_to_install(demo: Path) -> None:
    code = f"""
import sys
sys.modules["matplotlib"] = None
from musubitraining import TrainingRun
run = TrainingRun.load({str(demo)!r})
try:
    run.plot()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'plot() needs matplotlib: pip install "TechTrash_MusubiTraining[plot]"\n'
