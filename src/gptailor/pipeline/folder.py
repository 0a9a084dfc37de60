"""The run folder: whose it is, whether it is finished, and when it may be used again."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import yaml

from gptailor.errors import RecipeError, RunError
from gptailor.launch import write_atomically
from gptailor.recipe import Recipe, build_recipe, differences, dump_recipe

REQUEST = "request.yaml"  # the recipe as asked; recipe.yaml holds it as resolved


def claim_folder(recipe: Recipe, *, overwrite: bool = False) -> Path:
    """The folder of this run; an old one is moved aside if the person said --overwrite."""
    folder = Path(recipe.out) if recipe.out else default_folder(recipe)
    if folder.exists() and not folder.is_dir():
        raise RunError("is a file, not a run folder.", where=str(folder), fix="Choose another with --out.")
    if overwrite and folder.exists():
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        folder.rename(folder.with_name(f"{folder.name}.old-{stamp}"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"can't be made: {error.strerror}.", where=str(folder), fix="Choose another with --out."
        ) from None
    return folder


def default_folder(recipe: Recipe) -> Path:
    """runs/<file stem>."""
    location = recipe.data.train.removeprefix("hub:").rstrip("/")
    name = Path(location).name.removesuffix(".gz")
    return Path("runs") / (Path(name).stem or "run")


def next_to(run: Path) -> Path:
    """RUN-2 for RUN, or the next number that is free."""
    number = 2
    while (candidate := run.with_name(f"{run.name}-{number}")).exists():
        number += 1
    return candidate


def open_for_fit(folder: Path, recipe: Recipe) -> bool:
    """True if the folder holds this very run, finished. Writes the request into a fresh folder.

    Raises:
        RunError: the folder holds another run, or something else.
    """
    request = folder / REQUEST
    if not request.exists():
        others = [path.name for path in folder.iterdir() if path.name != ".lock"]
        if others:
            raise RunError(
                f"is not a run folder and not empty (it holds {', '.join(sorted(others)[:3])}).",
                where=str(folder),
                fix="Choose another folder with --out.",
            )
        write_atomically(request, dump_recipe(recipe))
        return False
    differing = differences(read_request(folder), recipe)
    if differing:
        raise RunError(
            "\n  ".join(["holds a run with other settings:", *differing]),
            where=str(folder),
            fix="Choose another folder with --out, or --overwrite (the old run is moved aside).",
        )
    return (folder / "report.json").exists()


def refuse_other_data(folder: Path, data_hash: str) -> None:
    """Raises RunError if the run was begun with other data than what the files hold now."""
    summary = folder / "data" / "summary.json"
    if not summary.exists():
        return
    then = json.loads(summary.read_text(encoding="utf-8")).get("data_hash")
    if then != data_hash:
        raise RunError(
            "the data files changed since this run was begun.",
            where=str(folder),
            fix="Put the old files back, choose another folder with --out, or use --overwrite.",
        )


def read_request(folder: Path) -> Recipe:
    """The recipe a run was asked for."""
    path = folder / REQUEST
    try:
        return build_recipe(yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise RecipeError(
            f"can't be read: {error}", where=str(path), fix="Choose another folder with --out."
        ) from None
