"""Help that is read from source: it is there at once, where importing what it describes would take seconds."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Mapping, Sequence

from typing_extensions import override

from pera_lightning import _HOMES
from pera_lightning.cli.options.checked import CLASSES
from pera_lightning.cli.options.given import option_words
from pera_lightning.cli.options.known import OF_COMMAND_LINE, TRAINER, short_name, trainer_options
from pera_lightning.cli.options.signatures import Parameter, parameters, summary

_MORE = """\
more:
  --pera.help            the adapter: rank, order, target modules, ...
  --model.help [CLASS]   the model: {models}
  --data.help [CLASS]    the data: {data}
  --trainer.help         Lightning's Trainer: devices, precision, max_epochs, logger, callbacks, ..."""
_ASKED = ("config", "print_config")
_FLAGS = """\
A flag alone counts as true; a list is written [a,b], a mapping {a: 1, b: 2}. In YAML, options of a class stand under
class_path and init_args; `--print_config` writes such a file."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Names such as all-linear stay whole."""

    @override
    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def trainer_help(command: str, words: Sequence[str]) -> str | None:
    """The page that is asked for, of `fit`, `validate`, `test` or `predict`.

    Args:
        command: Which of them.
        words: What stands behind it.

    Returns:
        None where nothing is asked, or something that only the parser knows: a class of the user's own, or an option
        of the Trainer that is a class.
    """
    if "-h" in words or "--help" in words:
        return _command_page(command)
    for option, value in option_words(words):
        if option in ("--pera.help", "--trainer.help"):
            place = TRAINER if option == "--trainer.help" else (_HOMES["PeraCallback"], "PeraCallback")
            return _page(f"pera_lightning {command}", *place, option[2:-5], {})
        if option in ("--model.help", "--data.help"):
            group = option[2:-5]
            name = short_name(value or CLASSES[group][0])
            if name in CLASSES[group]:
                others = "" if value else f"Others: {', '.join(CLASSES[group][1:])}, or your own by class_path."
                return _page(f"pera_lightning {command}", _HOMES[name], name, group, {}, others)
    return None


def tool_help(module: str, name: str, words: Sequence[str], positional: bool) -> str | None:
    """The page of a tool that is a function; None where it is not asked for.

    Args:
        module: Where the function is.
        name: Of the function.
        words: What stands behind its name.
        positional: Whether what has no default is given without a name.
    """
    if "-h" not in words and "--help" not in words:
        return None
    own = {"config": OF_COMMAND_LINE["config"]}
    return _page(f"pera_lightning {name}", module, name, "", own, positional=positional)


def _command_page(command: str) -> str:
    known = trainer_options(command, {})
    own = {name: one for name, one in known.items() if "." not in name and name != "trainer"}
    pera = {name: one for name, one in known.items() if name.startswith("pera.")}
    parser = _parser(f"pera_lightning {command}", "--config FILE [--config FILE ...] [--OPTION VALUE ...]")
    parser.description = _MORE.format(models=", ".join(CLASSES["model"]), data=", ".join(CLASSES["data"]))
    parser.epilog = _FLAGS
    _add(parser, "options", own)
    _add(parser, "adapter (PeraCallback)", pera)
    return parser.format_help().rstrip()


def _page(
    prog: str,
    module: str,
    name: str,
    group: str,
    own: dict[str, Parameter],
    closing: str = "",
    *,
    positional: bool = False,
) -> str:
    usage = "FIRST SECOND [--OPTION VALUE ...]" if positional else "[--OPTION VALUE ...]"
    parser = _parser(prog, usage)
    found = parameters(module, name)
    parser.description = "\n\n".join(part for part in (name if group else "", summary(module, name), closing) if part)
    parser.epilog = _FLAGS
    _add(parser, "options", {f"{group}.{key}" if group else key: one for key, one in (found | own).items()}, positional)
    return parser.format_help().rstrip()


def _parser(prog: str, usage: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog, usage=f"%(prog)s {usage}", add_help=False, formatter_class=_Formatter)


def _add(
    parser: argparse.ArgumentParser, title: str, options: Mapping[str, Parameter], positional: bool = False
) -> None:
    group = parser.add_argument_group(title)
    for name, one in options.items():
        kind = _shown_type(one.annotation)
        default = "required" if one.default is None else f"default: {_shown_default(one.default)}"
        notes = ", ".join(note for note in (kind, "" if name in _ASKED else default) if note)
        text = f"{_plain(one.help)} ({notes})" if notes else _plain(one.help)
        is_word = positional and one.default is None and name not in _ASKED
        metavar = "true|false" if one.is_flag else name.rpartition(".")[2].upper()
        group.add_argument(name if is_word else f"--{name}", metavar=metavar, help=text.strip().replace("%", "%%"))


def _shown_type(annotation: str) -> str:
    if annotation in ("bool", "bool | None", "Optional[bool]"):
        return ""
    text = re.sub(r"(?:Optional|Union)\[(.*)\]$", r"\1", annotation)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda found: found[1].replace("'", "").replace(", ", "|"), text)
    return text.replace(" | None", "").replace(" | ", "|").replace("Sequence[str]", "list").strip()


def _shown_default(default: str) -> str:
    return {"None": "null", "True": "true", "False": "false", "()": "[]"}.get(default, default.strip("'"))


def _plain(text: str) -> str:
    """Text without the signs of reStructuredText."""
    return re.sub(r":\w+:`~?([^`]*\.)?([^`]*)`", r"\2", text).replace("``", "").strip()
