"""Policies are decided as AWS does: with the resource, the conditions, and the resource's own policy.

moto, when it enforces IAM, decides on the resource `*` for every service but S3, ignores conditions in a role's
policies and the policies of sessions; it applies bucket policies, their conditions ignored, even when it enforces
nothing, so that a TLS-only policy locks every caller out; and it has no queue policies.

Two things differ from AWS on purpose. The key `test` is the account's administrator, which stands in for the operator of
Terraform and for the services (EC2, ECS) that hand out roles. And every call counts as having come over TLS.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import xmltodict
from moto import settings
from moto.core.authorization import ActionAuthenticatorMixin
from moto.iam.access_control import IAMPolicy, PermissionResult
from moto.s3.models import FakeBucket, s3_backends
from moto.sqs.models import sqs_backends
from moto.sts.models import sts_backends

from airbridge.infra.emulator.policies import Decision, Request, decide
from airbridge.infra.emulator.targets import call_action, resource_arn, s3_action

ADMINISTRATOR = "test"


class Recorder:
    """Called actions by service, as material for a policy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._actions: dict[str, set[str]] = {}
        self.file: Path | None = None

    def record(self, service: str, action: str) -> None:
        """Note one call."""
        with self._lock:
            known = self._actions.setdefault(service, set())
            if action in known:
                return
            known.add(action)
            if self.file is not None:
                ordered = {name: sorted(actions) for name, actions in sorted(self._actions.items())}
                self.file.write_text(json.dumps(ordered, indent=2) + "\n")


recorder = Recorder()


def apply() -> None:
    """Replace moto's authorisation."""
    mixin: Any = ActionAuthenticatorMixin
    mixin._authenticate_and_authorize_action = _authorise  # noqa: SLF001  # it is moto's own hook that is replaced
    bucket: Any = FakeBucket
    bucket.get_permission = _no_opinion


def _no_opinion(_self: Any, _action: str, _resource: str) -> PermissionResult:
    """Bucket policies are decided in `_authorise`, with everything else."""
    return PermissionResult.NEUTRAL


def _authorise(response: Any, iam_request_class: Any, resource: str = "*") -> None:
    credential = _credential(response.headers)
    if credential is None:
        return
    key, region, service = credential
    action, targets = _action_and_targets(response, service, region, resource)
    recorder.record(_IAM_NAMES.get(service, service), action)
    enforced = ActionAuthenticatorMixin.request_count >= settings.INITIAL_NO_AUTH_ACTION_COUNT
    if not enforced or key == ADMINISTRATOR or action == "GetCallerIdentity":
        return
    for target in targets:
        _require_permission(response, iam_request_class, action, service, target)


def _require_permission(response: Any, request_class: Any, action: str, service: str, target: str) -> None:
    request = request_class(
        account_id=response.current_account,
        method=response.method,
        path=response.raw_path,
        data=response.data,
        body=response.raw_body,
        headers=response.headers,
        action=action,
    )
    access_key = request._access_key  # noqa: SLF001  # moto resolves the caller there
    principal = _principal(response.current_account, access_key)
    name = f"{_IAM_NAMES.get(service, service)}:{action}"
    # What S3 is given in a body is an object, however much it looks like parameters.
    parameters = {} if service == "s3" else _parameters(response)
    asked = Request(principal, name, target, _context(response, principal, parameters))
    identity = [IAMPolicy(policy)._policy_json for policy in access_key.collect_policies()]  # noqa: SLF001
    decided = [decide(asked, identity, _resource_policies(target, response.current_account))]
    # A session has what its role and its session policy allow, both. (No resource policy here names a session as such.)
    decided += [decide(asked, [policy]) for policy in _session_policies(response, access_key)]
    if any(decision is not Decision.ALLOWED for decision in decided):
        request._action = name  # noqa: SLF001  # what the refusal names
        request._raise_access_denied()  # noqa: SLF001


def _session_policies(response: Any, access_key: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the policy that a role's session was limited to when it was assumed."""
    key_id = getattr(access_key, "_access_key_id", None)
    for assumed in sts_backends[response.current_account]["aws"].assumed_roles:
        if assumed.access_key_id == key_id and assumed.policy:
            yield json.loads(assumed.policy)


def _credential(headers: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Access key, region and service of the signature's scope; None where a call is not signed."""
    scope = headers.get("Authorization", "").partition("Credential=")[2].partition(",")[0].split("/")
    return (scope[0], scope[2], scope[3]) if len(scope) == 5 else None


def _action_and_targets(response: Any, service: str, region: str, resource: str) -> tuple[str, list[str]]:
    action = response._get_action()  # noqa: SLF001  # moto's own way of telling
    if isinstance(action, list):
        action = action[0]
    if service == "s3":
        bucket, _, key = resource.removeprefix("arn:aws:s3:::").partition("/")
        query = parse_qs(urlparse(response.uri).query, keep_blank_values=True)
        keys = _keys_to_delete(response) if "delete" in query else [key]
        targets = [f"arn:aws:s3:::{bucket}" + (f"/{each}" if each else "") for each in keys]
        return s3_action(response.method, key, action, query), targets
    given, account = _parameters(response), response.current_account
    # GetParameters names several, and AWS decides on each.
    several: list[Mapping[str, Any]] = (
        [{"Name": name} for name in given.get("Names", ())] if service == "ssm" else []
    )
    arns = [resource_arn(service, region, account, each) for each in several or [given]]
    return call_action(service, action), arns


def _keys_to_delete(response: Any) -> list[str]:
    """Keys that DeleteObjects names in its body; AWS decides on each, here one refusal refuses the call."""
    named = xmltodict.parse(response.body, force_list=("Object",)).get("Delete") or {}
    return [str(each["Key"]) for each in named.get("Object", ())]


def _parameters(response: Any) -> Mapping[str, Any]:
    body = (
        response.body if isinstance(response.body, str) else (response.body or b"").decode(errors="replace")
    )
    if body.lstrip().startswith("{"):
        parsed = json.loads(body)
        return parsed if isinstance(parsed, dict) else {}
    return {name: values[0] for name, values in (response.querystring or {}).items() if values}


def _principal(account: str, access_key: Any) -> str:
    """The ARN that `aws:PrincipalArn` has: a session's is its role's."""
    role = getattr(access_key, "_owner_role_name", None)
    return f"arn:aws:iam::{account}:role/{role}" if role else str(access_key.arn)


def _context(response: Any, principal: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    query = parse_qs(urlparse(response.uri).query, keep_blank_values=True)
    # Every account of the emulator is the caller's own.
    own = {"aws:ResourceAccount": str(response.current_account)}
    context = {"aws:SecureTransport": "true", "aws:PrincipalArn": principal, **own}
    if "prefix" in query:
        context["s3:prefix"] = query["prefix"][0]
    if "Namespace" in parameters:
        context["cloudwatch:namespace"] = str(parameters["Namespace"])
    return context


def _resource_policies(target: str, account: str) -> Iterator[Mapping[str, Any]]:
    if target.startswith("arn:aws:s3:::"):
        bucket = s3_backends[account]["aws"].buckets.get(target.removeprefix("arn:aws:s3:::").split("/")[0])
        if bucket is not None and bucket.policy:
            yield json.loads(bucket.policy)
    if target.startswith("arn:aws:sqs:"):
        _, _, _, region, _, name = target.split(":", 5)
        queue = sqs_backends[account][region].queues.get(name)
        if queue is not None and queue.policy:
            yield queue.policy if isinstance(queue.policy, dict) else json.loads(queue.policy)


# How IAM calls a service where its signature calls it otherwise.
_IAM_NAMES = {"monitoring": "cloudwatch"}
