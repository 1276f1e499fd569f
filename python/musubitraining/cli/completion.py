"""Scripts that complete the command line in a shell, made from its parser."""

from __future__ import annotations

from dataclasses import dataclass

from musubitraining.cli.arguments import COMMANDS, PROGRAM, parser_for


@dataclass(frozen=True, kw_only=True)
class _Flag:
    """A flag, with what may follow it.

    Attributes:
        words: the flag, and the one that undoes it.
        about: the first of its help.
        choices: the words that it takes, where these are all.
        takes_value: another word follows it.
    """

    words: tuple[str, ...]
    about: str
    choices: tuple[str, ...]
    takes_value: bool


def script(shell: str) -> str:
    """The script for "bash", "zsh" or "fish"."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _commands() -> dict[str, tuple[list[_Flag], tuple[str, ...]]]:
    """By command: its flags, and the words that it takes besides, where these are all."""
    _, commands = parser_for(COMMANDS)
    found = {}
    for name, command in commands.items():
        flags, words = [], tuple[str, ...]()
        for action in command._actions:
            choices = tuple(map(str, action.choices or ()))
            if not action.option_strings:
                words += choices
                continue
            about = (action.help or "").replace("%%", "%").partition(";")[0].partition(". ")[0]
            flags.append(
                _Flag(
                    words=tuple(word for word in action.option_strings if word.startswith("--")),
                    about=about if "%(" not in about else about.partition(" (")[0],
                    choices=choices,
                    takes_value=action.nargs != 0,
                )
            )
        found[name] = (flags, words)
    return found


def _cases(choose: str) -> tuple[str, str, str]:
    """What bash and zsh share: after a flag its choices, its other words none; after a command its flags or words."""
    after_flags, flags_of, words_of = [], [], []
    for name, (flags, words) in _commands().items():
        for flag in flags:
            if flag.choices:
                after_flags.append(
                    f"        {name}:{flag.words[0]}) {choose.format(' '.join(flag.choices))}; return ;;"
                )
        every = " ".join(word for flag in flags for word in flag.words)
        flags_of.append(f"        {name}) {choose.format(every)} ;;")
        if words:
            words_of.append(f"        {name}) {choose.format(' '.join(words))} ;;")
    return "\n".join(after_flags), "\n".join(flags_of), "\n".join(words_of)


def _bash() -> str:
    after_flags, flags_of, words_of = _cases('COMPREPLY=($(compgen -W "{}" -- "$current"))')
    names = " ".join(COMMANDS)
    return f"""\
# bash completion of {PROGRAM}
_{PROGRAM}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} command=${{COMP_WORDS[1]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        COMPREPLY=($(compgen -W "{names} --help --version" -- "$current"))
        return
    fi
    case $command:$previous in
{after_flags}
    esac
    if [[ $current == -* ]]; then
        case $command in
{flags_of}
        esac
        return
    fi
    case $command in
{words_of}
    esac
}}
# Without a word of ours: files.
complete -o default -F _{PROGRAM} {PROGRAM}
"""


def _zsh() -> str:
    after_flags, flags_of, words_of = _cases("compadd -- {}")
    about = "\n".join(f"            {name}:{_quoted(summary)}" for name, (summary, *_) in COMMANDS.items())
    return f"""\
#compdef {PROGRAM}
# zsh completion of {PROGRAM}
_{PROGRAM}() {{
    local command=$words[2] previous=$words[CURRENT-1]
    if (( CURRENT == 2 )); then
        local -a commands=(
{about}
        )
        _describe command commands
        return
    fi
    case $command:$previous in
{after_flags}
    esac
    if [[ $PREFIX == -* ]]; then
        case $command in
{flags_of}
        esac
        return
    fi
    case $command in
{words_of}
        *) _files ;;
    esac
}}
if [[ $funcstack[1] == _{PROGRAM} ]]; then
    _{PROGRAM} "$@"
else
    compdef _{PROGRAM} {PROGRAM}
fi
"""


def _fish() -> str:
    lines = [f"# fish completion of {PROGRAM}"]
    begins = f"complete -c {PROGRAM} -n __fish_use_subcommand"
    lines.append(f"{begins} -f -l help -d {_quoted('show the help')}")
    lines.append(f"{begins} -f -l version -d {_quoted('print the version')}")
    for name, (summary, *_) in COMMANDS.items():
        lines.append(f"{begins} -f -a {name} -d {_quoted(summary)}")
    for name, (flags, words) in _commands().items():
        within = f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {name}'"
        for flag in flags:
            for word in flag.words:
                takes = (
                    f" -x -a {_quoted(' '.join(flag.choices))}" if flag.choices else " -r" if flag.takes_value else ""
                )
                lines.append(f"{within} -l {word[2:]}{takes} -d {_quoted(flag.about)}")
        if words:
            lines.append(f"{within} -f -a {_quoted(' '.join(words))}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A word of fish and zsh, which have a way each to escape."""
    return "'" + text.replace("\\", "").replace("'", "`") + "'"
