"""From command-line arguments to a config, with one clear line for what is wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from kdjax.errors import UserError, unknown


def parse(argv: Sequence[str]) -> tuple[dict[str, Any], Path] | None:
    """Returns the config as plain dictionaries and the working folder.

    Args:
        argv: program name and arguments.

    Returns:
        Config and folder, or None if help was asked for.

    Raises:
        UserError: whatever absl, config flags or the config file find wrong.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=list(argv)
    )
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_bool("help", False, "", flag_values=values, short_name="h")
    try:
        rest = values(list(argv))
    except flags.Error as error:
        # A config file's own error comes as the last line of a quoted traceback.
        line = str(error).strip().splitlines()[-1]
        raise UserError(line.removeprefix("kdjax.errors.UserError: ")) from error
    # Whatever else a config file raises, or an override of a key that it lacks.
    except Exception as error:
        line = f"config: {type(error).__name__}: {error}".replace("\n", " ")
        raise _unknown_key(argv) or UserError(line) from error
    if values.help:
        return None
    if rest[1:]:
        raise UserError(f"unknown argument {rest[1]!r}; see --help")
    for name in ("config", "workdir"):
        if not values[name].value:
            raise UserError(f"--{name} is missing; see --help")
    if not isinstance(values.config, ConfigDict):
        path = Path(config_flags.get_config_filename(values["config"]))
        found = sorted(set(path.parent.glob("*.py")) - {path.parent / "common.py"})
        raise unknown("config", str(path), found)
    return values.config.to_dict(), Path(values.workdir)


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
    parsed = parse(kept)
    for arg in overrides:
        found: Any = parsed[0] if parsed else {}
        for key in arg.removeprefix(prefix).split("=")[0].split("."):
            if not isinstance(found, Mapping) or key not in found:
                choices = found if isinstance(found, Mapping) else ()
                return unknown(f"key of {arg!r}", key, choices)
            found = found[key]
    return None
