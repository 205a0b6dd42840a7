"""From command-line arguments to a config, with one clear line for what is wrong."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from kdjax.experiment import published
from kdjax.runtime import launchers
from kdjax.runtime.errors import UserError, unknown
from kdjax.runtime.files import expand


class Command(NamedTuple):
    """What the command line asks for.

    Attributes:
        config: plain nested dictionaries.
        workdir: the working folder.
        stages: the stages to which the run is confined; empty means all.
        dry_run: whether to print the graph instead.
        coordinator: HOST:PORT of the first of several processes.
        processes: how many there are.
        process: which of them this is.
        wait: how many seconds to wait for the others.
    """

    config: dict[str, Any]
    workdir: Path
    stages: tuple[str, ...] = ()
    dry_run: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    wait: int = 300


def parse_flags(argv: Sequence[str]) -> Command | None:
    """Returns what the command line asks for.

    Args:
        argv: program name and arguments.

    Returns:
        The command, or None if help was asked for.

    Raises:
        UserError: whatever absl, config flags or the config file find wrong.
    """
    argv, path = _find_config(_with_flag_files(argv))
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=list(argv)
    )
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_list("stages", [], "", flag_values=values)
    flags.DEFINE_bool("dry-run", False, "", flag_values=values)
    flags.DEFINE_string("coordinator", None, "", flag_values=values)
    flags.DEFINE_integer("processes", None, "", flag_values=values)
    flags.DEFINE_integer("process", None, "", flag_values=values)
    flags.DEFINE_integer("wait", 300, "", flag_values=values, lower_bound=1)
    flags.DEFINE_bool("help", False, "", flag_values=values, short_name="h")
    reading = published.importable(path) if path else contextlib.nullcontext()
    try:
        with reading:
            rest = values(list(argv))
    except flags.Error as error:
        # A config file's own error comes as a line near the end of a quoted traceback:
        # JAX adds notes of its own behind it.
        lines = str(error).strip().splitlines()
        raised = f"{UserError.__module__}.{UserError.__qualname__}: "
        own = [line for line in lines if line.startswith(raised)] or lines
        raise UserError(own[-1].removeprefix(raised)) from error
    # Whatever else a config file raises, or an override of a key that it lacks.
    except Exception as error:
        line = f"config: {type(error).__name__}: {error}".replace("\n", " ")
        raise _unknown_key(argv) or UserError(line) from error
    if values.help:
        return None
    if rest[1:]:
        raise UserError(f"unknown argument {rest[1]!r}; see --help")
    if path is None:
        raise UserError("--config is missing; see --help")
    if not values.workdir:
        raise UserError("--workdir is missing; see --help")
    if not isinstance(values.config, ConfigDict):
        raise _no_config(path, values.config)
    coordinator: str | None = values.coordinator
    processes: int | None = values.processes
    process: int | None = values.process
    if coordinator is not None and processes is not None and process is not None:
        launchers.check(coordinator, processes, process)
    elif (coordinator, processes, process) != (None, None, None):
        raise UserError("--coordinator, --processes and --process go together")
    return Command(
        values.config.to_dict(),
        expand(values.workdir),
        tuple(values.stages),
        bool(values["dry-run"].value),
        coordinator,
        processes,
        process,
        values.wait,
    )


def _with_flag_files(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with those that stand in files in place of `--flagfile`.

    Raises:
        UserError: such a file cannot be read.
    """
    values = flags.FlagValues()
    try:
        words = values.read_flags_from_files(list(argv[1:]), force_gnu=False)
    except (flags.Error, OSError, UnicodeDecodeError) as error:
        line = str(error).removeprefix("ERROR:: ")
        raise UserError(f"--flagfile: {line}") from error
    return [*argv[:1], *words]


def _find_config(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """Returns the arguments with the file that `--config` means, and this file.

    `--config` comes first: config flags want it before all `--config.KEY=VALUE`.
    """
    found, first, rest = None, list(argv[:1]), []
    words = iter(argv[1:])
    for word in words:
        flag, equals, value = word.partition("=")
        if flag not in ("--config", "-config"):
            rest.append(word)
            continue
        if not equals:  # the value is a word of its own
            value = next(words, "")
        name, colon, arg = value.partition(":")
        if name:
            found = published.find(name)
            first.append(f"{flag}={found}{colon}{arg}")
        else:
            rest.append(f"{flag}={value}" if value or equals else flag)
    return [*first, *rest], found


def _no_config(path: Path, value: Any) -> UserError:
    """Returns the error for what config flags have in the place of a config."""
    try:
        # An OSError of the file's own, such as of another file that it reads, is kept
        # until the config is used.
        value["seeds"]
    except OSError as error:
        return UserError(f"config: {path}: {error.__cause__ or error}")
    except Exception:
        pass
    kind = type(value).__name__
    return UserError(f"config: {path}: get_config() returns no ConfigDict but a {kind}")


def _unknown_key(argv: Sequence[str]) -> UserError | None:
    """Returns the error for the first override of a key that the config lacks."""
    prefix = "--config."
    overrides = [arg for arg in argv if arg.startswith(prefix)]
    if not overrides:
        return None
    # Without the overrides, and without a value that follows one as its own word.
    kept = [
        arg
        for before, arg in zip(("", *argv), argv, strict=False)
        if arg not in overrides
        and not (before in overrides and "=" not in before and arg[:1] != "-")
    ]
    parsed = parse_flags(kept)
    for arg in overrides:
        part: object = parsed.config if parsed else {}
        for key in arg.removeprefix(prefix).split("=")[0].split("."):
            if not isinstance(part, Mapping) or key not in part:
                choices = part if isinstance(part, Mapping) else ()
                return unknown(f"key of {arg!r}", key, choices)
            part = part[key]
    return None
