"""The flags of every command, and their help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from musubitraining.cli.failure import EXIT_CODES, USAGE, without_secrets

if TYPE_CHECKING:
    from musubitraining.cli.settings import Group

PROGRAM = "musubitraining"

ABOUT = "Turns a zip of photos into a Z-Image LoRA in ComfyUI's format, with Musubi Tuner."

EXAMPLES = """\
examples:
  musubitraining demo                                     try it: a small LoRA on this machine's CPU
  musubitraining plan --config run.toml                   what a run would meet, in a second
  musubitraining train --config run.toml --seed 7         flags go before the file
  musubitraining watch /workspace/my-training-run         from another terminal
  musubitraining report /workspace/my-training-run        the run as one page

musubitraining COMMAND --help says more.
"""

TRAIN_EXAMPLES = """\
A file for --config has the same names, with "_" for "-", in tables:

  models = "/workspace/models"
  training_folder = "/workspace/my-training-run"
  output = "/workspace/outputs"
  musubi_tuner = "/workspace/musubi-tuner"
  photos = "https://example.com/photos.zip"
  trigger_word = "zwxcat"
  max_train_steps = 1500

  [options]              # training: preset, network_dim, learning_rate, …
  preset = "16gb"

  [dataset]              # resolution, batch_size, …; or: file = "dataset.toml"
  resolution = [768, 768]

The other tables are [weights], [dataset_options], [launch_options] and [dataset_limits].
--base-weights-file is base_weights in [weights], --launch-extra-args is extra_args in
[launch_options].

What is said later goes before: --from, then --config, then flags; a preset goes before all options
that were said earlier. "none" says that there is no value, where there may be none. Relative paths
count from the current folder. A signed link belongs into a file, as other users of this machine can
see flags; a run's record has none, so that --from needs it anew.

examples:
  musubitraining {command} --config run.toml --photos photos/ --network-dim 32
  musubitraining {command} --from /workspace/my-training-run/run.json --seed 7
  musubitraining {command} --config run.toml --optimizer-args weight_decay=0.01 eps=1e-6
  musubitraining {command} --config run.toml --extra-args="--flag value"
"""

# A key of its own for each setting: those that were not said are not there.
SETTING = "setting:"


class Switch(argparse.Action):
    """A flag, and one that undoes it."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        """As argparse has it."""
        (flag,) = option_strings
        super().__init__([flag, f"--no-{flag[2:]}"], dest, nargs=0, **options)

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Take note of it."""
        setattr(namespace, self.dest, option_string == self.option_strings[0])


class Formatter(argparse.RawDescriptionHelpFormatter):
    """The descriptions as they are, and a switch in few words."""

    def __init__(self, prog: str, **options: Any) -> None:
        """As argparse has it."""
        super().__init__(prog, max_help_position=26, **options)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, Switch):
            return f"--[no-]{action.option_strings[0][2:]}"
        return super()._format_action_invocation(action)

    def _split_lines(self, text: str, width: int) -> list[str]:
        import textwrap

        # No flag is broken in two.
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """One that says what is wrong in one line, and shows no secret with it."""

    def __init__(self, **options: Any) -> None:
        """As argparse has it."""
        super().__init__(allow_abbrev=False, formatter_class=Formatter, **options)

    def error(self, message: str) -> NoReturn:
        """Say it and leave."""
        self.exit(USAGE, f"{self.prog}: error: {without_secrets(message)} (see {self.prog} --help)\n")


def _train(parser: Parser) -> None:
    _of_a_run(parser)
    parser.add_argument("--progress", action=Switch, help="progress bars (by itself in a terminal)")
    _json(parser, "print the events of the run, each as a line of JSON; the log stays on stderr")


def _plan(parser: Parser) -> None:
    _of_a_run(parser)
    _json(parser)


def _of_a_run(parser: Parser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a TOML file that says some of what follows")
    parser.add_argument("--from", dest="record", metavar="FILE", help="repeat a run: its run.json, or its folder")
    for group in run_settings():
        section = parser.add_argument_group(group.title)
        for setting in group.settings:
            options: dict[str, Any] = {"dest": SETTING + setting.key, "default": argparse.SUPPRESS}
            if setting.is_switch:
                options["action"] = Switch
            else:
                options |= {"type": setting.read, "metavar": setting.metavar}
                if setting.takes_several:
                    options["nargs"] = "*"
                if setting.choices:
                    options |= {"choices": setting.choices, "metavar": None}
            section.add_argument(setting.flag, help=setting.about.replace("%", "%%"), **options)


def run_settings() -> list[Group]:
    """What a run can be told."""
    from musubitraining.cli.settings import groups

    return groups()


def _demo(parser: Parser) -> None:
    parser.add_argument(
        "--folder", metavar="DIR", default="musubitraining-demo", help="where everything goes (%(default)s)"
    )
    parser.add_argument("--steps", metavar="N", type=int, default=200, help="training steps (%(default)s)")
    _json(parser)


def _convert(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a LoRA or LoHa as Musubi Tuner has trained it")
    parser.add_argument(
        "destination",
        metavar="DESTINATION",
        nargs="?",
        help="the file to write (beside it, named after the form)",
    )
    parser.add_argument(
        "--form",
        choices=("merged", "separate"),
        default="merged",
        help="merged: for ComfyUI, q, k and v as one module (the default; ends in _comfyui); separate: in diffusers' "
        "naming, which nunchaku needs",
    )
    _json(parser)


def _report(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a training folder, or a run.json")
    parser.add_argument("--to", metavar="FILE", help="where to (report.html in the training folder)")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    _json(parser)


def _watch(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="a training folder; its run may be yet to come")
    parser.add_argument("--progress", action=Switch, help="progress bars (by itself in a terminal)")
    _json(parser, "print the events of the run, each as a line of JSON")


def _gpu(parser: Parser) -> None:
    _json(parser)


def _completion(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def _json(parser: Parser, about: str = "print one JSON object; the log stays on stderr") -> None:
    parser.add_argument("--json", action="store_true", help=about)


# A command's summary, what is said under its flags, and its flags.
COMMANDS: dict[str, tuple[str, str, Callable[[Parser], None]]] = {
    "train": ("make a LoRA of photos", TRAIN_EXAMPLES.format(command="train") + "\n" + EXIT_CODES, _train),
    "plan": (
        "say what a run would meet: every check, what to do, the commands",
        "Nothing is downloaded, and nothing changed but that the output folder is made.\n\n"
        + TRAIN_EXAMPLES.format(command="plan"),
        _plan,
    ),
    "demo": ("train a small LoRA on this machine's CPU", "It needs NumPy and Pillow, and no GPU.", _demo),
    "convert": ("convert a trained LoRA for ComfyUI", "example: musubitraining convert my_lora.safetensors", _convert),
    "report": ("write a run as one HTML page", "It needs no network. It may be made while the run goes on.", _report),
    "watch": (
        "follow a run that another process has started",
        "Ctrl-C ends the watching, not the run. Its exit code is that of the run: 0, 3, 4 or 130; 1 of a killed one.",
        _watch,
    ),
    "gpu": ("say what the NVIDIA driver says of the GPUs", "Without a driver it says why, with exit code 3.", _gpu),
    "completion": (
        "print a script that completes commands in a shell",
        "examples:\n"
        "  musubitraining completion bash > ~/.local/share/bash-completion/completions/musubitraining\n"
        "  musubitraining completion zsh > ~/.zfunc/_musubitraining    # with ~/.zfunc in fpath\n"
        "  musubitraining completion fish > ~/.config/fish/completions/musubitraining.fish",
        _completion,
    ),
}


def parser_for(names: Iterable[str]) -> tuple[Parser, dict[str, Parser]]:
    """The whole parser, with the flags of these commands, and the commands' own."""
    parser = Parser(prog=PROGRAM, description=ABOUT, epilog=f"{EXAMPLES}\n{EXIT_CODES}", usage="%(prog)s COMMAND …")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", prog=PROGRAM, parser_class=Parser
    )
    made = {}
    for name, (summary, epilog, add_flags) in COMMANDS.items():
        usage = "%(prog)s [flags]" if name in ("train", "plan") else None
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=epilog, usage=usage
        )
        if name in names:
            add_flags(command)
            command.add_argument("--traceback", action="store_true", help="of an error show more than a line")
            made[name] = command
    return parser, made


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What the words of a command line say; leaves where they are no usage, or ask for help."""
    # The flags of one command are enough, and those of `train` take a while.
    named = next((word for word in words if not word.startswith("-")), None)
    parser, _ = parser_for([named] if named in COMMANDS else [])
    # After a lone "--" come no flags.
    end = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args([*map(_as_flag, words[:end]), *words[end:]])
    if arguments.version:
        from importlib.metadata import version

        print(PROGRAM, version("TechTrash_MusubiTraining"))
        sys.exit(0)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        sys.exit(USAGE)
    return arguments


def _as_flag(word: str) -> str:
    """A flag as Musubi Tuner writes it, with "_", is the one with "-"."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value
