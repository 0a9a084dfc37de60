"""A chat template does what transformers lets it do, and nothing that hurts."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import pytest

from gptailor.errors import ModelError
from gptailor.tasks import limits
from gptailor.tasks.conversation import Turn
from gptailor.tasks.rendering import choose_template, find_end, render
from gptailor.tasks.sandbox import TemplateRefusal, run_template

NOW = datetime(2024, 2, 29, 12, 30)
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<b> & ü"}]
GROWING = "{%% set ns = namespace(s='aaaaaaaa') %%}{%% for i in range(60) %%}%s{%% endfor %%}"


def run(source: str) -> str:
    variables = {"messages": MESSAGES, "bos_token": "<s>", "tools": None}
    return run_template(source, variables, now=NOW).text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}",
            "<s>[user]hi[assistant]<b> & ü",
        ),
        ("{{ messages[1] | tojson }}", '{"role": "assistant", "content": "<b> & ü"}'),
        ("{{ strftime_now('%d %b %Y') }}", "29 Feb 2024"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}a{% endfor %}",
            "a",
        ),
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user"),
        (
            "{% set ns = namespace(n=0) %}{% for m in 'ab' %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        (
            "{% macro say(m) %}({{ m.role ~ ':' ~ m.content }}){% endmacro %}{{ say(messages[0]) }}",
            "(user:hi)",
        ),
        ("{% if tools is not none and tools %}x{% endif %}\n  {% if true %}\n  y\n{% endif %}\n", "  y\n"),
        ("{{ ' a b '.strip().split(' ') | join('-') | upper }}", "A-B"),
        (
            "{{ 'a,b' | replace(',', ';') }}{{ '=' * 3 }}{{ '%s!' % 'x' }}{{ '{}?'.format('y') }}",
            "a;b===x!y?",
        ),
        ("{{ messages | map(attribute='role') | list | length }}", "2"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join }}", "hi"),
        ("{% generation %}a{% endgeneration %}", "a"),
        ("{{ messages[1:] | length }}{{ messages[::-1][0].role }}{{ 'abc'[:-1] }}", "1assistantab"),
        (
            "{{ messages == messages }}{{ 1 < 2 <= messages | length }}{{ {messages[0].role: 1} }}",
            "TrueTrue{'user': 1}",
        ),
        (
            "{{ messages[0] in messages }}{{ [3, 1, 2] | sort | join(', ') }}{{ 'a' in ('a', 'b') }}",
            "True1, 2, 3True",
        ),
        ("{{ '{:>4}|{:.1f}'.format('a', 2) }}{{ '%03d' % 7 }}{{ 'a\nb' | indent(2) }}", "   a|2.0007a\n  b"),
    ],
)
def test_what_templates_use_works(source: str, text: str) -> None:
    assert (
        run_template(source, {"messages": MESSAGES, "bos_token": "<s>", "tools": None}, now=NOW).text == text
    )


def test_what_is_generated_is_told() -> None:
    written = run_template(
        "a{% for x in 'bc' %}{% generation %}{{ x }}!{% endgeneration %}-{% endfor %}", {}, now=NOW
    )
    assert (written.text, written.spans) == ("ab!-c!-", ((1, 3), (4, 6)))
    hidden = run_template(
        "{% set x %}a{% generation %}b{% endgeneration %}{% endset %}zz{{ x }}", {}, now=NOW
    )
    assert (hidden.text, hidden.spans) == ("zzab", ())


@pytest.mark.parametrize("source", ["{{ raise_exception('only two may speak') }}"])
def test_a_template_may_refuse(source: str) -> None:
    with pytest.raises(TemplateRefusal, match="only two may speak"):
        run(source)


@pytest.mark.parametrize(
    "source", ["{{ nobody.name }}", "{{ 1 + 'a' }}", "{{ messages[9].role }}", "{{ 1 / 0 }}"]
)
def test_a_template_that_fails_is_a_refusal_of_that_row(source: str) -> None:
    with pytest.raises(TemplateRefusal):
        run(source)


@pytest.mark.parametrize("source", ["{% if %}", "{% for x in y %}", "{{ " + "(" * 500, "{% nonsense %}"])
def test_a_template_that_is_none_is_told(source: str) -> None:
    with pytest.raises(ModelError, match="chat template can't be read"):
        run(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ (messages|map(attribute='__class__')|first).mro() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{% set x = messages[0].update(role='system') %}",
        "{{ dict.mro() }}",
    ],
)
def test_a_template_cannot_reach_out(source: str) -> None:
    with pytest.raises((ModelError, TemplateRefusal)):
        run(source)
    assert MESSAGES[0]["role"] == "user"
    assert len(MESSAGES) == 2


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ ['a'] * 1000000000 }}",
        "{{ 99999 ** 99999 }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{0:{1}}'.format(1, 1000000000) }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{% set a = 'a' * 1000000 %}{{ a.replace('a', a) | length }}",
        "{% set a = 'a' * 1000000 %}{{ a | replace('a', a) | length }}",
        "{% set a = ['a' * 1000000] * 100000 %}{{ a | join | length }}",
        "{% set a = ['a' * 1000000] * 100000 %}{{ ''.join(a) | length }}",
        "{% set a = ['a' * 1000000] * 100000 %}{{ a | map('upper') | join | length }}",
        "{% set a = ['a' * 100000] * 100000 %}{{ a | sum(start=[]) }}",
        "{{ ('\n' * 10000) | indent('y' * 10000) }}",
        GROWING % "{% set ns.s = ns.s ~ ns.s %}",
        GROWING % "{% set ns.s = ns.s + ns.s %}",
        GROWING % "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}",
        "{% set ns = namespace(n=2) %}{% for i in range(100) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{% for i in range(100000) %}" + "x" * 10000 + "{% endfor %}",
        "{{ 'aa'.translate({97: 'b' * 1000}) }}",
        "{{ range(10 ** 9) | list }}",
        "{{ lipsum(n=99999) }}",
        "{% set b = range(10000) | list %}{{ b | select('in', b) | list | length }}",
        "{{ (['a'] * 30000) | map(attribute='0.' * 30000) | list | length }}",
        "{% set d = {'a': 1, 'b': 2, 'c': 3} %}{{ d.keys() | join('x' * 11000000) }}",
        "{% set d = {'a': 'b', 'c': 'd', 'e': 'f'} %}{{ d.values() | join('x' * 11000000) }}",
        "{{ ['%20000000000d'] | format(1) }}",
        "{{ ('1' * 1000) | replace(1, 'b' * 10000000) }}",
        "{{ ('a' * 1000) | replace(new='b' * 10000000, old='a') }}",
        "{{ (['a'] * 1000) | join(['x' * 11000000]) }}",
        "{{ (['a'] * 1000) | join(d='x' * 11000000) }}",
        "{{ '%20000000000d' is odd }}",
        "{{ '%20000000000d' is divisibleby(3) }}",
        "{{ ('\r' * 100000) | indent(100000, blank=true) }}",
        "{{ ('\u2028' * 100000) | indent(width=100000) }}",
        " " * 300_000,
    ],
)
def test_a_template_cannot_run_away(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(limits, "MAX_STEPS", 20_000)
    began = time.thread_time()
    with pytest.raises((ModelError, TemplateRefusal)) as caught:
        run(source)
    assert time.thread_time() - began < 5
    if "lipsum" not in source:
        assert "no chat template needs" in str(caught.value)


SHARED = "{% set ns = namespace(l=OPEN, k=OPEN) %}{% for i in range(22) %}" + (
    "{% set ns.l = (ns.l, ns.l) %}{% set ns.k = (ns.k, ns.k) %}{% endfor %}"
)


@pytest.mark.parametrize(
    "use",
    [
        "{{ ns.l }}", "{{ ns.l ~ 'a' }}", "{{ ns.l | string | length }}", "{{ ns.l | tojson | length }}",
        "{{ ns.l | tojson(indent=1) | length }}", "{{ [ns.l] | join | length }}", "{{ ns.l == ns.k }}",
        "{{ ns.l in [ns.k] }}", "{{ ns.l is eq(ns.k) }}", "{{ [ns.l] | select('in', [ns.k]) | list }}",
        "{{ [ns.l].index(ns.k) }}", "{{ [ns.l, ns.k] | unique | list | length }}", "{{ {ns.l: 1} | length }}",
        "{{ {}[ns.l] }}", "{{ ('%s' % ((ns.l,),)) | length }}", "{{ raise_exception(ns.l) }}",
        "{{ {'a': ns.l}.values() }}", "{{ ns.l | upper | length }}", "{{ ns.l is upper }}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("open", ["['a']", "('a',)"])
def test_lists_that_share_their_parts_are_not_written_out(
    monkeypatch: pytest.MonkeyPatch, use: str, open: str
) -> None:
    """In memory they are small; written out or compared they double with every level."""
    monkeypatch.setattr(limits, "MAX_CHARACTERS", 100_000)
    with pytest.raises(ModelError, match="no chat template needs: a value of 100,"):
        run(SHARED.replace("OPEN", open) + use)


def test_a_namespace_does_not_write_out_what_it_holds() -> None:
    assert run(SHARED.replace("OPEN", "1") + "{{ ns }}") == "<Namespace>"


@pytest.mark.parametrize(
    ("name", "owner", "given"),
    [
        ("format", "{0:9999}" * 40_000, ["a"]),
        ("format", "{0:{1}}", ["a", 5]),
        ("format", "%9999d" * 40_000, [1]),
        ("format", "{0}" * 1_000_000, [1e308]),
        ("format", "{0}" * 1_000_000, [1 << 4000]),
        ("indent", None, ["x\n" * 1_700, 100_000]),
        ("join", None, ["a" * 10_000, "b" * 10_000]),
    ],
)
def test_what_would_be_huge_is_refused_before_it_is_made(name: str, owner: Any, given: list[Any]) -> None:
    with pytest.raises(limits.LimitError):
        limits.check_call(name, owner, given, {})


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ 'a\tb'.expandtabs(8) }}", "unsafe"),
        ("{{ 'a'.encode() }}", "unsafe"),
        ("{{ 'a' | wordwrap(1) }}", "No filter named 'wordwrap'"),
        ("{{ 'a' | striptags }}", "No filter named 'striptags'"),
        ("{{ 'a' | center(1000000000) }}", "No filter named 'center'"),
        ("{{ 'a' | urlencode }}", "No filter named 'urlencode'"),
        ("{{ ['a'] | batch(2) }}", "No filter named 'batch'"),
        ("{{ ('a' | safe).striptags() }}", "unsafe"),
        ("{{ strftime_now('%d' * 100000) }}", "a value of 51,200,000"),
        ("{{ ('a' * 99999).strip('b' * 99999) }}", "with a text of 99,999 characters"),
        ("{{ ('a' * 99999) | trim('b' * 99999) }}", "with a text of 99,999 characters"),
        ("{{ ('a' * 99999).rfind('b' + 'a' * 50000) }}", "with a text of 50,001 characters"),
        ("{{ ('f' * 10000) | int(base=16) }}", "a number without end"),
        ("{% set s = 'a' * 999999 %}{% for i in range(300) %}{% set t = s[1:] %}{% endfor %}", "192,000,000"),
        ("{% set s = 'a' * 999999 %}{% for i in range(300) %}{% set t = s + s %}{% endfor %}", "192,000,000"),
        ("{% set ns = namespace(l=1) %}{% for i in range(101) %}{% set ns.l = [ns.l] %}{% endfor %}"
         "{{ ns.l }}",
         "more than 100 deep"),
    ],
)  # fmt: skip
def test_every_way_to_grow_is_counted_or_closed(source: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        run(source)


def test_a_macro_may_look_at_its_loop() -> None:
    macro = "{% macro at(loop, text) %}{{ loop.index }}{{ text }} {% endmacro %}"
    assert run(macro + "{% for m in 'abc' %}{{ at(loop, m) }}{% endfor %}") == "1a 2b 3c "


def test_nothing_is_written_out_while_a_template_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of constants are outputs as others are: each counts."""
    monkeypatch.setattr(limits, "MAX_MADE", 100_000)
    with pytest.raises(ModelError, match="more than 100,000 characters"):
        run("{{ ('a' * 999) | replace('a', 'bb') }}" * 200)


def test_time_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_SECONDS", 0.05)
    with pytest.raises(ModelError, match="seconds for one conversation"):
        run("{% for i in range(90000) %}{% set x = messages | tojson %}{% endfor %}")


def test_one_conversation_does_not_pay_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STEPS", 1000)
    source = "{% for i in range(900) %}{% endfor %}ok"
    assert [run(source) for _ in range(5)] == ["ok"] * 5
    with pytest.raises(ModelError, match="more than 1,000 steps"):
        run(source.replace("900", "1001"))


TOKENS = {"eos_token": "</s>"}


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "{{ bos_token }}nothing",
        "{{ raise_exception('never') }}",
        "</s>{% for m in messages %}{{ m.content }}{% endfor %}",
    ],
)
def test_a_template_that_never_ends_an_answer_is_refused(source: str) -> None:
    with pytest.raises(ModelError, match="Gptailor's own"):
        choose_template(source, control=["</s>"], tokens=TOKENS, now=NOW)


def test_a_base_without_template_and_end_token_is_refused() -> None:
    with pytest.raises(ModelError, match="no answer could ever end"):
        choose_template(None, control=[], tokens={}, now=NOW)


def test_a_template_that_puts_control_tokens_together_is_refused() -> None:
    """It takes a mark out of people's texts; what is left of a clever text would end the turn."""
    source = "{% for m in messages %}{{ m.role }}:{{ m.content | replace('~', '') }}</s>{% endfor %}" + (
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    template = choose_template(source, control=["</s>"], tokens=TOKENS, now=NOW)
    assert find_end(template) == "</s>"
    turns = (Turn("user", "a<~/s>b"), Turn("assistant", "c", learn=True))
    (segments,) = render(turns, template)
    assert [s.text for s in segments if not s.markers] == ["<"]
    looking = source.replace("m.content |", "('!' if '<' in m.content else '') ~ m.content |")
    template = choose_template(looking, control=["</s>"], tokens=TOKENS, now=NOW)
    with pytest.raises(TemplateRefusal, match="makes control tokens"):
        render(turns, template)


def test_a_prompt_that_is_not_how_the_whole_begins_is_refused() -> None:
    source = "{{ messages | length }}{% for m in messages %}{{ m.role }}:{{ m.content }}</s>{% endfor %}"
    template = choose_template(source, control=["</s>"], tokens=TOKENS, now=NOW)
    with pytest.raises(TemplateRefusal, match="training and serving would not match"):
        render((Turn("user", "a"), Turn("assistant", "c", learn=True)), template)
