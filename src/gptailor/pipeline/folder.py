"""The run folder: whose it is, whether it is finished, and when it may be used again."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gptailor.cache import content_key
from gptailor.data.folders import hash_folder
from gptailor.data.source import is_stream
from gptailor.errors import ModelError, RecipeError, RunError
from gptailor.launch import in_use, one_writer, write_atomically
from gptailor.models.names import Base, resolve_base
from gptailor.pipeline.finished import FOUND, REPORT, REQUEST, SEARCH, is_searching
from gptailor.plain_yaml import load_yaml
from gptailor.recipe import Recipe, TuneSettings, build_recipe, differences, dump_recipe, load_recipe
from gptailor.types import Bundle

DESKTOP = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave anywhere
CHECKPOINTS, ENVIRONMENT = "checkpoints", "environment.json"
LOG = "metrics.jsonl"  # a line per step and per validation
REFERENCE = "data/reference"  # what the base gave the answers of preferences
DATA_HASH = "data_hash"
TAUGHT = "data/taught.npz"  # hashes of the texts that taught the run
FILES = ("train", "target", "validation", "validation_target", "test", "test_target", "fix")  # of a recipe
UNWRITABLE = re.compile("[\ud800-\udfff]")  # bytes of a name that aren't UTF-8
LEFTOVER = re.compile(r"\..+\.\d+(\.temporary)?")  # .name.PID, beside what would have been name


def claim_folder(recipe: Recipe, *, overwrite: bool = False) -> Path:
    """The folder of this run; an old one is moved aside if the person said --overwrite.

    Raises:
        RunError: it can't be made or moved, it holds something else, or another process is writing there.
    """
    folder = Path(recipe.out) if recipe.out else default_folder(recipe)
    if folder.exists() and not folder.is_dir():
        raise RunError("is a file, not a run folder.", where=str(folder), fix="Choose another with --out.")
    _refuse_among_data(recipe, folder)
    try:
        begun = (folder / REQUEST).exists() or (folder / SEARCH).exists()
        if overwrite and begun:  # a folder that holds no run stays where it is
            _refuse_moving_away(recipe, folder)
            stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")
            with contextlib.ExitStack() as held:
                held.enter_context(one_writer(folder))
                if (folder / SEARCH).exists():  # several processes may search there together
                    held.enter_context(in_use(folder / SEARCH, alone=True))
                if os.name == "nt":  # it moves no folder in which a file is open; its locks keep nobody out
                    held.close()
                place = folder if folder.is_symlink() else folder.resolve()  # of a link, the link alone
                place.rename(place.with_name(f"{place.name}.old-{stamp}"))
                if not folder.is_symlink() and folder.resolve() != place:
                    folder = place  # "." is the folder that was moved
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"can't be made: {error.strerror or error}.",
            where=str(folder),
            fix="Choose another with --out.",
        ) from None
    _refuse_foreign(folder)  # before anything of ours lies among it
    return folder


def _refuse_moving_away(recipe: Recipe, folder: Path) -> None:
    """Raises RunError where the run would lose what it is made from: it lies in the folder to be moved."""
    given = {f"data.{name}": getattr(recipe.data, name) for name in FILES} | {"base": recipe.base}
    for name, location in given.items():
        path = Path(location) if location else None
        if path is not None and path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise RunError(
                f"lies in {folder}, which --overwrite would move aside.",
                where=f"{name}: {location}",
                fix="Choose another folder for the new run with --out, or copy it out first.",
            )


def _refuse_among_data(recipe: Recipe, folder: Path) -> None:
    """Raises RunError where the run's own files would be read as data."""
    for role in FILES:
        data = Path(getattr(recipe.data, role) or "-")
        if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
            raise RunError(
                f"lies in {data}, whose files are the data: the run's own would be read, too.",
                where=str(folder),
                fix="Choose a folder outside of it with --out.",
            )


def default_folder(recipe: Recipe) -> Path:
    """runs/<file stem>."""
    location = recipe.data.train.removeprefix("hub:").rstrip("/")
    name = Path(location).name.removesuffix(".gz")
    stem = UNWRITABLE.sub("_", Path(name).stem)
    return Path("runs") / (stem or "run")


def next_to(run: Path, asked: Recipe, *, search: bool = False) -> Path:
    """RUN-2 for RUN, or the next number that is free or where the same fit or search was begun."""
    begun, number = _search_begun if search else _fit_begun, 2
    while (candidate := run.with_name(f"{run.name}-{number}")).exists() and not begun(candidate, asked):
        number += 1
    return candidate


def _fit_begun(folder: Path, asked: Recipe) -> bool:
    if not (folder / REQUEST).exists() or (folder / REPORT).exists() or (folder / SEARCH).exists():
        return False
    return not differences(as_fitted(read_request(folder)), as_fitted(asked))


def _search_begun(folder: Path, asked: Recipe) -> bool:
    if not (folder / SEARCH).exists() or (folder / FOUND).exists():
        return False
    if not (folder / SEARCH / REQUEST).exists():  # another process reads the data
        return True
    return not differences(read_request(folder / SEARCH), as_searched(asked))


def as_searched(recipe: Recipe) -> Recipe:
    """What makes a search the same one; its budget may grow, and its place change."""
    tune = recipe.tune.model_copy(update={"trials": 1, "time": None, "storage": None})
    return recipe.model_copy(update={"tune": tune, "out": None})


def run_of(recipe_file: Path) -> Path | None:
    """The run whose own recipe this is: `fit RUN/recipe.yaml` writes beside it. None for any other recipe."""
    run = recipe_file.resolve().parent  # it may be named from inside the run
    return run if recipe_file.name == "recipe.yaml" and (run / REQUEST).exists() else None


def open_for_fit(folder: Path, recipe: Recipe, say: Callable[[str], None] = lambda _: None) -> bool:
    """True if the folder holds this very run, finished. Writes the request into a fresh folder.

    A folder where nothing was made yet (a misspelled column or base ended the run) counts as fresh.

    Raises:
        RunError: the folder holds another run, or something else.
    """
    if not (folder / REQUEST).exists():
        write_atomically(folder / REQUEST, dump_recipe(recipe))
        return False
    differing = differences(as_fitted(read_request(folder)), as_fitted(recipe))
    anew = not holds_work(folder) and (bool(differing) or _began_with_other_data(folder, recipe))
    if anew:
        if not differing:
            say(f"{folder} was begun with other data, and nothing was made yet: it begins anew")
        for name in (
            ENVIRONMENT,
            "data/summary.json",
            TAUGHT,
            LOG,
            "trackers.json",
        ):
            (folder / name).unlink(missing_ok=True)
        for name in (REFERENCE, "tracking/tensorboard"):  # likelihoods and curves of another recipe
            shutil.rmtree(folder / name, ignore_errors=True)
        write_atomically(folder / REQUEST, dump_recipe(recipe))
        return False
    if differing:
        raise RunError(
            "\n  ".join(["holds a run with other settings:", *differing]),
            where=str(folder),
            fix="Choose another folder with --out, or --overwrite (the old run is moved aside).",
        )
    sweep(folder)
    finished = (folder / REPORT).exists()
    data_hash = hash_files(recipe) if finished else None
    if data_hash is not None:
        refuse_other_data(folder, data_hash)
    if finished and any(is_stream(place) for role in FILES if (place := getattr(recipe.data, role))):
        raise RunError(
            "holds a finished run, and whether a pipe holds the same data can't be told.",
            where=str(folder),
            fix="Choose another folder with --out, or --overwrite (the old run is moved aside).",
        )
    return finished


def _began_with_other_data(folder: Path, recipe: Recipe) -> bool:
    """Whether the data files were mended since; where they can't be hashed alone, that shows up later."""
    then = _data_hash_of(folder / "data" / "summary.json")
    now = hash_files(recipe) if then else None
    return now is not None and now != then


def _refuse_foreign(folder: Path) -> None:
    """Raises RunError where a folder without a run holds something else."""
    if (folder / REQUEST).exists():
        return
    found = [path.name for path in folder.iterdir() if path.name not in (".lock", SEARCH, *DESKTOP)]
    if others := sorted(name for name in found if not name.startswith(f".{REQUEST}.")):  # begun and killed
        raise RunError(
            f"is not a run folder and not empty (it holds {', '.join(others[:3])}).",
            where=str(folder),
            fix="Choose another folder with --out.",
        )


def as_fitted(recipe: Recipe) -> Recipe:
    """The recipe without what a fit doesn't read."""
    return recipe.model_copy(update={"tune": TuneSettings()})


def refuse_fitted(folder: Path) -> None:
    """Raises RunError where the last fit of a search would: it would be found out only at the end."""
    if (folder / REQUEST).exists() and not (folder / SEARCH).exists() and holds_work(folder):
        raise RunError(
            "holds a run that `fit` made; a search ends with a fit of its own.",
            where=str(folder),
            fix=f"Choose another, such as --out {folder}-tuned, or --overwrite (the old run is moved aside).",
        )


def refuse_search(folder: Path) -> None:
    """Raises RunError where a search has not ended yet, whose last fit would find another run there."""
    if is_searching(folder):
        raise RunError(
            "holds a search for settings that hasn't ended.",
            where=str(folder),
            fix="Choose another folder with --out, or end it: the same `gptailor tune` goes on.",
        )


def holds_work(folder: Path) -> bool:
    """Whether a run got as far as a whole checkpoint or a model."""
    whole = (folder / CHECKPOINTS).glob("**/step-*/manifest.json")
    return (folder / "model").exists() or any(whole)


def base_revision_of(folder: Path) -> str | None:
    """The revision of the base that a run was begun with; None where none was begun."""
    try:
        values = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
        return str(values["base_revision"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sweep(folder: Path) -> None:
    """Removes what a killed writer left half done in a run folder; call it as the only writer."""
    for path in [*folder.glob(".*"), *(folder / "data").glob(".*")]:
        if not LEFTOVER.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def settled_recipe(recipe: Recipe, base: Base, *, data: Mapping[str, Any], **settled: Any) -> Recipe:
    """The recipe with what was decided written in, so that it repeats the run from any folder."""
    located = {
        key: str(Path(place).resolve())
        for key in FILES
        if (place := getattr(recipe.data, key)) is not None and Path(place).exists()
    }
    own = {"base": str(Path(recipe.base).expanduser().resolve())} if base.kind in ("folder", "run") else {}
    revision = base.revision if base.kind == "hub" else recipe.revision
    settings = recipe.data.model_copy(update={**located, **data})
    return recipe.model_copy(update={"data": settings, "revision": revision, **own, **settled})


def base_of(bundle: Bundle) -> Base:
    """The base that a run began with, from whatever folder it is asked for.

    Raises:
        ModelError: it can't be found, or has changed since.
    """
    recipe = bundle.path.parent / "recipe.yaml"  # which names it by its whole path
    name = load_recipe(recipe).base if recipe.is_file() else bundle.base
    base = resolve_base(name, revision=bundle.base_revision or None)
    if bundle.base_revision not in ("", base.revision):
        raise ModelError(
            "has changed since the run began with it.",
            where=f"base {bundle.base!r}",
            fix="Put its old files back, or fit again.",
        )
    return base


def hash_files(recipe: Recipe) -> str | None:
    """The data hash that `prepare` would find, without reading a row; None where there is more than files."""
    hashes = file_hashes(recipe)
    return None if hashes is None else content_key(*hashes.values())


def file_hashes(recipe: Recipe) -> dict[str, str] | None:
    """A hash of each file or folder of the recipe, by its role; None where there is more than files."""
    data = recipe.data
    places = {role: Path(place) for role in FILES if (place := getattr(data, role)) is not None}
    hashes = {}
    for role, path in places.items():
        found = hash_of(path, tree=recipe.task == "language")
        if found is None:
            return None
        hashes[role] = found
    return hashes


def hash_of(path: Path, *, tree: bool) -> str | None:
    """The hash of a file or folder, `tree`: with all below; None for a pipe, or what is not there."""
    if path.is_dir():
        return hash_folder(path, tree=tree)
    if not path.is_file():  # a pipe that was read is empty now, and waited for for ever
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_other_data(
    folder: Path,
    data_hash: str,
    *,
    fix: str = "Put the old files back, choose another folder with --out, or use --overwrite.",
) -> None:
    """Raises RunError if the run, or the trial that trained it, had other data than the files hold now."""
    summary = folder / "data" / "summary.json"
    then = _data_hash_of(summary) if summary.exists() else _data_hash_of(folder / ENVIRONMENT) or data_hash
    if then != data_hash:
        raise RunError(
            "the data files changed since this run was begun." if then else f"{summary} is damaged.",
            where=str(folder),
            fix=fix,
        )


def _data_hash_of(file: Path) -> str | None:
    try:
        found: str | None = json.loads(file.read_text(encoding="utf-8")).get(DATA_HASH)
    except (OSError, ValueError, AttributeError):
        found = None
    return found


def read_request(folder: Path) -> Recipe:
    """The recipe a run was asked for."""
    path = folder / REQUEST
    try:
        return build_recipe(load_yaml(path.read_text(encoding="utf-8")), where=str(path))
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise RecipeError(
            f"can't be read: {error}", where=str(path), fix="Choose another folder with --out."
        ) from None
