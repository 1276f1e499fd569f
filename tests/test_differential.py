"""Scenario by scenario: what the original does, ours does. Every difference that is wanted is a named rule here."""

import gzip
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
from harness import server
from harness.library import Bench, Run, Workspace
from harness.photos import Entry, jpeg, make_zip
from harness.scenario import Work
from harness.tuner import CONVERT, LATENTS, TEXT, TRAIN, install_accelerate_program

# ---- the rules: what may differ ---------------------------------------------------------------------------------


def from_the_launchers_flags_on(command: str | list[str] | None) -> Any:
    """Rule: the original runs the `accelerate` of PATH, ours the host interpreter's; the flags are the same."""
    if isinstance(command, list) and "--num_cpu_threads_per_process" in command:
        return command[command.index("--num_cpu_threads_per_process") :]
    if isinstance(command, str):
        return re.sub(r"^(\[train\] cmd=).*?(--num_cpu_threads_per_process)", r"\1\2", command)
    return command


def without_our_variables(env: dict[str, str]) -> dict[str, str]:
    """Rule: children of ours write unbuffered and in UTF-8, and find `musubi_tuner` in a bare clone."""
    ours = ("PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONPATH")
    return {name: value for name, value in env.items() if name not in ours}


def lines_not_said(theirs: list[tuple[str, str]], ours: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rule: new lines may be added; the original's stay as they are and in their order."""
    rest = iter(ours)
    return [line for line in theirs if line not in rest]


@dataclass(frozen=True)
class May:
    """What may differ in one scenario besides, each for a repair in the contract."""

    own_words: bool = False
    """The contract fixes the type of this error, not its text."""
    starts_alike: bool = False
    """The contract fixes how this message begins; and accelerate is not imported, so nothing caused its absence."""
    know_first: bool = False
    """What can be checked first is checked first: nothing was run, fetched or written when it fails."""
    keep_the_old_dataset: bool = False
    """The dataset is swapped in whole or not at all."""
    keep_quiet: bool = False
    """The URL is not logged as it was given."""
    ask_again: bool = False
    """A failed download is tried again."""


NOTHING = May()

# ---- the comparison ---------------------------------------------------------------------------------------------


def facts(error: dict[str, Any] | None, may: May) -> dict[str, Any] | None:
    if error is None:
        return None
    message = error["message"]
    if may.own_words or error["type"] == "CalledProcessError":  # whose text repeats the command
        message = None
    elif may.starts_alike:
        message = message.split(". ")[0].split("`. ")[0]
    return {
        "type": error["type"],
        "message": message,
        "cause": None if may.starts_alike else error["cause"],
        "returncode": error["returncode"],
        "cmd": from_the_launchers_flags_on(error["cmd"]),
        "requests.RequestException": error["is_request_exception"],
        "OSError": "OSError" in error["bases"],
    }


def log(run: Run, may: May = NOTHING) -> list[tuple[str, str]]:
    lines = [(level, from_the_launchers_flags_on(message)) for level, message in run.log]
    return [(level, re.sub(r"\(url=.*", "(url=", message)) for level, message in lines] if may.keep_quiet else lines


def said_to_the_server(run: Run) -> list[dict[str, str | None]]:
    names = ("authorization", "proxy-authorization", "cookie")
    return [{name: headers.get(name) for name in names} for headers in run.headers]


def calls(run: Run) -> list[dict[str, Any]]:
    return [{**call, "env": without_our_variables(call["env"])} for call in run.calls]


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (theirs[name], ours[name]) for name in theirs if theirs[name] != ours[name]}


def compare(theirs: Run, ours: Run, may: May) -> None:
    assert facts(ours.error, may) == facts(theirs.error, may), (ours.error or theirs.error or {}).get("traceback")
    assert ours.result == theirs.result
    assert ours.threads <= theirs.threads  # the caller's own
    if may.know_first:
        assert ours.calls == []
        assert ours.requests == []
        return
    assert lines_not_said(log(theirs, may), log(ours, may)) == [], log(ours)
    said = set(log(theirs))
    assert [line for line in log(ours) if line not in said and line[0] not in ("INFO", "WARNING")] == []
    assert [call["step"] for call in ours.calls] == [call["step"] for call in theirs.calls]
    assert [differing(*pair) for pair in zip(calls(theirs), calls(ours), strict=True)] == [{}] * len(ours.calls)
    if may.ask_again:
        assert set(ours.requests) == set(theirs.requests)
    else:
        assert ours.requests == theirs.requests
        assert said_to_the_server(ours) == said_to_the_server(theirs)
    if not may.keep_the_old_dataset:
        added = ("/photos.json", "/events.jsonl", "/run.json")
        assert {name: what for name, what in ours.files.items() if not name.endswith(added)} == theirs.files


@dataclass(frozen=True)
class Case:
    run: Callable[[Work], Any]
    arrange: Callable[[Workspace], Any] = lambda _: None
    may: May = NOTHING
    name: str = field(default="")

    @property
    def id(self) -> str:
        return self.name or self.run.__name__


def cases(cases: Iterable[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases])


def check(bench: Bench, case: Case) -> tuple[Run, Run]:
    def arrange(workspace: Workspace) -> None:
        # The original needs an accelerate on PATH: its way without one cannot work.
        marker = workspace.root / "accelerate-of-path-ran"
        install_accelerate_program(workspace.root / "bin", workspace.python, marker)
        workspace.env["PATH"] = f"{workspace.root}/bin:/usr/bin:/bin"
        case.arrange(workspace)

    theirs, ours = bench.both(case.run, arrange)
    compare(theirs, ours, case.may)
    return theirs, ours


# ---- arrangements -----------------------------------------------------------------------------------------------


def zipped(*entries: Any) -> Callable[[Workspace], None]:
    return lambda workspace: workspace.serve(make_zip(*entries))


def served(*replies: Any) -> Callable[[Workspace], None]:
    def arrange(workspace: Workspace) -> None:
        workspace.url = workspace.server.on("/photos.zip", *replies)

    return arrange


def without(*names: str) -> Callable[[Workspace], None]:
    def arrange(workspace: Workspace) -> None:
        for name in names:
            (workspace.root / name).unlink()

    return arrange


def does(script: str, *actions: list[Any]) -> Callable[[Workspace], None]:
    return lambda workspace: workspace.tuner.does(script, *actions)


def toml(text: str) -> Callable[[Workspace], None]:
    def arrange(workspace: Workspace) -> None:
        workspace.toml = text.replace("{training}", str(workspace.training))

    return arrange


def proxied(workspace: Workspace) -> None:
    workspace.env["http_proxy"] = workspace.server.base
    workspace.url = "http://photos.invalid/photos.zip"


def redirected(workspace: Workspace) -> None:
    workspace.server.on("/moved", server.redirect("/photos.zip", 307))
    workspace.url = workspace.server.on("/old", server.redirect(workspace.server.url("/moved"), 301))


def named_with_blanks(workspace: Workspace) -> None:
    replies = workspace.server._replies["/photos.zip"]
    workspace.server.on("/my%20photos%C3%A9.zip", *replies)
    workspace.url = workspace.server.url("/my photosé.zip")


def accelerate_missing(workspace: Workspace) -> None:
    del workspace.env["PYTHONPATH"]


def nothing_installed(workspace: Workspace) -> None:
    accelerate_missing(workspace)
    without(VAE, DIT, f"musubi/{TRAIN}", f"musubi/{LATENTS}", f"musubi/{CONVERT}")(workspace)


def with_a_password(workspace: Workspace) -> None:
    workspace.url = workspace.url.replace("//", "//user:p%40ss@")


def by_netrc(workspace: Workspace) -> None:
    netrc = workspace.root / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password p@ss\n")
    workspace.env["NETRC"] = str(netrc)


def by_cookie(workspace: Workspace) -> None:
    """As download pages do it: the redirect sets what its target asks for."""
    photos = make_zip("a.jpg")

    def guarded(exchange: server.Exchange) -> None:
        (server.content(photos) if "pass=1" in exchange.headers.get("Cookie", "") else server.status(403))(exchange)

    workspace.server.on("/guarded.zip", guarded)
    start = server.status(302, Location="/guarded.zip", Set_Cookie="pass=1; Path=/")
    workspace.url = workspace.server.on("/start", start)


def past_the_proxy(workspace: Workspace) -> None:
    workspace.env |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}


def past_the_proxy_by_port(workspace: Workspace) -> None:
    workspace.url = workspace.url.replace("127.0.0.1", "localhost")
    workspace.env |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": workspace.url.split("/")[2], "NO_PROXY": "x.y"}


def past_every_proxy(workspace: Workspace) -> None:
    workspace.env |= {"http_proxy": "http://127.0.0.1:9", "no_proxy": "*"}


def ending_with(disks_and_counts: bytes) -> bytes:
    """A zip of two photos whose end record says this where two numbers of disks and two of entries are."""
    photos = make_zip("a.jpg", "b.jpg")
    end = photos.rindex(b"PK\5\6")
    return photos[: end + 4] + disks_and_counts + photos[end + 12 :]


def marked_as_a_folder() -> bytes:
    photo = bytearray(make_zip("a.jpg"))
    directory = photo.index(b"PK\1\2")
    photo[directory + 5] = 0  # made by DOS
    photo[directory + 38 : directory + 42] = b"\x10\0\0\0"
    return bytes(photo)


def proxied_in_capitals(workspace: Workspace) -> None:
    proxied(workspace)
    workspace.env["HTTP_PROXY"] = workspace.env.pop("http_proxy").replace("//", "//user:word@")


def among_other_files(workspace: Workspace) -> None:
    for name in ("samples/mine.txt", "images.zip", "notes.md"):
        path = workspace.training / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"from before")


def training_folder_is_a_link(workspace: Workspace) -> None:
    (workspace.root / "big-disk").mkdir()
    workspace.training.symlink_to(workspace.root / "big-disk")


# ---- the whole run ----------------------------------------------------------------------------------------------


def train(work: Work):
    return work.train()


def prepare_dataset(work: Work):
    return work.trainer()._prepare_dataset(work.toml, work.url, "word")


def train_without_pre_cache(work: Work):
    return work.train(use_pre_cache=False)


def train_without_conversion(work: Work):
    return work.train(convert_for_comfyui=False)


def train_with_every_option(work: Work):
    return work.train(
        use_pre_cache=True, convert_for_comfyui=True, output_name="my lora é", max_train_steps=7, seed=2**32 - 1
    )


def train_with_every_argument_named(work: Work):
    return work.trainer().train(
        dataset_toml_content=work.toml, images_zip_url=work.url, trigger_word="", seed=0, output_name="a.b"
    )


def train_twice(work: Work):
    trainer = work.trainer()
    return [work.train(trainer, output_name=name) for name in ("first", "second")]


def train_again(work: Work):
    """Outputs of a run before are in the way and are replaced."""
    trainer = work.trainer()
    return [work.train(trainer) for _ in range(2)]


def train_with_unicode_words(work: Work):
    return work.trainer().train(work.toml, work.url, "été 日本\nsecond line ")


def train_with_attributes_assigned_later(work: Work):
    import os

    trainer = work.trainer()
    os.makedirs(work.path("output", "other"))
    trainer.absolute_path_output = work.path("output", "other")
    trainer.absolute_path_training_folder = work.path("training", "other")
    trainer.models_for_training.DiT = "ae.safetensors"
    return work.train(trainer)


def train_on_duck_typed_models(work: Work):
    from types import SimpleNamespace

    names = {"ae": "qwen_3_4b.safetensors", "text_encoder": "ae.safetensors"}
    rest = {"DiT": "ae.safetensors", "base_weights": "ae.safetensors"}
    return work.train(work.trainer(models_for_training=SimpleNamespace(**names, **rest)))


def fork_while_it_prepares(work: Work):
    """The forked process outlives the run, as a pool's worker does; the folder is free for the next run."""
    import logging
    import os

    from musubitraining.main import logger

    read, write = os.pipe()
    children = []

    class Forks(logging.Handler):
        def emit(self, record):
            if "downloading" in record.getMessage() and not children:
                children.append(os.fork())
                if children[0] == 0:
                    os.close(write)
                    os.read(read, 1)
                    os._exit(0)

    logger.addHandler(Forks())
    trainer = work.trainer()
    results = [trainer._prepare_dataset(work.toml, work.url, "word") for _ in range(2)]
    os.close(write)
    os.waitpid(children[0], 0)
    return results


def train_in_a_worker_thread(work: Work):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work.train).result()


def train_with_another_interpreter(work: Work):
    import os
    import sys

    real, sys.executable = sys.executable, work.path("other-python")
    with open(sys.executable, "w") as program:
        program.write(f'#!/bin/sh\nexec {real} "$@"\n')
    os.chmod(sys.executable, 0o755)
    try:
        work.trainer()._pre_cache(dataset_toml_path=work.trainer()._prepare_dataset(work.toml, work.url, "x"))
    finally:
        sys.executable = real


@cases(
    [
        Case(train),
        Case(train, zipped(("a.jpg", b"fake"), ("b.jpeg", b"fake")), name="dummy photos"),
        Case(train, zipped("a.jpg", ("notes.md", b"x"), ("b.png", b"x"), "c.jpeg"), name="other files in the zip"),
        Case(prepare_dataset, zipped("a b.jpg", "é日.jpg", 'it\'s "x".jpg', "a,b;c.jpg"), name="names of photos"),
        Case(prepare_dataset, zipped("../up.jpg", "/root.jpg", "./here.jpg"), name="names that lead out of the folder"),
        Case(prepare_dataset, zipped(Entry("a.jpg", jpeg(), stored=True)), name="stored, not deflated"),
        Case(train, lambda workspace: workspace.old_dataset() and None, name="over an old dataset"),
        Case(train, lambda workspace: workspace.tuner.add_converter(by_flags=True), name="converter by flags"),
        Case(prepare_dataset, proxied, name="through a proxy"),
        Case(prepare_dataset, redirected, name="redirected"),
        Case(prepare_dataset, with_a_password, May(keep_quiet=True), name="a user and a password"),
        Case(prepare_dataset, by_netrc, May(keep_quiet=True), name="user and password from netrc"),
        Case(prepare_dataset, by_cookie, name="a cookie set by a redirect"),
        Case(prepare_dataset, past_the_proxy, name="past the proxy"),
        Case(prepare_dataset, proxied_in_capitals, name="through a proxy in capitals, with a password"),
        Case(
            prepare_dataset,
            lambda w: setattr(w, "url", f"  {w.url}"),
            May(keep_quiet=True),
            name="blanks before the URL",
        ),
        Case(prepare_dataset, among_other_files, name="among other files"),
        Case(prepare_dataset, training_folder_is_a_link, name="the training folder is a link"),
        Case(prepare_dataset, named_with_blanks, name="blanks in the URL"),
        Case(prepare_dataset, served(server.gzipped(make_zip("a.jpg"))), name="compressed by the server"),
        Case(prepare_dataset, served(server.chunked(make_zip("a.jpg"))), name="in chunks"),
        Case(prepare_dataset, served(server.without_length(make_zip("a.jpg"))), name="no length"),
        Case(
            prepare_dataset,
            served(server.content(gzip.compress(make_zip("a.jpg")) + b"\r\n", ranges=False, Content_Encoding="gzip")),
            name="compressed by the server, and more",
        ),
        *(
            Case(
                prepare_dataset,
                served(server.content(make_zip("a.jpg"), Content_Encoding=encoding)),
                name=f"encoding {encoding}",
            )
            for encoding in ("utf-8", "aws-chunked", "application/zip", "none")
        ),
        Case(prepare_dataset, served(server.status(206, make_zip("a.jpg"))), name="a part that is all of it"),
        Case(prepare_dataset, served(server.status(200, make_zip("a.jpg"), X="1\r\n 2")), name="a folded header"),
        Case(prepare_dataset, past_the_proxy_by_port, May(keep_quiet=True), name="past the proxy by port"),
        Case(prepare_dataset, past_every_proxy, name="past every proxy"),
        *(
            Case(prepare_dataset, served(ending_with(bytes(numbers))), name=f"the zip's end says {numbers}")
            for numbers in (
                [0, 0, 0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 1, 0, 1, 0],
                [0, 0, 0, 0, 5, 0, 5, 0],
                [1, 0, 1, 0, 2, 0, 2, 0],
            )
        ),
        Case(prepare_dataset, served(marked_as_a_folder()), name="a photo marked as a folder"),
        Case(
            prepare_dataset,
            toml('# été\r\n[[datasets]]\r\nimage_directory = "{training}/images"\r\n'),
            name="TOML as given",
        ),
        Case(train_without_pre_cache),
        Case(train_without_conversion),
        Case(train_with_every_option),
        Case(train_with_every_argument_named),
        Case(train_twice),
        Case(train_again),
        Case(train_with_unicode_words),
        Case(train_with_attributes_assigned_later),
        Case(train_on_duck_typed_models),
        Case(train_in_a_worker_thread),
        Case(fork_while_it_prepares),
        Case(train_with_another_interpreter),
    ]
)
def test_run(bench: Bench, case: Case) -> None:
    theirs, _ = check(bench, case)
    theirs.ok()


# ---- a method alone ---------------------------------------------------------------------------------------------


def prepare_dataset_by_name(work: Work):
    trainer = work.trainer()
    return trainer._prepare_dataset(dataset_toml_content=work.toml, images_zip_url=work.url, trigger_word="word")


def pre_cache(work: Work):
    with open(work.path("any.toml"), "w"):
        return work.trainer()._pre_cache(work.path("any.toml"))


def launch_training(work: Work):
    with open(work.path("any.toml"), "w"):
        return work.trainer()._launch_training(work.path("any.toml"))


def launch_training_with_options(work: Work):
    with open(work.path("any.toml"), "w"):
        return work.trainer()._launch_training(
            dataset_toml_path=work.path("any.toml"), output_name="n", max_train_steps=3, seed=4
        )


def convert(work: Work):
    with open(work.path("output", "lora.safetensors"), "w"):
        return work.trainer()._convert_for_comfyui(work.path("output", "lora.safetensors"))


def convert_any_name(work: Work):
    with open(work.path("output", "lora.ckpt"), "w"):
        return work.trainer()._convert_for_comfyui(model_path=work.path("output", "lora.ckpt"))


def validate(work: Work):
    return work.trainer()._validate_toml_str('b = 1\na = [1.5, true, "é"]\n[t]\nx = {y = "z"}\n')


def run_any_command(work: Work):
    return work.trainer()._run_cmd("a step", ["/bin/echo", "one  two", "%s"], cwd=work.path("models"))


def run_in_a_changed_environment(work: Work):
    import os
    import sys

    os.environ["HF_HOME"] = "/somewhere é"
    del os.environ["LANG"]
    os.umask(0o027)
    os.set_inheritable(os.open(__file__, os.O_RDONLY), True)
    work.trainer()._run_cmd("s", [sys.executable, work.path("musubi", "zimage_cache_latents.py")], cwd=work.root)


def run_with_positional_names(work: Work):
    return work.trainer()._run_cmd(step="s", cmd=["/bin/pwd"], cwd=work.path("models"))


@cases(
    [
        Case(prepare_dataset),
        Case(prepare_dataset_by_name),
        Case(pre_cache),
        Case(launch_training),
        Case(launch_training_with_options),
        Case(convert),
        Case(convert_any_name),
        Case(validate),
        Case(run_any_command),
        Case(run_with_positional_names),
        Case(run_in_a_changed_environment),
        Case(
            prepare_dataset,
            without("models/ae.safetensors", f"musubi/{TRAIN}", f"musubi/{LATENTS}"),
            name="prepare needs no weights and no scripts",
        ),
        Case(pre_cache, without(f"musubi/{TRAIN}", f"musubi/{CONVERT}"), name="pre_cache needs only its own scripts"),
        Case(launch_training, without(f"musubi/{LATENTS}", f"musubi/{CONVERT}"), name="training needs its own script"),
    ]
)
def test_method_alone(bench: Bench, case: Case) -> None:
    theirs, _ = check(bench, case)
    theirs.ok()


# ---- errors -----------------------------------------------------------------------------------------------------


def pre_cache_without_toml(work: Work):
    return work.trainer()._pre_cache(work.path("none.toml"))


def launch_training_without_toml(work: Work):
    return work.trainer()._launch_training(work.path("none.toml"))


def convert_nothing(work: Work):
    return work.trainer()._convert_for_comfyui(work.path("output", "none.safetensors"))


def validate_broken(work: Work):
    return work.trainer()._validate_toml_str("[[datasets]\n")


def prepare_broken_toml(work: Work):
    return work.trainer()._prepare_dataset("a = ", work.url, "x")


def run_failing_command(work: Work):
    return work.trainer()._run_cmd("s", ["/bin/sh", "-c", "echo before; exit 77"], cwd=work.root)


def run_killed_command(work: Work):
    return work.trainer()._run_cmd("s", ["/bin/sh", "-c", "kill -SEGV $$"], cwd=work.root)


def run_missing_program(work: Work):
    return work.trainer()._run_cmd("s", ["/no/such/program", "x"], cwd=work.root)


def run_in_missing_folder(work: Work):
    return work.trainer()._run_cmd("s", ["/bin/true"], cwd=work.path("none"))


VAE, TEXT_ENCODER = "models/ae.safetensors", "models/qwen_3_4b.safetensors"
DIT = "models/z_image_de_turbo_v1_bf16.safetensors"
ADAPTER = "models/zimage_turbo_training_adapter_v2.safetensors"
KNOWN_FIRST = May(know_first=True)
OWN_WORDS = May(own_words=True, keep_the_old_dataset=True)


@cases(
    [
        Case(pre_cache_without_toml),
        *(
            Case(pre_cache, without(name), name=f"pre_cache, no {name}")
            for name in (f"musubi/{LATENTS}", f"musubi/{TEXT}", VAE, TEXT_ENCODER)
        ),
        Case(launch_training_without_toml),
        *(
            Case(launch_training, without(name), name=f"launch_training, no {name}")
            for name in (f"musubi/{TRAIN}", VAE, TEXT_ENCODER, DIT, ADAPTER)
        ),
        Case(launch_training, accelerate_missing, May(starts_alike=True), name="launch_training, no accelerate"),
        Case(convert_nothing),
        Case(convert, without(f"musubi/{CONVERT}"), name="convert, no script"),
        Case(convert, does(CONVERT), name="convert, nothing written"),
        *(
            Case(train, without(name), KNOWN_FIRST, name=f"train, no {name}")
            for name in (
                f"musubi/{LATENTS}",
                f"musubi/{TEXT}",
                f"musubi/{TRAIN}",
                f"musubi/{CONVERT}",
                VAE,
                TEXT_ENCODER,
                DIT,
                ADAPTER,
            )
        ),
        Case(train_without_pre_cache, without(VAE), KNOWN_FIRST, name="train without pre-cache, no VAE"),
        Case(train, accelerate_missing, May(know_first=True, starts_alike=True), name="train, no accelerate"),
    ]
)
def test_missing(bench: Bench, case: Case) -> None:
    theirs, _ = check(bench, case)
    assert theirs.error is not None


@cases(
    [
        Case(validate_broken),
        Case(prepare_broken_toml),
        Case(train, toml("a = 1\na = 2\n"), name="train, broken TOML"),
        Case(
            prepare_dataset,
            zipped(("a.png", b"x"), ("b.txt", b"x")),
            May(True, True, False, True),
            name="no photo in the zip",
        ),
        Case(prepare_dataset, zipped(), May(starts_alike=True, keep_the_old_dataset=True), name="empty zip"),
        Case(prepare_dataset, served(b"this is no zip"), OWN_WORDS, name="not a zip"),
        Case(
            prepare_dataset,
            served(make_zip("a.jpg", "b.jpg")[:-30]),
            May(own_words=True, keep_the_old_dataset=True, ask_again=True),
            name="half a zip",
        ),
        Case(prepare_dataset, served(b""), OWN_WORDS, name="nothing at all"),
        *(
            Case(prepare_dataset, served(server.status(code)), OWN_WORDS, name=f"HTTP {code}")
            for code in (400, 401, 403, 404, 410)
        ),
        Case(
            train,
            served(server.status(503, Retry_After="0")),
            May(own_words=True, keep_the_old_dataset=True, ask_again=True),
            name="HTTP 503",
        ),
    ]
)
def test_dataset_that_cannot_be_had(bench: Bench, case: Case) -> None:
    theirs, _ = check(bench, case)
    assert theirs.error is not None


@cases(
    [
        Case(run_failing_command),
        Case(run_killed_command),
        Case(run_missing_program, may=May(own_words=True)),
        Case(run_in_missing_folder, may=May(own_words=True)),
        *(
            Case(train, does(script, ["say", "oh no\n"], ["exit", code]), name=f"{script} exits {code}")
            for script, code in ((LATENTS, 1), (TEXT, 2), (TRAIN, 255))
        ),
        *(
            Case(train, does(script, ["signal", number]), name=f"{script} killed by {number}")
            for script, number in ((LATENTS, 9), (TEXT, 15), (TRAIN, 9))
        ),
    ]
)
def test_failing_step(bench: Bench, case: Case) -> None:
    theirs, _ = check(bench, case)
    assert theirs.error is not None


# ---- output -----------------------------------------------------------------------------------------------------


def run_one_script(work: Work):
    import sys

    work.trainer()._run_cmd("step", [sys.executable, work.path("musubi", "zimage_cache_latents.py")], cwd=work.root)


@cases(
    [
        Case(run_one_script, does(LATENTS, *[["say", text] for text in texts]), name=name)
        for name, texts in {
            "carriage returns": ["  0%|  | 0/2\r 50%|# | 1/2\r100%|##| 2/2\nDone!\n"],
            "line ends of every kind": ["a\r\nb\nc\rd\r\re\n\nf\n"],
            "no line end at the end": ["first\nlast"],
            "carriage return at the end": ["first\rlast\r"],
            "carriage return and line feed apart": ["a\r", "\nb\n"],
            "a character in two pieces": ["\xc3", "\xa9 \xe6\x97", "\xa5\n"],
            "no line ends for Python's splitlines only": ["a\x0bb\x0cc\x1cd\x85\n".encode().decode("latin-1")],
            "blanks and nothing": ["  indented  \n\n\t\n \n"],
            "percent signs and braces": ["100% %s %(x)d {0} %\n"],
            "a NUL": ["a\0b\n"],
            "a long line": ["x" * 200_000 + "\nend\n"],
            "many lines": ["line\n" * 3000],
        }.items()
    ]
    + [
        Case(
            run_one_script,
            does(LATENTS, ["say", "out\n"], ["say_on_stderr", "err\n"], ["write"], ["say", "more\n"]),
            name="both streams in order",
        )
    ]
)
def test_output(bench: Bench, case: Case) -> None:
    theirs, _ = check(bench, case)
    theirs.ok()


# ---- construction -----------------------------------------------------------------------------------------------


def construct(work: Work):
    import os

    trainer = work.trainer(absolute_path_output=work.path("output", "deep", "er"))
    return [vars(trainer).keys() >= {"absolute_path_models"} or hasattr(trainer, "absolute_path_models")] + [
        os.path.exists(work.path(name)) for name in ("output/deep/er", "training")
    ]


def construct_by_position(work: Work):
    from musubitraining.main import MusubiTraining

    trainer = MusubiTraining(*work.arguments().values())
    names = [name for name in work.arguments() if name != "models_for_training"]
    return [[getattr(trainer, name) for name in names], repr(trainer.models_for_training)]


def construct_without_models(work: Work):
    return work.trainer(absolute_path_models=work.path("none"), absolute_path_musubi_tuner=work.path("none"))


def construct_without_tuner(work: Work):
    return work.trainer(absolute_path_musubi_tuner=work.path("none"), absolute_path_output=work.path("output", "new"))


def construct_wrongly(work: Work):
    from musubitraining.main import Models, MusubiTraining

    some = work.arguments()
    some.pop("absolute_path_output")
    return [
        work.attempt(call)["error"]["type"]
        for call in (
            lambda: MusubiTraining(),
            lambda: MusubiTraining(**some),
            lambda: MusubiTraining(**work.arguments(), more=1),
            lambda: MusubiTraining(*work.arguments().values(), 6),
            lambda: Models(1, 2, 3, 4, 5),
            lambda: Models(dit="x"),
            lambda: work.trainer().train(work.toml, work.url),
            lambda: work.trainer().train(work.toml, work.url, "x", True),
            lambda: work.trainer().train(work.toml, work.url, "x", steps=1),
            lambda: work.trainer()._run_cmd("s", ["/bin/true"], work.root),
            lambda: work.trainer()._launch_training("x", "name"),
        )
    ]


def configure_logging(work: Work):
    import logging

    root = logging.getLogger()
    before = len(root.handlers)
    work.trainer()
    work.trainer()
    logging.getLogger("another").info("shown")
    logging.getLogger("another").debug("not shown")
    return [before, len(root.handlers), root.level, root.handlers[0].formatter._fmt]


def leave_logging_alone(work: Work):
    import logging

    root = logging.getLogger()
    root.addHandler(logging.NullHandler())
    work.trainer()
    return [len(root.handlers), root.level]


@cases(
    [
        Case(construct),
        Case(construct_by_position),
        Case(construct_without_models),
        Case(construct_without_tuner),
        Case(construct_wrongly),
        Case(configure_logging),
        Case(leave_logging_alone),
    ]
)
def test_construction(bench: Bench, case: Case) -> None:
    check(bench, case)


def test_log_lines_on_the_terminal_look_the_same(bench: Bench) -> None:
    def shape(run: Run) -> list[str]:
        stamp = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")
        return [stamp.sub("<time> ", line) for line in run.output.splitlines()]

    theirs, ours = check(bench, Case(pre_cache))
    assert shape(theirs)
    assert lines_not_said(shape(theirs), shape(ours)) == []


# ---- subclasses and mocks ---------------------------------------------------------------------------------------


def subclass_with_its_own_init(work: Work):
    from musubitraining.main import MusubiTraining

    class Mine(MusubiTraining):
        def __init__(self, arguments, label, *, steps=3):
            super().__init__(**arguments)
            self.label = label
            self.steps = steps

    trainer = Mine(work.arguments(), "x", steps=5)
    return [trainer.label, work.train(trainer, max_train_steps=trainer.steps)]


def subclass_overriding_every_method(work: Work):
    from musubitraining.main import MusubiTraining

    seen = []

    class Mine(MusubiTraining):
        def _run_cmd(self, step, cmd, *, cwd):
            seen.append(["run", step])
            super()._run_cmd(step, cmd, cwd=cwd)

        def _validate_toml_str(self, toml_content):
            seen.append(["validate", toml_content == work.toml])
            return super()._validate_toml_str(toml_content)

        def _prepare_dataset(self, dataset_toml_content, images_zip_url, trigger_word):
            seen.append(["prepare", trigger_word])
            return super()._prepare_dataset(dataset_toml_content, images_zip_url, trigger_word)

        def _pre_cache(self, dataset_toml_path):
            seen.append(["cache", dataset_toml_path])
            return super()._pre_cache(dataset_toml_path)

        def _launch_training(self, dataset_toml_path, *, output_name="o", max_train_steps=1, seed=2):
            seen.append(["launch", output_name, max_train_steps, seed])
            return super()._launch_training(
                dataset_toml_path, output_name=output_name, max_train_steps=max_train_steps, seed=seed
            )

        def _convert_for_comfyui(self, model_path):
            seen.append(["convert", model_path])
            return super()._convert_for_comfyui(model_path)

        def train(self, *args, **kwargs):
            seen.append(["train", len(args), sorted(kwargs)])
            return super().train(*args, **kwargs)

    result = work.train(work.trainer(Mine), seed=9)
    return [result, seen]


def subclass_preparing_its_own_dataset(work: Work):
    """Whoever overrides the download gets no download; the returned path is passed on as it is."""
    import os

    from musubitraining.main import MusubiTraining

    class Mine(MusubiTraining):
        def _prepare_dataset(self, dataset_toml_content, images_zip_url, trigger_word):
            os.makedirs(self.absolute_path_training_folder)
            path = os.path.join(self.absolute_path_training_folder, "mine.toml")
            with open(path, "w") as file:
                file.write("# mine")
            return path

    return work.trainer(Mine).train("no toml [", "no url", "x")


def subclass_with_its_own_commands(work: Work):
    """As people's tests do: no process is started, the outputs are written by hand."""
    from musubitraining.main import MusubiTraining

    commands = []

    class Mine(MusubiTraining):
        def _run_cmd(self, step, cmd, *, cwd):
            commands.append([step, cmd[cmd.index("--num_cpu_threads_per_process") :] if step == "train" else cmd, cwd])
            if step == "train":
                path = f"{cmd[cmd.index('--output_dir') + 1]}/{cmd[cmd.index('--output_name') + 1]}.safetensors"
            elif step == "convert:comfyui":
                path = cmd[-1]
            else:
                return
            with open(path, "w") as file:
                file.write("made by hand")

    return [work.train(work.trainer(Mine)), commands]


def mock_every_step_on_the_class(work: Work):
    from unittest.mock import patch

    from musubitraining.main import MusubiTraining

    with (
        patch.object(MusubiTraining, "_prepare_dataset", return_value="/some.toml") as prepare,
        patch.object(MusubiTraining, "_pre_cache") as pre_cache,
        patch.object(MusubiTraining, "_launch_training", return_value="/some.safetensors") as launch,
        patch.object(MusubiTraining, "_convert_for_comfyui", return_value="/converted") as convert,
    ):
        result = work.train(output_name="n", max_train_steps=5, seed=6)
    shapes = [[list(mock.call_args.args), mock.call_args.kwargs] for mock in (prepare, pre_cache, launch, convert)]
    return [result, shapes]


def mock_every_step_on_the_instance(work: Work):
    from unittest.mock import patch

    trainer = work.trainer()
    with (
        patch.object(trainer, "_prepare_dataset", return_value="/some.toml") as prepare,
        patch.object(trainer, "_pre_cache") as pre_cache,
        patch.object(trainer, "_launch_training", return_value="/some.safetensors") as launch,
        patch.object(trainer, "_convert_for_comfyui") as convert,
    ):
        result = work.train(trainer, use_pre_cache=False, convert_for_comfyui=False)
    counts = [mock.call_count for mock in (prepare, pre_cache, launch, convert)]
    return [result, counts, sorted(name for name in vars(trainer) if name.startswith("_"))]


def mock_with_autospec(work: Work):
    from unittest.mock import patch

    from musubitraining.main import MusubiTraining

    with patch.object(MusubiTraining, "_run_cmd", autospec=True) as run:
        work.trainer()._pre_cache(__file__)
    return [[list(call.args[1:]), call.kwargs] for call in run.call_args_list]


def mock_the_commands_of_a_run(work: Work):
    from unittest.mock import patch

    trainer = work.trainer()

    def run(step, cmd, *, cwd):
        with open(cmd[-1] if step.startswith("convert") else work.path("output", "output_lora_model.safetensors"), "w"):
            pass

    with patch.object(trainer, "_run_cmd", side_effect=run) as mock:
        result = work.train(trainer)
    shapes = [[call.args[0], len(call.args), call.kwargs] for call in mock.call_args_list]
    return [result, shapes]


def mock_accelerate_and_the_commands(work: Work):
    """As the tests of people do who have no accelerate installed."""
    import sys
    from unittest.mock import MagicMock, patch

    sys.modules["accelerate"] = MagicMock()
    trainer = work.trainer()

    def run(step, cmd, *, cwd):
        with open(work.path("output", "output_lora_model.safetensors"), "w"):
            pass

    with patch.object(trainer, "_run_cmd", side_effect=run):
        return work.train(trainer, convert_for_comfyui=False)


def mock_steps_that_return_nothing(work: Work):
    from unittest.mock import patch

    from musubitraining.main import MusubiTraining

    with (
        patch.object(MusubiTraining, "_prepare_dataset", return_value=None) as prepare,
        patch.object(MusubiTraining, "_pre_cache", return_value=3) as pre_cache,
        patch.object(MusubiTraining, "_launch_training", return_value=None),
        patch.object(MusubiTraining, "_convert_for_comfyui", return_value=None) as convert,
    ):
        results = [work.train(), work.train(convert_for_comfyui=False)]
    return [results, prepare.call_count, pre_cache.call_args.kwargs, convert.call_args.kwargs]


def mock_the_commands_over_prepared_outputs(work: Work):
    """As people's tests do: the outputs are there beforehand, and no command is run."""
    from unittest.mock import patch

    for name in ("output_lora_model.safetensors", "output_lora_model_comfyui.safetensors"):
        with open(work.path("output", name), "w") as file:
            file.write("prepared")
    trainer = work.trainer()
    with patch.object(trainer, "_run_cmd"):
        return [work.train(trainer), work.train(trainer, convert_for_comfyui=False)]


def mock_the_validation(work: Work):
    from unittest.mock import patch

    trainer = work.trainer()
    with patch.object(trainer, "_validate_toml_str", side_effect=ValueError("not today")) as mock:
        outcome = work.attempt(lambda: trainer._prepare_dataset(work.toml, work.url, "x"))
    return [outcome["error"]["type"], outcome["error"]["message"], [list(mock.call_args.args) == [work.toml]]]


def mock_that_raises(work: Work):
    from unittest.mock import patch

    with patch.object(type(work.trainer()), "_pre_cache", side_effect=KeyError("mine")):
        return work.train()


@cases(
    [
        Case(subclass_with_its_own_init),
        Case(subclass_overriding_every_method),
        Case(subclass_preparing_its_own_dataset),
        Case(subclass_with_its_own_commands),
        Case(mock_every_step_on_the_class),
        Case(
            mock_every_step_on_the_class,
            nothing_installed,
            name="replaced steps need no weights, no scripts and no accelerate",
        ),
        Case(mock_accelerate_and_the_commands, accelerate_missing),
        Case(mock_steps_that_return_nothing),
        Case(mock_every_step_on_the_instance),
        Case(mock_with_autospec),
        Case(mock_the_commands_of_a_run),
        Case(mock_the_commands_over_prepared_outputs),
        Case(mock_the_validation),
        Case(mock_that_raises),
    ]
)
def test_subclasses_and_mocks(bench: Bench, case: Case) -> None:
    check(bench, case)


# ---- introspection ----------------------------------------------------------------------------------------------


def signatures(work: Work):
    import inspect

    from musubitraining.main import Models, MusubiTraining

    new = ("warm_start", "native_convert", "options", "launch_options", "dataset_options", "on_event", "progress")

    def shape(function):
        return [
            [parameter.name, parameter.kind.name, repr(parameter.default)]
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name not in ("self", *new)
        ]

    names = [name for name in vars(MusubiTraining) if inspect.isroutine(getattr(MusubiTraining, name))]
    methods = [name for name in names if name == "train" or (name.startswith("_") and not name.startswith("__"))]
    return {
        "MusubiTraining": shape(MusubiTraining),
        "Models": shape(Models),
        **{name: shape(getattr(MusubiTraining, name)) for name in sorted(methods)},
    }


def models(work: Work):
    import copy
    import dataclasses
    import pickle

    from musubitraining.main import Models

    one = Models(DiT="x")
    match one:
        case Models(a, b, DiT=c):
            matched = [a, b, c]
    return [
        [[field.name, str(field.type), field.default] for field in dataclasses.fields(Models)],
        dataclasses.asdict(one),
        vars(one),
        repr(one),
        [one == Models(), one == copy.copy(one), one == pickle.loads(pickle.dumps(one)), one == "x"],
        [Models.__module__, Models.__qualname__, list(Models.__match_args__), Models.__hash__ is None],
        repr(dataclasses.replace(one, ae="y")),
        matched,
    ]


@cases([Case(signatures), Case(models)])
def test_introspection(bench: Bench, case: Case) -> None:
    check(bench, case)
