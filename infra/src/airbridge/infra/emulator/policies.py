"""IAM's decision, as AWS documents it: an explicit denial wins, then anything allowed, else refused.

Source: AWS IAM user guide, "Policy evaluation logic" and "IAM JSON policy elements: Condition operators".
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Decision(enum.Enum):
    """Decision of a set of policies on a request."""

    ALLOWED = "allowed"
    DENIED = "denied"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Request:
    """One call: who does what to what, and the condition keys that come with it."""

    principal: str
    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


def decide(
    request: Request, identity: Iterable[Mapping[str, Any]], resource: Iterable[Mapping[str, Any]] = ()
) -> Decision:
    """The decision of a principal's own policies and of the resource's, in the same account."""
    effects = [
        _effect(statement, request, resource_policy=False)
        for policy in identity
        for statement in _statements(policy)
    ]
    effects += [
        _effect(statement, request, resource_policy=True)
        for policy in resource
        for statement in _statements(policy)
    ]
    if Decision.DENIED in effects:
        return Decision.DENIED
    return Decision.ALLOWED if Decision.ALLOWED in effects else Decision.NOTHING


def _statements(policy: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _listed(policy.get("Statement", []))


def _effect(statement: Mapping[str, Any], request: Request, *, resource_policy: bool) -> Decision:
    concerned = (
        _names(statement, "Action", request.action.lower(), lower=True)
        and _names(statement, "Resource", request.resource)
        and (not resource_policy or _is_principal(statement, request.principal))
        and _conditions_hold(statement.get("Condition", {}), request.context)
    )
    if not concerned:
        return Decision.NOTHING
    return Decision.ALLOWED if statement["Effect"] == "Allow" else Decision.DENIED


def _names(statement: Mapping[str, Any], element: str, value: str, *, lower: bool = False) -> bool:
    if f"Not{element}" in statement:
        return not _names({element: statement[f"Not{element}"]}, element, value, lower=lower)
    patterns = _listed(statement.get(element, []))
    return any(_like(value, pattern.lower() if lower else pattern) for pattern in patterns)


def _is_principal(statement: Mapping[str, Any], principal: str) -> bool:
    named = statement.get("Principal", {})
    if named == "*":
        return True
    patterns = _listed(named.get("AWS", []))
    root = f"arn:aws:iam::{principal.split(':')[4]}:root"
    return any(pattern in {"*", principal, root} for pattern in patterns)


def _conditions_hold(conditions: Mapping[str, Mapping[str, Any]], context: Mapping[str, str]) -> bool:
    return all(
        _condition_holds(operator, context.get(key), [str(value) for value in _listed(values)])
        for operator, tests in conditions.items()
        for key, values in tests.items()
    )


def _condition_holds(operator: str, actual: str | None, expected: list[str]) -> bool:
    optional = operator.endswith("IfExists")
    # The emulator's keys have one value each.
    name = operator.removesuffix("IfExists").removeprefix("ForAnyValue:")
    negated = name.replace("Not", "", 1) in _OPERATORS and "Not" in name
    test = _OPERATORS.get(name.replace("Not", "", 1) if negated else name)
    if test is None:
        raise NotImplementedError(f"the emulator does not know the condition operator {operator}")
    if actual is None:
        return optional or negated
    holds = any(test(actual, value) for value in expected)
    return not holds if negated else holds


def _like(value: str, pattern: str) -> bool:
    # IAM has the wildcards * and ? only: a bracket is itself.
    return fnmatch.fnmatchcase(value, pattern.replace("[", "[[]"))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


_OPERATORS: Mapping[str, Callable[[str, str], bool]] = {
    "StringEquals": lambda actual, expected: actual == expected,
    "StringLike": _like,
    "ArnEquals": _like,
    "ArnLike": _like,
    "Bool": lambda actual, expected: actual.lower() == expected.lower(),
}
