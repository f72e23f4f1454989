"""Airflow internals (3.0.4) that the dashboard uses: the signed-in user, their rights, and links to tasks.

Airflow's UI keeps its token in the browser's local storage and sends it as a bearer token, so a plugin's page does not get
it by itself. tests/contract/test_dashboard_internals.py fails if anything here no longer holds.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote

from jwt import InvalidTokenError

# Key of Airflow's UI token in the browser's local storage.
TOKEN_STORAGE_KEY: Final = "token"  # noqa: S105 - a name
# A login sets the token as this cookie; Airflow's UI moves it into local storage.
TOKEN_COOKIE: Final = "_token"  # noqa: S105 - a name


async def user_of_token(token: str) -> Any | None:
    """Return the user of an Airflow token; None if it is expired or invalid."""
    from airflow.api_fastapi.app import get_auth_manager

    try:
        return await get_auth_manager().get_user_from_token(token)
    except InvalidTokenError:
        return None


def subject(token: str) -> str:
    """Return the subject of a token that was verified before."""
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return str(claims.get("sub", ""))


def login_url() -> str:
    """Return the path of the configured auth manager's login page."""
    from airflow.api_fastapi.app import get_auth_manager

    return str(get_auth_manager().get_url_login())


def base_url() -> str:
    """Return the address under which users open Airflow; empty if it is not configured."""
    from airflow.configuration import conf

    return str(conf.get("api", "base_url", fallback="") or "")


def base_path() -> str:
    """Return the path that Airflow is served under, without the slash at its end."""
    from airflow.api_fastapi.app import API_ROOT_PATH

    return str(API_ROOT_PATH).rstrip("/")


def may_see(user: Any) -> bool:
    """Return whether the user may see the platform's activity: every role from viewer on."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import AccessView

    return bool(get_auth_manager().is_authorized_view(access_view=AccessView.CLUSTER_ACTIVITY, user=user))


def may_command(user: Any) -> bool:
    """Return whether the user may drain and resume workers: the right to change Airflow's pools."""
    from airflow.api_fastapi.app import get_auth_manager

    return bool(get_auth_manager().is_authorized_pool(method="PUT", user=user))


def may_revoke(user: Any) -> bool:
    """Return whether the user may revoke workers: the right to delete Airflow's pools."""
    from airflow.api_fastapi.app import get_auth_manager

    return bool(get_auth_manager().is_authorized_pool(method="DELETE", user=user))


def may_audit(user: Any) -> bool:
    """Return whether the user may read the audit trail: the right to read Airflow's audit log."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity

    return bool(
        get_auth_manager().is_authorized_dag(method="GET", access_entity=DagAccessEntity.AUDIT_LOG, user=user)
    )


def may_see_task(user: Any, dag_id: str) -> bool:
    """Return whether the user may see the task instances of a DAG."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails

    return bool(
        get_auth_manager().is_authorized_dag(
            method="GET",
            access_entity=DagAccessEntity.TASK_INSTANCE,
            details=DagDetails(id=dag_id),
            user=user,
        )
    )


def readable_dags(session: Any, user: Any) -> frozenset[str] | None:
    """Return the DAGs that the user may read; None for all."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.models.dag import DagModel
    from sqlalchemy import select

    known = set(session.scalars(select(DagModel.dag_id)))
    readable = get_auth_manager().filter_authorized_dag_ids(dag_ids=known, method="GET", user=user)
    return None if readable == known else frozenset(readable)


@contextmanager
def read_only_session() -> Iterator[Any]:
    """Yield a read-only session that sees one snapshot of the database throughout."""
    from airflow import settings

    from airbridge.control_plane._airflow import session_on

    postgres = settings.engine.dialect.name == "postgresql"
    options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True} if postgres else {}
    with (
        settings.engine.connect().execution_options(**options) as connection,
        connection.begin(),
        session_on(connection) as session,
    ):
        yield session


def task_states(session: Any, dag_id: str, run_id: str, task_id: str, map_index: int) -> Any | None:
    """Return Airflow's row of a task instance: state, try_number, start_date, end_date, queued_dttm; None if it has none."""
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import select

    row = TaskInstance
    return session.execute(
        select(row.state, row.try_number, row.max_tries, row.queued_dttm, row.start_date, row.end_date).where(
            row.dag_id == dag_id, row.run_id == run_id, row.task_id == task_id, row.map_index == map_index
        )
    ).one_or_none()


def task_page(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the path of a task instance in Airflow's UI."""
    mapped = f"/mapped/{map_index}" if map_index >= 0 else ""
    return f"{base_path()}/dags/{quote(dag_id, safe='')}/runs/{quote(run_id, safe='')}/tasks/{quote(task_id, safe='')}{mapped}"
