"""The way from the URL to the zip: servers that do everything wrong, and what is said about it."""

import base64
import copy
import errno
import logging
import os
import pickle
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import BadZipFile

import pytest
import requests
from harness import server
from harness.library import OURS, Bench, Library, Workspace
from harness.photos import HTML, Entry, jpeg, make_zip
from harness.scenario import Work
from harness.server import Reply, Request, Server, serving
from musubitraining import DatasetLimits, DownloadError, MusubiTraining

SECRET = "s3cr3t"


def photo(seed: int) -> bytes:
    """Of a size that takes several reads, and that nothing can be left out of unnoticed."""
    return jpeg() + random.Random(seed).randbytes(300_000)


PHOTO, CHANGED_PHOTO = photo(1), photo(2)
ZIP, CHANGED_ZIP = (make_zip(Entry("a.jpg", data, stored=True)) for data in (PHOTO, CHANGED_PHOTO))
SIZE = len(ZIP)
HALF = SIZE // 2
ONE, TWO = '"one"', '"two"'
NOON = "Tue, 02 Jan 2024 12:00:00 GMT"
A_SECOND_LATER = "Tue, 02 Jan 2024 12:00:01 GMT"
THE_DAY_BEFORE = "Mon, 01 Jan 2024 12:00:00 GMT"


@dataclass
class Outcome:
    """What came of `_prepare_dataset`."""

    error: BaseException | None
    records: list[logging.LogRecord]
    requests: list[Request]
    photos: dict[str, bytes]

    @property
    def log(self) -> str:
        return "\n".join(record.getMessage() for record in self.records)

    @property
    def pauses(self) -> list[float]:
        return [float(seconds) for seconds in re.findall(r"trying again in ([\d.]+) s", self.log)]

    def ok(self, photo: bytes = PHOTO) -> "Outcome":
        if self.error is not None:
            raise self.error
        assert self.photos == {"a.jpg": photo}
        return self

    def failed(self, kind: type[BaseException], *words: str) -> Any:
        assert isinstance(self.error, kind), self.error
        for word in words:
            assert word in str(self.error)
        return self.error


class Records(logging.Handler):
    """Those of the thread that has made it."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.records.append(record)


def prepare(workspace: Workspace, limits: Any = None) -> Outcome:
    logger = logging.getLogger("musubitraining")
    logger.setLevel(logging.INFO)
    said = Records()
    logger.addHandler(said)
    trainer = MusubiTraining(**Work(str(workspace.root), workspace.url, workspace.toml, {}).arguments())
    if limits is not None:
        trainer.dataset_limits = limits
    error = None
    try:
        trainer._prepare_dataset(workspace.toml, workspace.url, "word")
    except Exception as raised:
        error = raised
    finally:
        logger.removeHandler(said)
    photos = {path.name: path.read_bytes() for path in workspace.images.glob("*.jpg")}
    return Outcome(error, said.records, list(workspace.server.requests), photos)


def everything_said(outcome: Outcome) -> str:
    """By the error, whatever hangs on it, and every log record."""
    said = [repr(record.__dict__) for record in outcome.records]
    said += [logging.Formatter().format(record) for record in outcome.records]
    error = outcome.error
    if error is not None:
        said += ["".join(traceback.format_exception(error)), repr(pickle.dumps(error)), repr(copy.copy(error))]
        response = getattr(error, "response", None)
        said.append(repr(response and {**response.__dict__, "headers": dict(response.headers)}))
    while error is not None:
        said += [str(error), repr(error), repr(error.args), repr(error.__dict__)]
        error = error.__cause__ or error.__context__
    return "\n".join(said)


def asked_to_go_on(request: Request, start: int, validator: str) -> bool:
    return (request.headers.get("range"), request.headers.get("if-range")) == (f"bytes={start}-", validator)


# ---- one fault after the other ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What a server answers in turn, with the last answer for ever, and how often it is asked."""

    name: str
    replies: tuple[Reply | bytes, ...]
    requests: int = 2
    photo: bytes = PHOTO
    """That there is in the end."""
    holds: Callable[[Outcome], Any] = lambda _: None


def resumes_at_half(outcome: Outcome) -> None:
    assert asked_to_go_on(outcome.requests[1], HALF, ONE)


def resumes_by_date(outcome: Outcome) -> None:
    assert asked_to_go_on(outcome.requests[1], HALF, THE_DAY_BEFORE)


def starts_over(outcome: Outcome) -> None:
    assert "range" not in outcome.requests[-1].headers


def waits_a_second(outcome: Outcome) -> None:
    assert outcome.pauses == [1.0]


def does_not_wait(outcome: Outcome) -> None:
    assert outcome.pauses == [0.0]


def encoded(data: bytes, encoding: str, window_bits: int, *, cut: int | None = None) -> Reply:
    packer = zlib.compressobj(wbits=window_bits)
    packed = packer.compress(data) + packer.flush()
    return server.raw(server.head(len(packed), Content_Encoding=encoding) + packed[:cut])


def cut(**headers: str) -> Reply:
    return server.raw(server.head(SIZE, **headers) + ZIP[:HALF])


def busy(code: int, **headers: str) -> Reply:
    return server.status(code, b"later", **({"Retry_After": "0"} | headers))


GZIP, ZLIB, BARE = 31, 15, -15
CHUNKED = server.head(Transfer_Encoding="chunked")
WHOLE = server.content(ZIP, etag=ONE)
CUT = cut(ETag=ONE)
DEFLATED = make_zip(("a.jpg", PHOTO))
DEFLATED_CUT = server.raw(server.head(len(DEFLATED), ETag=ONE) + DEFLATED[:HALF])
OTHERS = make_zip(*(Entry(f"{number}.jpg", CHANGED_PHOTO, stored=number > 1) for number in range(4)))


SURVIVED = [
    Case("nothing is wrong", (ZIP,), 1),
    Case("HTTP/1.0", (server.raw(b"HTTP/1.0 200 OK\r\n\r\n" + ZIP),), 1),
    Case("early hints", (server.raw(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + server.head(SIZE) + ZIP),), 1),
    Case("its length is not said", (server.without_length(ZIP),), 1),
    Case("chunked", (server.chunked(ZIP),), 1),
    # Connections
    Case("closed before the answer", (server.raw(b""), ZIP)),
    Case("closed in the head", (server.raw(server.head(SIZE)[:20]), ZIP)),
    Case("closed after the head", (server.raw(server.head(SIZE)), ZIP)),
    Case("reset before the answer", (server.reset(), ZIP)),
    Case("reset in the head", (server.reset(server.head(SIZE)[:20]), ZIP)),
    Case("reset in the body", (server.reset(server.head(SIZE) + ZIP[:HALF]), ZIP)),
    Case("no HTTP", (server.raw(b"220 mail.example ESMTP\r\n"), ZIP)),
    # Lengths
    Case("shorter than promised", (cut(), ZIP), holds=starts_over),
    Case("longer than promised", (server.raw(server.head(SIZE - 30) + ZIP), ZIP), holds=starts_over),
    Case("much longer than promised", (server.raw(server.head(HALF) + ZIP), ZIP), holds=starts_over),
    Case("cut, its length not said", (server.without_length(ZIP[:HALF]), ZIP)),
    Case("cut by what is before the server", (server.chunked(ZIP[:HALF]), ZIP)),
    Case("more behind a whole zip", (server.raw(server.head(SIZE) + ZIP + b"and more"),), 1),
    Case("chunks cut short", (server.chunked(ZIP[:HALF], last=False), ZIP)),
    Case("cut within a chunk", (server.raw(CHUNKED + b"8000\r\n" + ZIP[:1000]), ZIP)),
    Case("chunks reset", (server.reset(CHUNKED + b"3e8\r\n" + ZIP[:1000] + b"\r\n"), ZIP)),
    Case("a chunk whose length is none", (server.raw(CHUNKED + b"zz\r\n" + ZIP), ZIP)),
    # Going on
    Case("resumed", (CUT, WHOLE), holds=resumes_at_half),
    Case("resumed in a deflated photo", (DEFLATED_CUT, server.content(DEFLATED, etag=ONE)), holds=resumes_at_half),
    Case(
        "another zip, after photos of the first", (server.raw(server.head(len(OTHERS), ETag=ONE) + OTHERS[:-HALF]), ZIP)
    ),
    Case("reset and resumed", (server.reset(server.head(SIZE, ETag=ONE) + ZIP[:HALF]), WHOLE)),
    Case(
        "resumed by the date",
        (cut(Last_Modified=THE_DAY_BEFORE, Date=NOON), server.part(ZIP, HALF)),
        holds=resumes_by_date,
    ),
    Case("too fresh to resume by the date", (cut(Last_Modified=NOON, Date=NOON), ZIP), holds=starts_over),
    Case("a weak ETag", (cut(ETag='W/"one"'), ZIP), holds=starts_over),
    Case("resumed after a busy server", (CUT, busy(503), WHOLE), 3),
    Case("resumed with less than the rest", (CUT, server.part(ZIP[: HALF + 9], HALF, total=SIZE), WHOLE), 3),
    Case("encoded, cut and resumed", (encoded(ZIP, "gzip", GZIP, cut=HALF), encoded(ZIP, "gzip", GZIP))),
    # Never two versions in one
    Case("changed: 200 to a Range", (CUT, CHANGED_ZIP), photo=CHANGED_PHOTO, holds=resumes_at_half),
    Case("200 to a Range", (CUT, server.content(ZIP, ranges=False)), holds=resumes_at_half),
    Case("changed: If-Range is heard", (CUT, server.content(CHANGED_ZIP, etag=TWO)), photo=CHANGED_PHOTO),
    Case(
        "changed: If-Range is not heard",
        (CUT, server.part(CHANGED_ZIP, HALF, ETag=TWO), CHANGED_ZIP),
        3,
        CHANGED_PHOTO,
        starts_over,
    ),
    Case(
        "changed: If-Range is not heard, by the date",
        (
            cut(Last_Modified=THE_DAY_BEFORE, Date=NOON),
            server.part(CHANGED_ZIP, HALF, Last_Modified=NOON),
            CHANGED_ZIP,
        ),
        3,
        CHANGED_PHOTO,
        starts_over,
    ),
    Case("another length", (CUT, server.part(ZIP, HALF, total=SIZE + 1), ZIP), 3, holds=starts_over),
    Case("another place", (CUT, server.part(ZIP, HALF - 5), ZIP), 3, holds=starts_over),
    Case("the right place, but not its bytes' length", (CUT, server.part(ZIP + b"more", HALF, total=SIZE), ZIP), 3),
    Case("no Content-Range", (CUT, server.status(206, ZIP[HALF:]), ZIP), 3, holds=starts_over),
    Case("an unreadable Content-Range", (CUT, server.status(206, b"x", Content_Range="x"), ZIP), 3),
    Case("416", (CUT, server.status(416), ZIP), 3, holds=starts_over),
    Case("a part unasked for", (server.part(ZIP, HALF), ZIP), holds=starts_over),
    # Statuses
    *(Case(f"HTTP {code}", (busy(code), ZIP)) for code in (408, 425, 429, 500, 502, 503, 504, 520, 599)),
    Case("HTTP 503 without a word", (server.status(503), ZIP)),
    Case("Retry-After in seconds", (busy(429, Retry_After="1"), ZIP), holds=waits_a_second),
    Case(
        "Retry-After as a date",
        (server.raw(server.head(0, "503 Busy", Date=NOON, Retry_After=A_SECOND_LATER)), ZIP),
        holds=waits_a_second,
    ),
    Case("Retry-After as a date that has passed", (busy(503, Retry_After=NOON), ZIP), holds=does_not_wait),
    # Encodings
    Case("gzip", (encoded(ZIP, "gzip", GZIP),), 1),
    Case("x-gzip", (encoded(ZIP, "x-gzip", GZIP),), 1),
    Case("deflate", (encoded(ZIP, "deflate", ZLIB),), 1),
    Case("deflate without its header", (encoded(ZIP, "deflate", BARE),), 1),
    Case("an encoding that is none", (encoded(ZIP, "gzip", GZIP, cut=-9), encoded(ZIP, "gzip", GZIP))),
    Case("encoded in vain", (server.raw(server.head(SIZE, Content_Encoding="gzip") + ZIP), ZIP)),
    # Redirects
    *(Case(f"HTTP {code}", (server.redirect("?again", code), ZIP)) for code in (301, 302, 303, 307, 308)),
    Case("a redirect with a blank and an accent", (server.redirect("?a photo \xe9"), ZIP)),
    Case("29 redirects", (*(server.redirect(f"?{number}") for number in range(29)), ZIP), 30),
]


@dataclass(frozen=True)
class Refused:
    """A case that fails."""

    name: str
    replies: tuple[Reply | bytes, ...]
    requests: int
    kind: type[BaseException]
    words: tuple[str, ...] = ()
    status: int | None = None
    limits: Any = None


LINK_IS_OLD = ("signed link", "run out")
SECRET_PLACE = f"http://u-{SECRET}:p-{SECRET}@127.0.0.1:9/{SECRET}?{SECRET}"

REFUSED = [
    *(
        Refused(f"HTTP {code}", (server.status(code, b"no"), ZIP), 1, requests.HTTPError, (str(code), *words), code)
        for code, words in {
            400: (),
            401: LINK_IS_OLD,
            402: (),
            403: LINK_IS_OLD,
            404: LINK_IS_OLD,
            405: (),
            407: ("HTTPS_PROXY",),
            409: (),
            410: LINK_IS_OLD,
            416: (),
            422: (),
            451: (),
        }.items()
    ),
    Refused("HTTP 500 for ever", (busy(500),), 5, requests.HTTPError, ("500", "tried 5 times"), 500),
    Refused("cut for ever", (cut(),), 5, requests.ConnectionError, (f"after {HALF} of {SIZE} bytes", "tried 5 times")),
    Refused("reset for ever", (server.reset(),), 5, requests.ConnectionError, ("tried 5 times",)),
    Refused(
        "another file with every try",
        tuple(cut(ETag=f'"{number}"') for number in range(9)),
        5,
        requests.ConnectionError,
        ("tried 5 times",),
    ),
    Refused(
        "redirects without end",
        (server.redirect(f"?{SECRET}"),),
        31,
        requests.TooManyRedirects,
        ("redirects lead nowhere",),
    ),
    Refused(
        "a redirect to where nobody listens",
        (server.redirect(SECRET_PLACE),),
        5,
        requests.ConnectionError,
        ("redirects to 127.0.0.1:9", "refused"),
    ),
    Refused(
        "a redirect to a file",
        (server.redirect(f"file:///etc/{SECRET}"),),
        1,
        requests.exceptions.InvalidSchema,
        ("redirects", "http"),
    ),
    Refused(
        "a redirect to FTP",
        (server.redirect(f"ftp://{SECRET}/{SECRET}.zip"),),
        1,
        requests.exceptions.InvalidSchema,
        ("redirects", "http"),
    ),
    Refused("always less than the zip", (server.raw(server.head(HALF) + ZIP),), 2, BadZipFile, ("cut short",)),
    # What came is no zip
    Refused(
        "a web page",
        (server.status(200, HTML + b" " * 5000, Content_Type="text/html; charset=utf-8"),),
        1,
        BadZipFile,
        ("the server sent a web page, text/html; charset=utf-8, 5 kB: ", "direct link"),
    ),
    Refused("nothing", (b"",), 1, BadZipFile, ("an empty file",)),
    Refused(
        "JSON", (server.status(200, b'{"error": "no"}', Content_Type="application/json"),), 1, BadZipFile, ("JSON",)
    ),
    Refused("a RAR", (b"Rar!\x1a\x07\x01\x00",), 1, BadZipFile, ("RAR",)),
    Refused("a photo", (PHOTO,), 1, BadZipFile, ("JPEG",)),
    # Sizes
    Refused(
        "promises more than is taken",
        (server.raw(server.head(SIZE)),),
        1,
        DownloadError,
        (f"{SIZE} bytes", "100000 allowed", "DatasetLimits(zip_bytes="),
        limits=DatasetLimits(zip_bytes=100_000),
    ),
    Refused(
        "brings more than is taken",
        (server.chunked(ZIP),),
        1,
        DownloadError,
        ("100000 allowed", "DatasetLimits(zip_bytes="),
        limits=DatasetLimits(zip_bytes=100_000),
    ),
    Refused(
        "inflates to more than is taken",
        (encoded(bytes(1 << 20), "gzip", GZIP),),
        1,
        DownloadError,
        ("100000 allowed", "DatasetLimits(zip_bytes="),
        limits=DatasetLimits(zip_bytes=100_000),
    ),
    Refused(
        "a bomb in a bomb",
        (encoded(bytes(1), ", ".join(["gzip"] * 6), GZIP),),
        1,
        DownloadError,
        ("6 times over",),
    ),
    Refused(
        "photos of more than is taken",
        (ZIP,),
        1,
        BadZipFile,
        (f"{len(PHOTO)} bytes", "100000 are allowed", "DatasetLimits(extracted_bytes="),
        limits=DatasetLimits(extracted_bytes=100_000),
    ),
    Refused(
        "more entries than are taken",
        (make_zip("a.jpg", "b.jpg", "c.txt"),),
        1,
        BadZipFile,
        ("the 2 that are allowed", "DatasetLimits(entries="),
        limits=SimpleNamespace(zip_bytes=10**9, extracted_bytes=10**9, entries=2),
    ),
    Refused(
        "more than the disk has",
        (server.raw(server.head(1 << 62)),),
        1,
        OSError,
        (f"needs {1 << 62} bytes", "are free"),
        limits=DatasetLimits(zip_bytes=1 << 80),
    ),
]

ALL = [*SURVIVED, *REFUSED]


def arrange(case: Case | Refused, workspace: Workspace) -> None:
    url = workspace.server.on("/photos.zip", *case.replies)
    workspace.url = url.replace("//", f"//u-{SECRET}:p-{SECRET}@") + f"?signature={SECRET}#{SECRET}"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Future[Outcome]]]:
    """Of all cases, side by side: most of their time is a pause between two tries."""
    with ExitStack() as stack:
        environment = stack.enter_context(pytest.MonkeyPatch.context())
        for name in os.environ:
            if name.lower().endswith("_proxy"):
                environment.delenv(name)
        pool = stack.enter_context(ThreadPoolExecutor(16))
        started = []
        for case in ALL:
            workspace = Workspace.make(tmp_path_factory.mktemp("download"), stack.enter_context(serving()))
            workspace.old_dataset()
            arrange(case, workspace)
            started.append(pool.submit(prepare, workspace, getattr(case, "limits", None)))
        yield started


def rows(cases: list[Any], first: int = 0) -> pytest.MarkDecorator:
    params = [pytest.param(number, case, id=case.name) for number, case in enumerate(cases, first)]
    return pytest.mark.parametrize(("number", "case"), params)


@rows(SURVIVED)
def test_what_can_be_survived_is(outcomes: list[Future[Outcome]], number: int, case: Case) -> None:
    outcome = outcomes[number].result().ok(case.photo)
    assert len(outcome.requests) == case.requests
    case.holds(outcome)
    tries = [record for record in outcome.records if "trying again" in record.getMessage()]
    assert {record.levelname for record in tries} <= {"WARNING"}


@rows(REFUSED, len(SURVIVED))
def test_what_cannot_is_told(outcomes: list[Future[Outcome]], number: int, case: Refused) -> None:
    outcome = outcomes[number].result()
    error = outcome.failed(case.kind, *case.words)
    assert len(outcome.requests) == case.requests
    assert outcome.photos == {"old.jpg": b"old photo"}
    assert (error.__cause__, error.__context__) == (None, None)
    if issubclass(case.kind, OSError):
        assert isinstance(error, DownloadError) or error.errno == errno.ENOSPC
    if isinstance(error, DownloadError):
        assert isinstance(error, requests.RequestException)
        assert error.status == case.status
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.status) == (type(error), str(error), error.status)


@rows(ALL)
def test_no_secret_is_told(outcomes: list[Future[Outcome]], number: int, case: Case | Refused) -> None:
    outcome = outcomes[number].result()
    assert SECRET not in everything_said(outcome)
    assert "127.0.0.1" in outcome.log
    told = base64.b64encode(f"u-{SECRET}:p-{SECRET}".encode()).decode()
    assert outcome.requests[0].headers["authorization"] == f"Basic {told}"


def test_pauses_double_and_differ(outcomes: list[Future[Outcome]]) -> None:
    pauses = {case.name: outcome.result().pauses for case, outcome in zip(ALL, outcomes, strict=True)}
    for name in ("cut for ever", "reset for ever"):
        assert len(pauses[name]) == 4
        for number, pause in enumerate(pauses[name]):
            longest = 0.5 * 2**number
            assert longest / 2 - 0.1 <= pause <= longest + 0.1
    first = [seconds[0] for name, seconds in pauses.items() if seconds and "Retry-After" not in name]
    assert len({pause for pause in first if pause}) > 1


# ---- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        f"photos.zip?{SECRET}",
        f"example.com/photos.zip?{SECRET}",
        f"//example.com/photos.zip?{SECRET}",
        f"/photos.zip?{SECRET}",
        f"ftp://u-{SECRET}:{SECRET}@example.com/photos.zip",
        f"file:///photos.zip?{SECRET}",
        f"data:application/zip;base64,{SECRET}",
        f"s3://bucket/photos.zip?{SECRET}",
        "http://",
        f"http://?{SECRET}",
        f"https://{SECRET}:{SECRET}@",
        f"http://127.0.0.1:{SECRET}/photos.zip",
    ],
)
def test_what_is_no_address_is_a_value_error(workspace: Workspace, url: str) -> None:
    workspace.old_dataset()
    workspace.url = url
    outcome = prepare(workspace)
    # As with the original, `except requests.RequestException` catches it, too.
    assert isinstance(outcome.failed(ValueError, "http://", "https://"), requests.RequestException)
    assert (outcome.requests, outcome.photos) == ([], {"old.jpg": b"old photo"})
    assert SECRET not in everything_said(outcome)


def test_without_requests(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    for reply, status in ((server.status(403), 403), (server.redirect("?"), None)):
        workspace.url = workspace.server.on("/photos.zip", reply)
        error = prepare(workspace).failed(DownloadError)
        assert (type(error), error.status, error.__context__) == (DownloadError, status, None)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.status) == (DownloadError, str(error), status)
    workspace.url = "ftp://example.com/photos.zip"
    assert type(prepare(workspace).error) is ValueError
    assert DownloadError("made by a caller").status is None


def test_an_error_travels_to_a_process_without_requests(workspace: Workspace) -> None:
    workspace.url = workspace.server.on("/photos.zip", server.status(403))
    pickled = pickle.dumps(prepare(workspace).error)
    code = (
        "import pickle, sys; sys.modules['requests'] = None; "
        "error = pickle.load(sys.stdin.buffer); print(type(error).__name__, error.status)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    assert done.stdout == b"DownloadError 403\n"


def test_what_callers_of_requests_catch(workspace: Workspace) -> None:
    workspace.url = workspace.server.on("/photos.zip", server.status(404))
    error = prepare(workspace).failed(requests.HTTPError)
    assert isinstance(error, DownloadError)
    assert isinstance(error, OSError)
    assert error.response.status_code == 404


# ---- who is told the password -----------------------------------------------------------------------------------


def test_credentials_go_to_no_other_host(workspace: Workspace, tmp_path: Path) -> None:
    with serving() as other:
        elsewhere = other.on("/photos.zip", ZIP)
        for move in ("", "/again"):
            workspace.server.on("/again", server.redirect(elsewhere))
            first = workspace.server.on("/photos.zip", server.redirect(move or elsewhere))
            workspace.url = first.replace("//", "//user:word@")
            outcome = prepare(workspace).ok()
        assert [request.path for request in outcome.requests] == ["/photos.zip", "/photos.zip", "/again"]
        assert all("authorization" in request.headers for request in outcome.requests)
        assert len(other.requests) == 2
        for request in other.requests:
            assert not {"authorization", "cookie", "referer"} & request.headers.keys()


def test_credentials_of_netrc(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = workspace.root / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login u-{SECRET} password p-{SECRET}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with serving() as other:
        elsewhere = other.on("/photos.zip", server.status(403)).replace("127.0.0.1", "localhost")
        workspace.url = workspace.server.on("/photos.zip", server.redirect(f"{elsewhere}?{SECRET}"))
        outcome = prepare(workspace)
        outcome.failed(DownloadError, "403")
        told = base64.b64encode(f"u-{SECRET}:p-{SECRET}".encode()).decode()
        assert outcome.requests[0].headers["authorization"] == f"Basic {told}"
        assert [request.headers.get("authorization") for request in other.requests] == [None]
    assert SECRET not in everything_said(outcome)


# ---- TLS and proxies --------------------------------------------------------------------------------------------


@pytest.fixture
def secure(workspace: Workspace) -> Iterator[Server]:
    """A server that speaks TLS, in the place of the workspace's own."""
    with serving(tls=True) as secure:
        workspace.server = secure
        workspace.serve(ZIP)
        yield secure


BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


@pytest.fixture(autouse=True)
def no_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*BUNDLES, "SSL_CERT_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", BUNDLES)
def test_a_bundle_of_the_environment_is_trusted(
    workspace: Workspace, secure: Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(server.AUTHORITY))
    prepare(workspace).ok()


def test_the_end_of_a_connection_without_a_goodbye(
    workspace: Workspace, secure: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.AUTHORITY))
    workspace.url = secure.on("/photos.zip", server.without_length(ZIP[:HALF]), server.without_length(ZIP))
    # Half a zip ends as a whole one does.
    assert len(prepare(workspace).ok().requests) == 2
    workspace.url = secure.on("/photos.zip", cut(), WHOLE)
    assert "of 300278 bytes" in prepare(workspace).ok().log


def test_a_folder_of_certificates_is_trusted(
    workspace: Workspace, secure: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "certs").mkdir()
    # As OpenSSL's rehash names it.
    shutil.copy(server.AUTHORITY, tmp_path / "certs/5ed36f99.0")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certs"))
    prepare(workspace).ok()


def test_who_is_not_trusted(workspace: Workspace, secure: Server) -> None:
    workspace.url = workspace.url.replace("//", f"//u-{SECRET}:p-{SECRET}@") + f"?{SECRET}"
    outcome = prepare(workspace)
    outcome.failed(requests.ConnectionError, "certificate is not trusted", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")
    assert secure.requests == outcome.pauses == []
    assert SECRET not in everything_said(outcome)


def test_a_certificate_for_another_host(workspace: Workspace, secure: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.AUTHORITY))
    workspace.url = workspace.url.replace("127.0.0.1", "127.0.0.2")
    with serving() as proxy:
        proxy.on(f"127.0.0.2:{secure.port}", server.tunnel(secure))
        monkeypatch.setenv("HTTPS_PROXY", proxy.base)
        prepare(workspace).failed(requests.ConnectionError, "certificate is not trusted", "127.0.0.2")
    assert secure.requests == []


def test_a_bundle_that_is_none(workspace: Workspace, secure: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(workspace.root / "absent.pem"))
    prepare(workspace).failed(RuntimeError, "REQUESTS_CA_BUNDLE", "absent.pem")


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_https_goes_through_the_proxy(
    workspace: Workspace, secure: Server, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.AUTHORITY))
    workspace.url = f"https://user:word@photos.example:{secure.port}/photos.zip?{SECRET}"
    with serving() as proxy:
        proxy.on(f"photos.example:{secure.port}", server.tunnel(secure, f"u-{SECRET}:p@{SECRET}"))
        monkeypatch.setenv(variable, proxy.base.replace("//", f"//u-{SECRET}:p%40{SECRET}@"))
        outcome = prepare(workspace).ok()
        # The proxy learns the host alone, and the host nothing of the proxy.
        (to_the_proxy,) = proxy.requests
        assert to_the_proxy.method == "CONNECT"
        assert "authorization" not in to_the_proxy.headers
        assert SECRET not in to_the_proxy.path
    (to_the_host,) = secure.requests
    assert to_the_host.headers["authorization"] == "Basic " + base64.b64encode(b"user:word").decode()
    assert "proxy-authorization" not in to_the_host.headers
    assert SECRET not in everything_said(outcome)


def test_a_proxy_with_another_password(workspace: Workspace, secure: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as proxy:
        proxy.on(f"127.0.0.1:{secure.port}", server.tunnel(secure, "user:word"))
        monkeypatch.setenv("HTTPS_PROXY", proxy.base.replace("//", f"//u-{SECRET}:p-{SECRET}@"))
        outcome = prepare(workspace)
        outcome.failed(requests.ConnectionError, "proxy", "HTTPS_PROXY")
        assert len(proxy.requests) == 1
    assert SECRET not in everything_said(outcome)


def test_no_proxy_that_listens(workspace: Workspace, secure: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"u-{SECRET}:p-{SECRET}@127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("HTTPS_PROXY", f"http://{address}")
        outcome = prepare(workspace)
    outcome.failed(requests.ConnectionError, "refused", "tried 5 times")
    assert SECRET not in everything_said(outcome)


@pytest.mark.parametrize("hosts", ["127.0.0.1", "*", "example.com, 127.0.0.0/8"])
def test_no_proxy_names_hosts(
    workspace: Workspace, secure: Server, monkeypatch: pytest.MonkeyPatch, hosts: str
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.AUTHORITY))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", hosts)
    prepare(workspace).ok()


# ---- limits -----------------------------------------------------------------------------------------------------


def test_limits_are_a_frozen_dataclass() -> None:
    limits = DatasetLimits(entries=7)
    assert is_dataclass(limits)
    assert {field.name: (field.type, field.default) for field in fields(DatasetLimits)} == {
        "zip_bytes": (int, 64 * 2**30),
        "extracted_bytes": (int, 64 * 2**30),
        "entries": (int, 100_000),
    }
    assert replace(limits, entries=100_000) == DatasetLimits() == pickle.loads(pickle.dumps(DatasetLimits()))
    assert repr(limits) == "DatasetLimits(zip_bytes=68719476736, extracted_bytes=68719476736, entries=7)"
    with pytest.raises(FrozenInstanceError):
        limits.entries = 8  # type: ignore[misc]
    with pytest.raises(TypeError):
        DatasetLimits(1)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["zip_bytes", "extracted_bytes", "entries"])
@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (0, ValueError, "=0: expected at least 1"),
        (-5, ValueError, "=-5: expected at least 1"),
        (True, TypeError, "expected an int, found bool"),
        (1.5, TypeError, "expected an int, found float"),
        ("1", TypeError, "expected an int, found str"),
        (None, TypeError, "expected an int, found NoneType"),
    ],
)
def test_limits_that_cannot_be(workspace: Workspace, name: str, value: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(f"{name}{'' if words.startswith('=') else ': '}{words}")):
        DatasetLimits(**{name: value})
    # And in what only looks like one, before anything is asked for.
    own = SimpleNamespace(**{"zip_bytes": 1, "extracted_bytes": 1, "entries": 1, name: value})
    outcome = prepare(workspace, own)
    outcome.failed(error, name)
    assert outcome.requests == []


def test_limits_of_a_class(workspace: Workspace) -> None:
    class Modest(MusubiTraining):
        dataset_limits = DatasetLimits(entries=2)

    trainer = Modest(**Work(str(workspace.root), "", "", {}).arguments())
    with pytest.raises(BadZipFile, match="the 2 that are allowed"):
        trainer._prepare_dataset(workspace.toml, workspace.url, "word")
    # Read when it is prepared.
    trainer.dataset_limits = DatasetLimits()
    trainer._prepare_dataset(workspace.toml, workspace.url, "word")
    del trainer.dataset_limits
    with pytest.raises(BadZipFile):
        trainer._prepare_dataset(workspace.toml, workspace.url, "word")


def test_limits_without_one_of_them(workspace: Workspace) -> None:
    prepare(workspace, SimpleNamespace(zip_bytes=1, extracted_bytes=1)).failed(AttributeError, "entries")
    assert workspace.server.requests == []


# ---- memory and disk --------------------------------------------------------------------------------------------

BIG_MB = 300


def prepare_and_measure(work: Work):
    import re

    def peak_mb():
        with open("/proc/self/status") as status:
            return int(re.search(r"VmHWM:\s+(\d+)", status.read()).group(1)) / 1024

    trainer = work.trainer()
    before = peak_mb()
    trainer._prepare_dataset(work.toml, work.url, "word")
    return peak_mb() - before


def streamed(file: Path, encoding: str | None) -> Reply:
    """The file as it is read, so that this process does not hold it either."""

    def reply(exchange: server.Exchange) -> None:
        packer = zlib.compressobj(0, wbits=GZIP) if encoding else None
        headers = {"Content_Encoding": encoding} if encoding else {}
        exchange.head(200, None if packer else file.stat().st_size, **headers)
        with open(file, "rb") as source:
            while data := source.read(1 << 20):
                exchange.wfile.write(packer.compress(data) if packer else data)
        if packer:
            exchange.wfile.write(packer.flush())

    return reply


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory of a process is read from /proc")
def test_memory_is_flat(bench: Bench, tmp_path: Path) -> None:
    big = tmp_path / "big.zip"
    # Inflated as any photo is, but quickly made.
    with zipfile.ZipFile(big, "w", zipfile.ZIP_DEFLATED, compresslevel=0) as archive:
        for number in range(BIG_MB // 10):
            archive.writestr(f"{number}.jpg", jpeg() + bytes(10 << 20))
    runs = []
    for encoding in (None, "gzip"):
        workspace = bench.workspace()
        workspace.url = workspace.server.on("/photos.zip", streamed(big, encoding))
        runs.append(workspace.start(OURS, prepare_and_measure))
    for run in runs:
        assert run.finish().ok().result < 16


def prepare_on_a_small_disk(work: Work):
    import os
    import threading
    from urllib.request import urlopen

    folder = work.path("training")
    os.makedirs(os.path.join(folder, "images"))
    old = os.path.join(folder, "images", "old.jpg")
    with open(old, "w") as file:
        file.write("old photo")

    def free():
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    def fill():
        with urlopen(work.extra["fill"]), open(os.path.join(folder, "filler"), "wb") as filler:
            while free() > work.extra["leave"]:
                filler.write(bytes(1 << 20))
                filler.flush()
        urlopen(work.extra["filled"]).close()

    before = free()
    if "fill" in work.extra:
        threading.Thread(target=fill, daemon=True).start()
    outcome = work.attempt(lambda: work.trainer()._prepare_dataset(work.toml, work.url, "word"))
    with open(old) as file:
        assert file.read() == "old photo"
    return {**outcome, "left": sorted(set(os.listdir(folder)) - {"filler"}), "before": before, "after": free()}


@pytest.fixture
def small_disk(tmp_path: Path) -> Callable[[Workspace, int], Library]:
    """Gives the workspace's training folder a file system of that many MiB of its own, for one process to see."""

    def make(workspace: Workspace, size_mb: int) -> Library:
        workspace.training.mkdir()
        mount = f"mount -t tmpfs -o size={size_mb}m tmpfs {workspace.training}"
        within = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
        if shutil.which("unshare") is None:
            pytest.skip("needs a file system of its own: there is no unshare here")
        tried = subprocess.run([*within, mount], capture_output=True, text=True)
        if tried.returncode:
            pytest.skip(f"needs a file system of its own: {tried.stderr.strip()}")
        python = tmp_path / f"python-on-{size_mb}"
        python.write_text(f'#!/bin/sh\nexec {" ".join(within)} \'{mount} && exec "$@"\' sh {sys.executable} "$@"\n')
        python.chmod(0o755)
        return Library("ours on a small disk", str(python))

    return make


MB = 1 << 20
TOO_MUCH = make_zip(Entry("a.jpg", jpeg() + random.Random(3).randbytes(5 * MB), stored=True))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        pytest.param(server.content(TOO_MUCH), (f"needs {len(TOO_MUCH)} bytes", "are free"), id="known beforehand"),
        pytest.param(server.chunked(TOO_MUCH, 100_000), ("the disk is full",), id="known when it is full"),
        pytest.param(encoded(bytes(8 * MB), "gzip", GZIP), ("the disk is full",), id="full of what is inflated"),
        pytest.param(
            server.content(make_zip(("a.jpg", jpeg() + random.Random(3).randbytes(3 * MB)))),
            ("extracting the zip needs", "are free"),
            id="too small for the photos",
        ),
    ],
)
def test_a_full_disk(
    bench: Bench, small_disk: Callable[[Workspace, int], Library], reply: Reply, words: tuple[str, ...]
) -> None:
    workspace = bench.workspace()
    workspace.url = workspace.server.on("/photos.zip", reply)
    run = workspace.run(small_disk(workspace, 4), prepare_on_a_small_disk).ok()
    assert "OSError" in run.result["error"]["bases"]
    for word in (f"[Errno {errno.ENOSPC}]", *words):
        assert word in run.result["error"]["message"]
    assert len(run.requests) == 1
    assert run.result["left"] == ["images"]
    assert run.result["after"] == run.result["before"]


def prepare_and_list(work: Work):
    import os

    work.trainer()._prepare_dataset(work.toml, work.url, "word")
    return {
        name: os.path.getsize(work.path("training", "images", name))
        for name in os.listdir(work.path("training/images"))
    }


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "deflated"])
def test_photos_need_the_room_of_one_copy(
    bench: Bench, small_disk: Callable[[Workspace, int], Library], stored: bool
) -> None:
    photos = [
        Entry(f"{number}.jpg", jpeg() + random.Random(number).randbytes(MB), stored=stored) for number in range(5)
    ]
    workspace = bench.workspace()
    workspace.serve(make_zip(*photos))
    found = workspace.run(small_disk(workspace, 8), prepare_and_list).ok().result
    captions = {f"{number}.txt": len("word") for number in range(5)}
    assert found == captions | {photo.name: len(photo.data) for photo in photos}


def test_a_disk_that_somebody_else_fills(bench: Bench, small_disk: Callable[[Workspace, int], Library]) -> None:
    sent, filled = threading.Event(), threading.Event()

    def slow(exchange: server.Exchange) -> None:
        exchange.head(200, 60 * MB)
        exchange.wfile.write(bytes(24 * MB))
        sent.set()
        assert filled.wait(30)
        exchange.wfile.write(bytes(36 * MB))

    workspace = bench.workspace()
    workspace.url = workspace.server.on("/photos.zip", slow)
    workspace.extra = {
        "fill": workspace.server.on("/fill", lambda exchange: (sent.wait(30), exchange.head(200, 0))[1]),
        "filled": workspace.server.on("/filled", lambda exchange: (filled.set(), exchange.head(200, 0))[1]),
        "leave": 24 * MB,
    }
    run = workspace.run(small_disk(workspace, 64), prepare_on_a_small_disk).ok()
    assert f"[Errno {errno.ENOSPC}]" in run.result["error"]["message"]
    # Before the disk is full, with how much there is still to come.
    assert re.search(r"the rest of the download needs \d+ bytes and \d+ are free", run.result["error"]["message"])
    assert run.result["left"] == ["images"]
