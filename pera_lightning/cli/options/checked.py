"""Options of the Trainer's commands are looked through before anything is imported: a typo costs no seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pera_lightning import _HOMES
from pera_lightning.cli.options.class_paths import check_class_paths
from pera_lightning.cli.options.given import CONFIG_OPTIONS, Given, given_options, has_unread_config, option_words
from pera_lightning.cli.options.known import DATA_MODULES, MODELS, short_name, trainer_options
from pera_lightning.cli.options.signatures import Parameter, parameters
from pera_lightning.cli.options.stray_words import check_stray_words
from pera_lightning.cli.options.values import check_values
from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError
from pera_lightning.storage.remote import local_path

CLASSES = {"model": MODELS, "data": DATA_MODULES}
_ASKING = ("help", "print_config")


def check_trainer_options(command: str, words: Sequence[str]) -> None:
    """Refuse what `fit`, `validate`, `test` or `predict` cannot make anything of.

    What only the classes themselves know, such as options of the user's own, is left to the parser.

    Raises:
        ConfigError: A config is missing or no YAML, or there is no such option, class or value.
    """
    given = given_options(words)
    for one in given:
        if (group := _group_of_class(one)) is not None:
            _check_class(group, one)
    known = trainer_options(command, chosen_classes(given))
    check_names(given, known)
    check_stray_words(words, known)
    check_values(given, known)
    missing = [f"--{group}" for group in CLASSES if not any(one.key.partition(".")[0] == group for one in given)]
    if asks_for_help(words, given) or has_unread_config(words):
        return
    check_class_paths(given)
    if missing:
        raise missing_options(missing, f"`pera_lightning {command} --help` says what it takes")


def check_fit_of(tool: str, words: Sequence[str]) -> None:
    """The same of a fit that a tool is told of; it is described by a file.

    Args:
        tool: Its name.
        words: `--config` and overrides as `fit` takes them.

    Raises:
        ConfigError: As `check_trainer_options`; or no config is named, or one is a URL.
    """
    configs = [value for option, value in option_words(words) if option in CONFIG_OPTIONS and value]
    if not configs:
        raise ConfigError(
            f"{tool} needs to know which fit.",
            got="no --config",
            expected="a YAML file as `fit` takes it",
            fix=f"pera_lightning {tool} --config configs/quickstart.yaml",
        )
    for config in configs:
        local_path(config, "--config")
    check_trainer_options("fit", words)


def asks_for_help(words: Sequence[str], given: Sequence[Given]) -> bool:
    """Whether a command is to tell of its options and to do nothing."""
    return "-h" in words or any(one.key.endswith(_ASKING) for one in given)


def missing_options(names: Sequence[str], asked: str) -> ConfigError:
    """The error of options that have to be given.

    Args:
        names: As they are typed.
        asked: How to get help.
    """
    return ConfigError(
        "Options are missing.",
        got=f"no {' and no '.join(names)}",
        expected=f"{' and '.join(names)}, as words or in a file: --config FILE.yaml",
        fix=asked,
    )


def chosen_classes(given: Sequence[Given]) -> dict[str, str]:
    """What `model` and `data` are set to, where they are; of classes of ours the short names."""
    return {group: short_name(str(one.value)) for one in given if (group := _group_of_class(one)) is not None}


def _group_of_class(given: Given) -> str | None:
    group, _, name = given.key.partition(".")
    return group if group in CLASSES and name in ("", "class_path") and given.value is not None else None


def check_names(given: Sequence[Given], known: Mapping[str, Parameter]) -> None:
    """Refuse options that do not exist; those of groups none of which is known are left to others.

    Args:
        given: What was given.
        known: The options there are.

    Raises:
        ConfigError: One does not exist.
    """
    groups = {name.partition(".")[0] for name in known if "." in name}
    for one in given:
        group, _, rest = one.key.partition(".")
        name = f"{group}.{rest.partition('.')[0]}" if rest else group
        if name in known or (rest and group not in groups and group in known) or one.key.endswith(_ASKING):
            continue
        # The parser takes the beginning of a name for the name, but within classes.
        if one.is_word and group not in CLASSES and any(other.startswith(name) for other in known):
            continue
        raise ConfigError(
            "There is no such option.",
            got=one.place if one.is_word else f"{name} ({one.place})",
            expected=_described(group if group in groups else "", known),
            fix=did_you_mean(
                (f"--{other}" if one.is_word else other for other in _meant(name, known)),
                "--help says which there are",
            ),
        )


def _meant(name: str, known: Mapping[str, Parameter]) -> list[str]:
    """Options of this very name in another group, or spelt nearly so in its own."""
    group, _, tail = name.rpartition(".")
    if same := [other for other in (*known, *_of_ours()) if other.rpartition(".")[2] == tail]:
        return same
    beside = [other.removeprefix(f"{group}.") for other in known if other.rpartition(".")[0] == group]
    return [f"{group}.{other}" if group else other for other in near(tail, beside)]


def _of_ours() -> list[str]:
    classes = ((group, one) for group, names in CLASSES.items() for one in names)
    return [f"{group}.{name}" for group, one in classes for name in parameters(_HOMES[one], one)]


def _described(group: str, known: Mapping[str, Parameter]) -> str:
    names = [name.partition(".")[2] for name in known if name.startswith(f"{group}.")] if group else []
    return f"an option of {group}: {', '.join(names)}" if names else "an option that the command has"


def _check_class(group: str, given: Given) -> None:
    """Refuse short names that are not ours; of other classes only Python knows where they are."""
    chosen = str(given.value)
    ours = chosen.removeprefix("pera_lightning.")
    is_path = "/" in chosen or chosen.endswith((".yaml", ".yml", ".json"))
    if ours in _HOMES or is_path or "." in ours or chosen in ("", "null"):
        return
    names = CLASSES[group]
    raise ConfigError(
        f"There is no such class for {group}.",
        got=f"{chosen} ({given.place})",
        expected=f"{', '.join(names)}, or the class_path of your own: package.module.Class",
        fix=did_you_mean(near(ours, names), "name the class with its module, which Python must be able to import"),
    )
