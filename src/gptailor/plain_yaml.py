"""YAML as people mean it: `no` is a label, `off` is a choice, and only `true` and `false` are neither.

PyYAML reads YAML 1.1, in which yes, no, on and off are truth values, 1e-3 is a text and 2024-01-01 a date.
Here a scalar is what YAML 1.2's core schema says, and a key is always the text that stands there,
once.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

# https://yaml.org/spec/1.2.2/#103-core-schema, but that 017 stays a text: it is a code, not a quantity.
SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)\.[0-9]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?(?:0|[1-9][0-9]*)[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  (none of YAML 1.1's; its own are put in below)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
                if key.value in seen:  # PyYAML would keep the last and say nothing
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version would read as something else."""


for _name, (_pattern, _first) in SCALARS.items():
    for _kind in (_Loader, _Dumper):
        _begins = ["" if letter == "\0" else letter for letter in _first]
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _begins)


def load_yaml(text: str) -> Any:
    """The value of a document.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    return yaml.load(text, Loader=_Loader)


def dump_yaml(values: Any) -> str:
    """A document that `load_yaml` reads back, in the order of the keys; other readers of YAML, too."""
    written: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    if load_yaml(written) != values:  # PyYAML loses some unusual line ends; escaped, they survive
        written = yaml.dump(values, Dumper=_Dumper, sort_keys=False)
    return written
