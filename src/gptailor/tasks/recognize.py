"""Which columns make the prompt and which the answer: as the person says, or plain from names and values."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gptailor.errors import DataError, RecipeError, did_you_mean
from gptailor.tasks.cells import holds_lists
from gptailor.tasks.columns import AmbiguousRoleError, ambiguous, listing, named, textual, unplain
from gptailor.tasks.pattern import Piece, Template, bind, columns_of, escape, parse_pattern
from gptailor.tasks.presets import LANGUAGES, PRESETS, Preset
from gptailor.types import RawExample

LOOKED_AT = 2000  # rows that are looked at to tell columns apart
SENTENCE_ENDS = ".?!,;\"')]}。？！"  # all prompts may end with one of these by chance


@dataclass(frozen=True, slots=True)
class CompletionRoles:
    """What the columns of a file mean for completion."""

    preset: str
    template: Template  # over columns
    prompt: tuple[Piece, ...]  # the template's sides, parsed
    short: tuple[Piece, ...]
    completion: tuple[Piece, ...]
    lists: frozenset[str] = frozenset()  # columns whose cells are arrays of texts, to be unpacked
    context: str = ""  # column that is shortened where the whole doesn't fit
    question: str = ""  # column that decides which part of the context is read
    keep_together: tuple[str, ...] = ()  # columns whose equal values stay in one part; (): the prompt
    says: tuple[str, ...] = ()  # what was taken, in words

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns of the prompt."""
        return columns_of(self.prompt)

    @property
    def answer(self) -> tuple[str, ...]:
        """The columns of the answer."""
        return columns_of(self.completion)


def infer_completion(
    columns: Sequence[str],
    rows: Sequence[RawExample],
    *,
    prompt: str | None = None,
    completion: str | None = None,
    preset: str | None = None,
    source: str | None = None,
    target: str | None = None,
) -> CompletionRoles:
    """The template of a file's rows. What the person named wins; the rest must be plain.

    Args:
        columns: All columns there are.
        rows: Some rows; the first 2,000 are looked at.
        prompt: A column, or a template over columns (whatever holds a brace and is no column).
        completion: The same for the answer.
        preset: A name of `PRESETS`.
        source: The column to translate from.
        target: The column to translate into.

    Raises:
        AmbiguousRoleError: several columns fit equally well; it lists them and what to type.
        DataError: a named column doesn't exist, or none fits.
        RecipeError: there is no such preset, or a template can't be read.
    """
    if preset is not None and preset not in PRESETS:
        raise RecipeError(
            f"there is no preset {preset!r}.{did_you_mean(preset, PRESETS)}",
            fix=f"Presets are: {', '.join(PRESETS)}.",
        )
    rows = rows[:LOOKED_AT]
    if source or target:
        preset = preset or "translation"
        prompt, completion = prompt or source, completion or target
    for given, option in ((prompt, "--prompt"), (completion, "--completion")):
        if given is not None and given not in columns and "{" not in given:
            raise DataError(
                f"there is no column {given!r}.{did_you_mean(given, columns)}",
                fix=f"Columns are: {', '.join(columns)}. Choose with {option}, or write a template such as "
                f'{option} "Title: {{title}}".',
            )
    if preset is None and prompt is None and completion is None:
        name, roles = _recognize(columns, rows)
    else:
        name = preset or _preset_of(prompt, completion, columns, rows)
        roles = _assign(name, columns, rows, prompt=prompt, completion=completion)
    template = _template(name, roles, rows)
    if prompt is not None and prompt not in columns:
        template = replace(template, prompt=prompt, optional="", short="")
    if completion is not None and completion not in columns:
        template = replace(template, completion=completion)
    return _roles(name, roles, template, columns, rows)


def _roles(
    name: str,
    roles: Mapping[str, str],
    template: Template,
    columns: Sequence[str],
    rows: Sequence[RawExample],
) -> CompletionRoles:
    """Parses the template and says what was taken."""
    known = PRESETS[name]
    prompt = parse_pattern(template.prompt, columns, where="the prompt")
    answer = parse_pattern(template.completion, columns, where="the completion")
    if not columns_of(answer):
        raise RecipeError(
            f"the template {template.completion!r} of the completion names no column.",
            fix="Name the column of the answer, such as {answer}.",
        )
    inputs = columns_of(prompt)
    answers = columns_of(answer)
    lists = [
        column
        for column in (*inputs, *answers)
        if known.unpacks and holds_lists((row.fields.get(column, "") for row in rows), column in answers)
    ]
    taken = ", ".join(f"{role}={column}" for role, column in roles.items())
    used = [column for column in (*inputs, *answers) if column not in roles.values()]
    says = [f"{name.replace('_', ' ')} ({known.purpose}): {taken or 'template over ' + ', '.join(used)}"]
    says += [
        f"column {column}: several answers, the first is learned and all are references"
        if column in answers
        else f"column {column}: arrays of texts, joined with a space"
        for column in lists
    ]

    def column(role: str) -> str:
        return roles[role] if roles.get(role) in inputs else ""

    return CompletionRoles(
        preset=name,
        template=template,
        prompt=prompt,
        short=parse_pattern(template.short, columns, where="the short prompt"),
        completion=answer,
        lists=frozenset(lists),
        context=column(known.context),
        question=column(known.question),
        keep_together=tuple(found for role in known.keep_together if (found := column(role))),
        says=tuple(says),
    )


# --- which preset, which columns -------------------------------------------------------------------


def _recognize(
    columns: Sequence[str],
    rows: Sequence[RawExample],
    *,
    prompt: str | None = None,
    completion: str | None = None,
) -> tuple[str, dict[str, str]]:
    """The preset whose roles the columns are named for, and the column of each role.

    A column that the person named for one side has a role of that side which it is named for.
    """
    filled = [c for c in columns if any(row.fields.get(c, "").strip() for row in rows)] or list(columns)
    found: dict[str, dict[str, list[str]]] = {}
    for name, preset in PRESETS.items():
        fitting = {role: named(filled, names) for role, names in preset.names.items()}
        for given, answers in ((prompt, False), (completion, True)):
            fitting = fitting if given is None else _with_given(fitting, preset, given, answers=answers)
        if name != "generation" and all(fitting[role] for role in _required(preset)):
            found[name] = {role: fits for role, fits in fitting.items() if fits}
    if not found:
        return _languages(filled, rows, given=prompt or completion)
    most = max(map(len, found.values()))
    best = {name: roles for name, roles in found.items() if len(roles) == most}
    alike = [name for name in ("summarization", "translation") if name in best]
    if len(alike) == 2 and list(best[alike[0]].values()) == list(best[alike[1]].values()):
        use = _one_of_two_uses(best["translation"], rows)
        best = {name: roles for name, roles in best.items() if name == use or name not in alike}
    for name, candidates in best.items():
        for role, fits in candidates.items():
            if len(fits) > 1:
                raise ambiguous(fits, rows, role="completion" if role == PRESETS[name].answer else "prompt")
    chosen = {name: {role: fits[0] for role, fits in fitting.items()} for name, fitting in best.items()}
    name, roles = next(iter(chosen.items()))
    if any(set(other.values()) != set(roles.values()) for other in chosen.values()):
        listed = "\n".join(
            f"  {name.replace('_', ' ')}: {', '.join(f'{r}={c}' for r, c in roles.items())}"
            for name, roles in chosen.items()
        )
        raise AmbiguousRoleError(
            f"the columns fit several uses:\n{listed}",
            role="prompt",
            candidates=list(dict.fromkeys(c for roles in chosen.values() for c in roles.values())),
            fix="Choose with --prompt COLUMN and --completion COLUMN.",
        )
    return name, roles


def _with_given(
    fitting: Mapping[str, list[str]], preset: Preset, given: str, *, answers: bool
) -> dict[str, list[str]]:
    """What fits each role once the given column has one of its side; nothing where it is named for none."""
    own = next((r for r, fits in fitting.items() if given in fits and (r == preset.answer) == answers), None)
    if own is None:
        return {role: [] for role in fitting}
    return {r: [given] if r == own else [c for c in fits if c != given] for r, fits in fitting.items()}


def _required(preset: Preset) -> list[str]:
    return [role for role in preset.names if role != preset.template.optional]


def _one_of_two_uses(roles: Mapping[str, Sequence[str]], rows: Sequence[RawExample]) -> str:
    """One layout, two uses: a summary is much shorter than its text, a translation isn't."""
    return "summarization" if _shrinks(roles, rows) else "translation"


def _shrinks(roles: Mapping[str, Sequence[str]], rows: Sequence[RawExample]) -> bool:
    source, target = (sum(len(row.fields.get(roles[r][0], "")) for row in rows) for r in ("source", "target"))
    return target < source / 2


def _languages(
    columns: Sequence[str], rows: Sequence[RawExample], *, given: str | None
) -> tuple[str, dict[str, str]]:
    """Two columns named for languages are a translation, but no one can tell into which of them.

    Unless the person named one of the two.
    """
    tongues = [column for column in columns if column.strip().lower() in LANGUAGES]
    if len(tongues) == 2 and given in tongues:
        return "translation", {}
    if given is None and len(tongues) > 1:
        one, other = tongues[:2]
        raise AmbiguousRoleError(
            f"{len(tongues)} columns are named for languages:\n{listing(tongues, rows)}",
            role="prompt",
            candidates=tongues,
            fix=f"Choose with --prompt {shlex.quote(one)} --completion {shlex.quote(other)}, "
            "or the other way round.",
        )
    raise DataError(
        "no columns are named for a prompt and its answer.",
        fix=f"{listing(columns, rows)}\nName them with --prompt COLUMN and --completion COLUMN.",
    )


def _assign(
    name: str,
    columns: Sequence[str],
    rows: Sequence[RawExample],
    *,
    prompt: str | None,
    completion: str | None,
) -> dict[str, str]:
    """The column of each role of a preset, where the person named some, or wrote a template for a side."""
    preset = PRESETS[name]
    inputs = [role for role in preset.names if role != preset.answer]
    roles: dict[str, str] = {}
    if inputs and prompt in columns:
        known = [role for role in inputs if named([str(prompt)], preset.names[role])]
        roles[(known or inputs)[0]] = str(prompt)
    answer = completion or (prompt if not inputs else None)
    if answer in columns:
        roles[preset.answer] = str(answer)
    written = {*(inputs if prompt and prompt not in columns else ())}
    written |= {preset.answer} if completion and completion not in columns else set()
    for role, names in preset.names.items():
        if role in roles:
            continue
        needed = role != preset.template.optional and role not in written
        free = [column for column in columns if column not in roles.values()]
        fits = named(free, names) or (textual(free, rows) if needed else [])
        if len(fits) == 1:
            roles[role] = fits[0]
        elif needed:
            raise unplain(fits, columns, rows, role="completion" if role == preset.answer else "prompt")
    return roles


def _preset_of(
    prompt: str | None, completion: str | None, columns: Sequence[str], rows: Sequence[RawExample]
) -> str:
    """The preset that the columns named by the person are the usual names of; plain completion else."""
    if not {side for side in (prompt, completion) if side is not None} <= set(columns):
        return "completion"  # a template
    if prompt is None or completion is None:
        try:
            return _recognize(columns, rows, prompt=prompt, completion=completion)[0]
        except AmbiguousRoleError as error:
            if error.role == ("completion" if prompt is None else "prompt"):
                return "completion"  # of that side one is named: the others aren't asked for
            raise
        except DataError:
            return "completion"
    one, other = (column.strip().lower() for column in (prompt, completion))
    if one in LANGUAGES and other in LANGUAGES:
        return "translation"
    found = [name for name, preset in PRESETS.items() if _is_named_for(preset, one, other)]
    if {"summarization", "translation"} <= set(found):
        return _one_of_two_uses({"source": [prompt], "target": [completion]}, rows)
    return next(iter(found), "completion")


def _is_named_for(preset: Preset, one: str, other: str) -> bool:
    """Whether two names are those of a preset's only input and of its answer."""
    inputs = [role for role in _required(preset) if role != preset.answer]
    return len(inputs) == 1 and one in preset.names[inputs[0]] and other in preset.names[preset.answer]


# --- the template ----------------------------------------------------------------------------------


def _template(name: str, roles: Mapping[str, str], rows: Sequence[RawExample]) -> Template:
    """The preset's template over the columns found; sides whose roles weren't looked for are left empty."""
    preset = PRESETS[name]
    template = preset.template
    if not all(role in roles for role in _required(preset) if role != preset.answer):
        template = replace(template, prompt="", optional="", short="")
    if preset.answer not in roles:
        template = replace(template, completion="")
    tongues = [LANGUAGES.get(roles.get(role, "").strip().lower(), "") for role in ("source", "target")]
    if name == "translation" and all(tongues):
        template = Template(f"{tongues[0]}: {{source}}\n{tongues[1]}:", " {target}")
    if name == "completion" and len(roles) == 2:
        template = _with_own_separator(roles, rows) or template
    return bind(template, roles)


def _with_own_separator(roles: Mapping[str, str], rows: Sequence[RawExample]) -> Template | None:
    """Rows in OpenAI's old layout carry their separators: prompts end alike, completions begin alike.

    Values lose their outer white space, so what all rows have of it is put into the template.
    """
    prompts = [value for row in rows if (value := row.fields.get(roles["prompt"], "")).strip()]
    answers = [value for row in rows if (value := row.fields.get(roles["completion"], "")).strip()]
    ending = _common_beginning([prompt[::-1] for prompt in prompts])[::-1]
    mark = ending.rstrip()[-1:]
    if len(set(prompts)) < 2 or not mark or mark.isalnum() or mark in SENTENCE_ENDS:
        return None
    after = ending[len(ending.rstrip()) :]
    before = _common_beginning(answers)
    blank = before[: len(before) - len(before.lstrip())]
    return Template("{prompt}" + escape(after), escape(blank) + "{completion}")


def _common_beginning(texts: Sequence[str]) -> str:
    if not texts:
        return ""
    low, high = min(texts), max(texts)
    pairs = enumerate(zip(low, high, strict=False))
    return low[: next((i for i, (a, b) in pairs if a != b), min(len(low), len(high)))]
