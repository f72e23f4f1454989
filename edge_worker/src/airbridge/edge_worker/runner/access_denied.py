"""Explanation of an access that S3 denied to a task: who was denied what, and which setting grants it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

_DENIED: Final = frozenset({"AccessDenied", "403"})
# AWS names the role in its message if bucket and role are of one account.
_ROLE: Final = re.compile(r"assumed-role/([\w+=,.@-]{1,64})/")
_LONGEST_CHAIN: Final = 20


def explain(error: BaseException | None) -> str | None:
    """Return a sentence for the task's log if `error`, or one that it came from, is of S3 and denies access. Raises nothing."""
    # DAG code may have made the error, and the task's end is still to be reported.
    with suppress(Exception):
        return _explanation(error)
    return None


def _explanation(error: BaseException | None) -> str | None:
    for each in _chain(error):
        if _code_of(each) not in _DENIED or (call := _call_of(each)) is None:
            continue
        client, operation, parameters = call
        if client.meta.service_model.service_name == "s3":
            bucket = parameters.get("Bucket", "?")
            return (
                f"S3 denied {operation} on bucket {bucket!r} to {_role(each, client)}; in AWS the environment file grants access: "
                f"list s3://{bucket}/PREFIX in data_write of the pool (to write and read) or in data of the region (to read)"
            )
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_LONGEST_CHAIN):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _code_of(error: BaseException) -> str | None:
    """Return the code of an error of AWS's; None for any other. Such an error needs botocore, which most tasks do not load."""
    botocore = sys.modules.get("botocore.exceptions")
    if botocore is None or not isinstance(error, botocore.ClientError):
        return None
    found: str | None = error.response.get("Error", {}).get("Code")
    return found


def _call_of(error: BaseException) -> tuple[Any, str, Mapping[str, Any]] | None:
    """Return client, operation and parameters of the call of botocore's that raised the error."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) == ("botocore.client", "_make_api_call"):
            found = frame.f_locals
            return found["self"], str(found["operation_name"]), found["api_params"]
        trace = trace.tb_next
    return None


def _role(error: BaseException, client: Any) -> str:
    """Return the role that was denied, by AWS's message or by STS."""
    found = _ROLE.search(str(error)) or _ROLE.search(_identity(client))
    return f"the role {found[1]}" if found else "the task's role"


def _identity(client: Any) -> str:
    """Return the ARN of a client's credentials, or an empty string if STS does not answer soon."""
    import botocore.session
    from botocore.config import Config

    try:
        credentials = client._get_credentials().get_frozen_credentials()  # noqa: SLF001 - the client's, whatever chose them
        sts = botocore.session.Session().create_client(
            "sts",
            region_name=client.meta.region_name,
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            aws_session_token=credentials.token,
            config=Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1}),
        )
        return str(sts.get_caller_identity()["Arn"])
    except Exception:  # noqa: BLE001 - it is for an explanation; the task has failed already
        return ""
