"""GitHub's expressions as the runner of workflows evaluates them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.workflows.expressions import Context, ExpressionError

VALUES = {
    "inputs": {"target": "Prod", "rollback": False, "empty": ""},
    "needs": {"copy": {"result": "skipped"}},
    "vars": {"ROLE_prod": "arn:1"},
    "github": {"ref": "refs/heads/main", "event": {}},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("inputs.target", "Prod"),
        ("inputs.target == 'prod'", True),
        ("inputs.target != 'prod' || 'it''s'", "it's"),
        ("!inputs.rollback && !inputs.empty", True),
        ("vars[format('ROLE_{0}', 'prod')]", "arn:1"),
        ('contains(fromJSON(\'["success", "skipped"]\'), needs.copy.result)', True),
        ("contains('staging', 'AGIN')", True),
        ("!github.event.pull_request.head.repo.fork", True),
        ("(github.ref == 'refs/heads/main') && 3 == 3", True),
        ("always() && !failure() && success() && !cancelled()", True),
        ("null || false || 'last'", "last"),
    ],
)
def test_expression(text: str, value: Any) -> None:
    """Each form that the workflows use."""
    assert Context(VALUES).evaluate(text) == value


@pytest.mark.parametrize(
    "text", ["steps.x", "hashFiles('a')", "inputs.", "'a", "a b", "(true", "true)", "inputs[", "", "format("]
)
def test_unknown_expression(text: str) -> None:
    """What is not known or malformed is an error."""
    with pytest.raises(ExpressionError):
        Context(VALUES).evaluate(text)


@pytest.mark.parametrize(
    ("condition", "failed", "holds"),
    [
        (None, False, True),
        (None, True, False),
        ("inputs.target == 'prod'", True, False),
        ("always()", True, True),
        ("${{ !inputs.rollback }}", False, True),
        ("!cancelled() && needs.copy.result == 'skipped'", True, True),
        (True, False, True),
    ],
)
def test_condition(condition: Any, failed: bool, holds: bool) -> None:
    """Without a status function, an `if` needs success."""
    assert Context(VALUES, failed).holds(condition) is holds


def test_text_is_filled() -> None:
    """Values stand in texts as GitHub writes them."""
    assert (
        Context(VALUES).fill("to ${{ inputs.target }}: ${{ inputs.rollback }}${{ vars.NONE }}")
        == "to Prod: false"
    )
