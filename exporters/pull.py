"""What `models pull` does: official weights from the network become a certified file that `--model
NAME` finds on every later run.

Two things are kept, so that neither is fetched or made twice: the weights among the downloads, and
the exported file in the folder of pulled models. One thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from exporters.command import Say, export_model, missing_package
from exporters.download import fetch, is_cached
from exporters.entry import Published
from exporters.zoo import find
from pipeline.errors import ModelError, RackfocusError, UsageError
from stages.decoders.seal import DIGEST, digest, read_card
from stages.model_files import pulled_file

if TYPE_CHECKING:
    from exporters.download import Progress

    Bar = Callable[[], AbstractContextManager[Progress]]


def pull_models(names: Sequence[str], *, overwrite: bool, say: Say, bar: Bar) -> None:
    """Make each model one that `--model NAME` finds. A model that fails holds up no other.

    Args:
        names: names of the zoo; all are known before anything is fetched.
        overwrite: export those again that are here.
        say: told what was fetched, written or found.
        bar: shows one download.

    Raises:
        UsageError: a name that is unknown or has no published weights; or the torch extra is
            missing, and the weights were kept.
        RackfocusError: weights that cannot be had, an export whose certificate fails, or a pulled
            file that was changed; of the kind of the first, with the texts of all.
    """
    failed: list[RackfocusError] = []
    for name, published in [(name, _published(name)) for name in dict.fromkeys(names)]:
        try:
            _pull(name, published, overwrite=overwrite, say=say, bar=bar)
        except RackfocusError as error:
            failed.append(error)
    if failed:
        raise type(failed[0])("\n".join(map(str, failed))) from failed[0]


def _published(name: str) -> Published:
    official = find(name).official
    if official is None:
        raise UsageError(
            f"nobody has published weights of {name}; `run.py export {name} --weights FILE` writes "
            "a file with yours"
        )
    return official


def _pull(name: str, published: Published, *, overwrite: bool, say: Say, bar: Bar) -> None:
    path = pulled_file(name)
    if path.is_file() and not overwrite:
        _check(name)
        say(f"{name}: already here, {path}; --overwrite exports it again")
        return
    if not is_cached(published.url):
        say(f"{name}: {published.url}")
    with bar() as progress:
        weights = fetch(published.url, published.sha256, progress=progress)
    missing = missing_package()
    if missing is not None:
        raise UsageError(
            f"{name}: the weights are kept at {weights}; to make a model of them, {missing} "
            'is needed, which is not installed: pip install -e ".[torch]", then pull again'
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be made: {error.strerror}") from error
    export_model(name, str(path), weights="official", frames=None, overwrite=overwrite, say=say)
    say(f"{name}: ready; use it with --model {name}")


def _check(name: str) -> None:
    """Refuse a pulled file that is damaged, rather than call it here."""
    path = pulled_file(name)
    try:
        card = read_card(path)
        holds = card.get(DIGEST) == digest(path.read_bytes(), card)
    except (ModelError, OSError) as error:
        raise ModelError(f"{path}: {error}; --overwrite makes it anew") from error
    if not holds:
        raise ModelError(
            f"{path} is not the file that was certified: it was changed after the export; "
            "--overwrite makes it anew"
        )
