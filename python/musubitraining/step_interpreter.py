"""What runs in the interpreter of a step: never imported by the host, which starts this file with `sys.executable`.

usage: python step_interpreter.py launch OPTIONS... SCRIPT ARGUMENTS...
           accelerate's launcher, with the script in its own process instead of a second one that imports all anew
       python step_interpreter.py warm NATIVE SCRIPT... [accelerate.commands.launch]
           import once what the scripts import, and fork for each step that is asked for on stdin

Either way a script finds what it finds in a process of its own: `sys.argv`, `__main__`, `sys.path`, the environment,
its standard streams; and its output and exit code are the same.
"""

import ast
import atexit
import builtins
import contextlib
import ctypes
import gc
import importlib.machinery
import importlib.util
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

LAUNCHER = "accelerate.commands.launch"
THREADS = "--num_cpu_threads_per_process"
INITIALISE_CUDA = ("bitsandbytes",)
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"

# The module that a script takes the place of: what runs here must outlive it.
_THIS = sys.modules["__main__"]

# Files that packages have opened as they were imported, once the garbage collector does not look there any more.
_OPENED_BY_IMPORTS: list[Any] = []


def lead_path(folder: str) -> None:
    """Put `folder` where Python puts a script's own, in the place of this file's."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def run(script: str, arguments: list[str]) -> int:
    """Run a script as `python SCRIPT ARGUMENTS` does, up to the end of its code, and return its exit code."""
    sys.argv = [script, *arguments]
    sys.orig_argv = [sys.executable, *sys.argv]
    lead_path(os.path.dirname(os.path.realpath(script)))
    main = types.ModuleType("__main__")
    main.__dict__.update(
        __builtins__=builtins,
        __file__=script,
        __cached__=None,
        __loader__=importlib.machinery.SourceFileLoader("__main__", script),
    )
    sys.modules["__main__"] = main
    try:
        with io.open_code(script) as file:
            code = compile(file.read(), script, "exec", dont_inherit=True)
        exec(code, main.__dict__)
    except BaseException as error:
        return exit_code(error)
    return 0


def exit_code(error: BaseException) -> int:
    """Say of an exception that nobody has caught what Python says, and return the exit code that it gives."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    sys.excepthook(type(error), error.with_traceback(frames), frames)
    if isinstance(error, KeyboardInterrupt):
        wind_up()
        flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 1


def wind_up() -> None:
    """Do what Python does when a script has ended, but for the taking apart of its modules, which takes seconds."""
    for work in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            work()
        except BaseException:
            traceback.print_exc()


def flush() -> None:
    """Write out what is still in a buffer, in files that nobody has closed too."""
    for file in (sys.stdout, sys.stderr, *_OPENED_BY_IMPORTS, *buffered_files()):
        # It may be `None`, closed, without the buffer that it had, or broken.
        with contextlib.suppress(Exception):
            file.flush()
    ctypes.CDLL(None).fflush(None)


def buffered_files() -> list[Any]:
    """Everything that files are written through."""
    return [
        found for found in gc.get_objects() if type(found) in (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    ]


def leave(code: int) -> NoReturn:
    """End the process with its work wound up."""
    wind_up()
    flush()
    os._exit(code & 0xFF)


class ScriptHere:
    """What the launcher takes for the process that it has started: the script, run in this one."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        """Nothing is run before it is waited for."""
        self.command, self.environment = command, environment
        self.returncode: int | None = None

    def wait(self) -> int:
        """Run the script to its end."""
        os.environ.update(self.environment)
        self.returncode = run(self.command[1], self.command[2:]) & 0xFF
        wind_up()
        return self.returncode


def popen(command: list[str], env: dict[str, str], **others: Any) -> Any:
    """Stand in for `subprocess.Popen` in the launcher: a script that can run in this process does."""
    changed = {name for name, value in env.items() if os.environ.get(name) != value}
    can_change_here = all(name.startswith("ACCELERATE_") for name in changed) and env.keys() >= os.environ.keys()
    is_script = command[0] == sys.executable and os.path.isfile(command[1])
    if is_script and can_change_here and not others:
        return ScriptHere(command, env)
    return subprocess.Popen(command, env=env, **others)


def launch(words: list[str]) -> int:
    """Run accelerate's launcher as `python -m accelerate.commands.launch WORDS` does."""
    threads = words[words.index(THREADS) + 1] if THREADS in words[:-1] else ""
    if threads.isdecimal():
        # What the launcher tells the script's process, whose libraries read it as they are imported.
        os.environ["OMP_NUM_THREADS"] = threads
        torch = sys.modules.get("torch")
        # The other one comes first, where it is heard at all.
        if torch and not ("MKL_NUM_THREADS" in os.environ and torch.backends.mkl.is_available()):
            torch.set_num_threads(int(threads))
    lead_path(os.getcwd())
    handlers = list(logging.root.handlers)
    try:
        launcher = importlib.import_module(LAUNCHER)
        # Set up logging for itself, where `rich` is installed.
        logging.root.handlers[:] = handlers
        sys.argv = [launcher.__file__ or LAUNCHER, *words]
        sys.orig_argv = [sys.executable, "-m", LAUNCHER, *words]
        in_this_process = types.ModuleType("subprocess")
        vars(in_this_process).update(vars(subprocess), Popen=popen)
        vars(launcher)["subprocess"] = in_this_process
        launcher.main()
    except BaseException as error:
        return exit_code(error)
    return 0


class Deferred(types.ModuleType):
    """A package that initialises CUDA when it is imported, which is put off until a fork needs it."""

    def __getattr__(self, name: str) -> Any:
        """Import it after all, for something that is in it."""
        if name.startswith("__"):
            raise AttributeError(name)
        self.import_now()
        return getattr(self, name)

    def import_now(self) -> None:
        """Be the package."""
        spec = importlib.machinery.PathFinder.find_spec(self.__name__)
        assert spec
        assert spec.loader
        self.__class__ = types.ModuleType  # type: ignore[assignment]
        self.__spec__, self.__loader__ = spec, spec.loader
        spec.loader.exec_module(self)


class Deferring:
    """Finds the packages that are to be deferred, and loads nothing of them."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Say where a package is that is to be deferred, which takes CUDA to be there."""
        if name not in INITIALISE_CUDA or "torch" not in sys.modules or not sys.modules["torch"].cuda.is_available():
            return None
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec:
            spec.loader = Deferring()  # type: ignore[assignment]
        return spec

    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        """Have a module made as usual."""
        return None

    @staticmethod
    def exec_module(module: types.ModuleType) -> None:
        """Leave it empty."""
        module.__class__ = Deferred


class Trouble(Exception):
    """Why no step can be run in a fork of this process."""


class Imports(ast.NodeVisitor):
    """The import statements that run when a module is imported, each with whether its failure is caught."""

    def __init__(self, tree: ast.Module) -> None:
        """Look through a module."""
        self.found: list[tuple[ast.Import | ast.ImportFrom, bool]] = []
        self.is_guarded = False
        self.visit(tree)

    def visit_Import(self, node: ast.Import) -> None:
        """Take it."""
        self.found += [(ast.copy_location(ast.Import([name]), node), self.is_guarded) for name in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Take it."""
        if node.module != "__future__":
            self.found.append((node, self.is_guarded))

    def visit_Try(self, node: ast.Try) -> None:
        """What is tried may fail."""
        outside, self.is_guarded = self.is_guarded, True
        self.generic_visit(node)
        self.is_guarded = outside

    def visit_If(self, node: ast.If) -> None:
        """What depends on something may not be run at all."""
        return

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """Runs later, or never."""
        return

    visit_AsyncFunctionDef = visit_FunctionDef


class Warmth:
    """What the scripts import from outside their clone, imported; and what was said meanwhile."""

    def __init__(self, scripts: list[str]) -> None:
        """Import for each of the scripts."""
        clone = os.path.dirname(os.path.realpath(scripts[0]))
        self.clone_paths = [clone, os.path.join(clone, "src")]
        self.carried_out: set[ImportKey] = set()
        self.said: list[tuple[ImportKey, str, bytes | logging.LogRecord]] = []
        self.heard_up_to = 0
        root, call_handlers = logging.getLogger(), logging.Logger.callHandlers
        level, handlers = root.level, list(root.handlers)
        # How a message is shown, and whether at all, is for each script to say.
        root.setLevel(1)
        logging.Logger.callHandlers = lambda _, record: self.hear(record)  # type: ignore[assignment, method-assign]
        for script in scripts:
            self.prepare("__main__", script, set())
        logging.Logger.callHandlers = call_handlers  # type: ignore[method-assign]
        if root.level != 1 or root.handlers != handlers:
            raise Trouble("a package that the clone imports sets up logging, which is for each script to do")
        root.setLevel(level)

    def prepare(self, name: str, path: str, seen: set[str]) -> None:
        """Import what a module of the clone imports, and what its own modules do in their turn."""
        if path in seen:
            return
        seen.add(path)
        with io.open_code(path) as file, warnings.catch_warnings():
            # Said where it is compiled to be run.
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read(), path)
        package = name if os.path.basename(path) == "__init__.py" else name.rpartition(".")[0]
        for statement, is_guarded in Imports(tree).found:
            own = [module for wanted in modules_of(statement, package) for module in self.own_modules(wanted)]
            for module, file_of_module in own:
                self.prepare(module, file_of_module, seen)
            if not own:
                self.carry_out(statement, is_guarded, name, path)

    def own_modules(self, module: str) -> Iterator[tuple[str, str]]:
        """A module of the clone and the packages that it is in, with their files; nothing for another's."""
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            place = os.path.join(*parts[:depth])
            for root in self.clone_paths:
                for file in (os.path.join(root, place, "__init__.py"), os.path.join(root, place + ".py")):
                    if os.path.isfile(file):
                        yield ".".join(parts[:depth]), file

    def carry_out(self, statement: ast.Import | ast.ImportFrom, is_guarded: bool, name: str, path: str) -> None:
        """Run an import statement, once, as if in its module."""
        self.key = key_of(statement)
        if self.key in self.carried_out:
            return
        self.carried_out.add(self.key)
        code = compile(ast.fix_missing_locations(ast.Module([statement], [])), path, "exec")
        try:
            exec(code, {"__name__": name, "__file__": path})
        except ModuleNotFoundError as error:
            if not is_guarded:
                raise Trouble(f"{path} cannot import what it needs: {error}") from None
        except BaseException as error:
            raise Trouble(f"an import of {path} fails: {type(error).__name__}: {error}") from None
        self.hear()

    def hear(self, record: logging.LogRecord | None = None) -> None:
        """Keep what the statement under way has printed, and what a package logs as it is imported."""
        end = os.lseek(1, 0, os.SEEK_CUR)
        if end > self.heard_up_to:
            self.said.append((self.key, "", os.pread(1, end - self.heard_up_to, self.heard_up_to)))
            self.heard_up_to = end
        if record:
            frame = sys._getframe()
            while frame.f_back and frame.f_code.co_name != "<module>":
                frame = frame.f_back
            self.said.append((self.key, package_of(frame.f_globals["__name__"]), record))

    def repeat_as_imported(self) -> None:
        """In a fork, say what an import has said when the script comes to it, which has nothing left to import."""
        original = builtins.__import__
        left = list(self.said)

        def import_again(name: str, scope: Any = None, local: Any = None, names: Any = (), level: int = 0) -> Any:
            module = original(name, scope, local, names, level)
            key = (name, tuple(names or ()), level)
            due = [said for said in left if said[0] == key or said[1] == package_of(name)]
            for said in due:
                left.remove(said)
                repeat(said[2])
            return module

        if left:
            builtins.__import__ = import_again  # type: ignore[assignment]


def package_of(module: str) -> str:
    """The package on the top."""
    return module.partition(".")[0]


ImportKey = tuple[str, tuple[str, ...], int]


def key_of(statement: ast.Import | ast.ImportFrom) -> ImportKey:
    """What `__import__` is called with for a statement: a name, what is taken from it, how many packages up."""
    names = tuple(alias.name for alias in statement.names)
    if isinstance(statement, ast.Import):
        return names[0], (), 0
    return statement.module or "", names, statement.level


def repeat(said: bytes | logging.LogRecord) -> None:
    """Print or log what was to be, as the script has it by now."""
    if isinstance(said, bytes):
        os.write(1, said)
        return
    logger = logging.getLogger(said.name)
    if logger.isEnabledFor(said.levelno):
        logger.handle(said)


def modules_of(statement: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """The names of all modules that a statement may import."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    parents = package.split(".")[: len(package.split(".")) + 1 - statement.level] if statement.level else []
    base = ".".join([*parents, *filter(None, [statement.module])])
    return [base, *(f"{base}.{alias.name}" for alias in statement.names)]


def refuse_what_a_fork_breaks() -> None:
    """Fork once, and look: CUDA does not work in a fork once it is initialised, and a thread is not there.

    Some libraries end their threads before a fork and start them again where they are needed, which is fine.
    """
    fork = os.fork()
    if not fork:
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda and (cuda.is_initialized() or (cuda._is_in_bad_fork() and cuda.is_available())):
            os._exit(1)
        os._exit(0)
    if os.waitpid(fork, 0)[1]:
        raise Trouble("a package that the clone imports has initialised CUDA, which no fork can use then")
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()
    if threads > 1:
        names = ", ".join(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
        raise Trouble(f"the packages that the clone imports have started {threads - 1} threads ({names or 'native'})")


def serve(requests: socket.socket, warmth: Warmth, native: Any) -> NoReturn:
    """Fork for each request: the command's words, with the descriptors of its output, its lifeline and its locks."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        length, descriptors, _, _ = socket.recv_fds(requests, 4, 64)
        if not length:
            os._exit(0)
        words = b""
        while len(words) < int.from_bytes(length, "little"):
            words += requests.recv(1 << 16)
        if not os.fork():
            requests.close()
            become([os.fsdecode(word) for word in words.split(b"\0")], descriptors, warmth, native)
        for descriptor in descriptors:
            os.close(descriptor)


def become(command: list[str], descriptors: list[int], warmth: Warmth, native: Any) -> NoReturn:
    """Be the process of a command, in a fork of the warm interpreter."""
    output, lifeline, *locks = descriptors
    os.dup2(output, 1)
    os.dup2(output, 2)
    native._supervise(lifeline, locks)
    for descriptor in descriptors:
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # Python's own random numbers see to forks themselves.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    warmth.repeat_as_imported()
    if command[1] == "-m":
        leave(launch(command[3:]))
    leave(run(command[1], command[2:]))


def load_native(path: str) -> Any:
    """The host's own native module, for the supervisor that it makes; nothing that a script could import."""
    loader = importlib.machinery.ExtensionFileLoader("musubitraining._native", path)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    native = importlib.util.module_from_spec(spec)
    loader.exec_module(native)
    return native


def warm(native_path: str, scripts: list[str]) -> NoReturn:
    """Import once what the scripts import, say whether that went well, and serve."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    requests = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    with tempfile.TemporaryFile(buffering=0) as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    nvml_check = os.environ.get(NVML_CHECK)
    # Tells whether there is CUDA without initialising it.
    os.environ[NVML_CHECK] = "1"
    try:
        native = load_native(native_path)
        lead_path(os.path.dirname(os.path.realpath(scripts[0])))
        sys.meta_path.insert(0, Deferring)
        warmth = Warmth([script for script in scripts if script != LAUNCHER])
        sys.meta_path.remove(Deferring)
        refuse_what_a_fork_breaks()
    except BaseException as error:
        text = str(error) if isinstance(error, Trouble) else traceback.format_exception_only(error)[-1]
        requests.sendall(" ".join(text.split()).encode(errors="replace"))
        os._exit(1)
    if nvml_check is None:
        del os.environ[NVML_CHECK]
    else:
        os.environ[NVML_CHECK] = nvml_check
    gc.collect()
    _OPENED_BY_IMPORTS.extend(buffered_files())
    gc.freeze()
    requests.sendall(b"ready")
    serve(requests, warmth, native)


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "warm":
        warm(words[0], words[1:])
    leave(launch(words))
