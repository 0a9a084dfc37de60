"""Forms made again from what a bundle holds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gptailor.tasks.cells import Mend
from gptailor.tasks.chat import ChatRoles
from gptailor.tasks.chat_form import ChatForm, PreferenceForm
from gptailor.tasks.completion_form import CompletionForm, restore_completion_roles
from gptailor.tasks.form import PlainForm, TextForm
from gptailor.tasks.preference import PreferenceRoles
from gptailor.tasks.rendering import choose_template
from gptailor.tasks.windows import Encode


def restore_form(
    state: Mapping[str, Any],
    *,
    max_tokens: int,
    encode: Encode,
    end: str,
    control: Sequence[str],
    mend: Mend | None,
) -> TextForm:
    """The form that a bundle's state was made of."""
    kind, longest = state["kind"], int(state["max_new_tokens"])
    if kind == "plain":
        return PlainForm(longest, mend)
    if kind == "chat":
        given = state["template"]
        template = choose_template(
            given["source"],
            control=control,
            tokens=given["tokens"],
            now=datetime.fromisoformat(given["now"]),
        )
        pair = state["pair"] and restore_completion_roles(state["pair"])
        roles = ChatRoles(
            state["layout"], state["turns"], pair or None, state["system"], tuple(state["beside"])
        )
        return ChatForm(roles, template, longest, mend)
    return CompletionForm(restore_completion_roles(state), end, max_tokens, longest, encode, mend)


def restore_preference_form(state: Mapping[str, Any], chat: ChatForm) -> PreferenceForm:
    """The form that a preference run's rows were read by, from the bundle's state and its chat."""
    kept = dict(state["preference"])
    roles = PreferenceRoles(**{**kept, "scores": tuple(kept["scores"])})
    return PreferenceForm(roles, chat.template, chat.max_new_tokens, chat.mend)
