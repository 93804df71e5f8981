"""Which versions of other packages work: asked where a feature uses one, so that nothing else needs it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata, util

from packaging.version import InvalidVersion, Version

from pera_lightning.errors import ConfigError

OLDEST = {
    "accelerate": "1.10.0",
    "bitsandbytes": "0.50.0",
    "gguf": "0.18.0",
    "google-re2": "1.1.20250722",
    "lm-eval": "0.4.13",
    "peft": "0.18.0",
    "torch": "2.8.0",
}
"""The oldest versions that the tests run against; pyproject.toml says the same."""
MODULES = {"google-re2": "re2", "pyyaml": "yaml"}
"""What packages are imported as, where that is not their name."""
EXCLUDES_FROZEN = {"lightning": "2.6.0"}
"""Its `DeepSpeedStrategy` can leave frozen parameters out of checkpoints."""
READS_GGUF = {"transformers": "5.6.0"}
"""Reads the tokenizers of GGUF files rightly: older ones make other ids of a text, without a word."""
SHARDS_INTEGERS = {"torch": "2.12.0"}
"""Its `fully_shard` takes parameters that are no floating numbers: weights in 4 bits."""
COMPROMISED = ("2.6.2", "2.6.3")
"""Releases of lightning that steal credentials when they are imported (GHSA-w37p-236h-pfx3)."""


def require(
    feature: str, *packages: str, extra: str | None = None, oldest: Mapping[str, str] = OLDEST, instead: str = ""
) -> None:
    """Check that what a feature needs is installed and not too old, without importing it.

    Args:
        feature: What needs the packages, as the subject of a sentence: "Reading GGUF files".
        *packages: Names of distributions.
        extra: The extra of this package that brings them, if there is one.
        oldest: The oldest version of each that will do, where the feature needs a newer one than others.
        instead: What else can be done, as it goes on behind the command.

    Raises:
        ConfigError: One is missing or too old.
    """
    unfit = [package for package in packages if not is_installed(package) or is_outdated(package, oldest)]
    if unfit:
        found = ", ".join(map(describe, unfit))
        wanted = ", ".join(f"{package} {oldest[package]} or newer" for package in unfit)
        ranges = " ".join(f'"{package}>={oldest[package]}"' for package in unfit) if extra is None else own_extra(extra)
        raise ConfigError(
            f"{feature} needs a package that is missing or too old.",
            got=found,
            expected=wanted,
            fix=f"pip install {ranges}{instead}",
        )


def own_extra(extra: str) -> str:
    """An extra of this package, as it is written behind `pip install`."""
    return f'"pera-lightning[{extra}]"'


def is_installed(package: str) -> bool:
    """Whether a package can be imported, however old it is."""
    try:
        return util.find_spec(MODULES.get(package, package.replace("-", "_"))) is not None
    except ValueError:  # imported, and without a spec
        return True


def is_outdated(package: str, oldest: Mapping[str, str] = OLDEST) -> bool:
    """Whether the installed version of a package is older than this; not if it has no version."""
    try:
        return Version(Version(metadata.version(package)).base_version) < Version(oldest[package])
    # Builds under another name, and folders on the path.
    except (metadata.PackageNotFoundError, InvalidVersion):
        return False


def describe(package: str) -> str:
    """Name and version of a package, or that it is not there."""
    try:
        return f"{package} {metadata.version(package)}" if is_installed(package) else f"{package} is not installed"
    except metadata.PackageNotFoundError:
        return f"{package} of an unknown version"


def refuse_compromised_lightning() -> None:
    """Look at the installed lightning before anything imports it.

    Raises:
        ConfigError: It is one of `COMPROMISED`.
    """
    try:
        found = metadata.version("lightning")
    except metadata.PackageNotFoundError:
        return
    if found in COMPROMISED:
        raise ConfigError(
            "This release of lightning steals credentials as soon as it is imported.",
            got=f"lightning {found}, security advisory GHSA-w37p-236h-pfx3",
            expected=f"any release but {' and '.join(COMPROMISED)}",
            fix='pip install --upgrade "lightning!=2.6.2,!=2.6.3"; where it was imported before, treat every password, '
            "key and token on that machine as stolen",
        )
