"""Requests of triggers to the control plane: what Airflow's triggerer answers, answered over the agent's channel."""

from __future__ import annotations

import asyncio
from typing import Any

from airflow.sdk.api.client import ServerResponseError
from airflow.sdk.api.datamodels._generated import (
    ConnectionResponse,
    TaskStatesResponse,
    VariableResponse,
    XComResponse,
)
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import comms
from airflow.sdk.execution_time.secrets_masker import mask_secret

from airbridge.edge_worker._airflow import regional_secrets


class TriggerComms:
    """Stand-in for the Task SDK's channel to the supervisor. Safe for use by the event loop and its threads.

    `client` is the Task SDK's, over the channel. The requests are those of `TriggerRunnerSupervisor._handle_request`: triggers
    read, and write nothing.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def send(self, msg: Any) -> Any:
        """Answer a request; block until there is an answer. Raises `AirflowRuntimeError` for a refusal."""
        try:
            if isinstance(msg, comms.GetConnection | comms.GetVariable) and regional_secrets.configured():
                found = regional_secrets.look_up(msg, self._client.ask)
                if found is not None:
                    return found
            return self._answer(msg)
        except ServerResponseError as error:
            detail = {
                "status_code": error.response.status_code,
                "message": str(error),
                "detail": error.response.json() if error.response.content else None,
            }
            raise AirflowRuntimeError(
                comms.ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail)
            ) from error

    async def asend(self, msg: Any) -> Any:
        """Do the same as `send`, without blocking the event loop."""
        return await asyncio.to_thread(self.send, msg)

    def _answer(self, msg: Any) -> Any:
        client = self._client
        match msg:
            case comms.GetConnection():
                return _connection(client.connections.get(msg.conn_id))
            case comms.GetVariable():
                found = client.variables.get(msg.key)
                if isinstance(found, VariableResponse):
                    if found.value:
                        mask_secret(found.value, found.key)
                    return comms.VariableResult.from_variable_response(found)
                return found
            case comms.GetXCom():
                found = client.xcoms.get(msg.dag_id, msg.run_id, msg.task_id, msg.key, msg.map_index)
                return (
                    comms.XComResult.from_xcom_response(found) if isinstance(found, XComResponse) else found
                )
            case comms.GetDRCount():
                return client.dag_runs.get_count(
                    dag_id=msg.dag_id, logical_dates=msg.logical_dates, run_ids=msg.run_ids, states=msg.states
                )
            case comms.GetDagRunState():
                found = client.dag_runs.get_state(msg.dag_id, msg.run_id)
                return comms.DagRunStateResult.from_api_response(found)
            case comms.GetTICount():
                return client.task_instances.get_count(**_tasks(msg), states=msg.states)
            case comms.GetTaskStates():
                found = client.task_instances.get_task_states(**_tasks(msg))
                if isinstance(found, TaskStatesResponse):
                    return comms.TaskStatesResult.from_api_response(found)
                return found
        raise TypeError(f"a trigger cannot send {type(msg).__name__}: triggers read, and write nothing")


def _connection(found: Any) -> Any:
    if not isinstance(found, ConnectionResponse):
        return found
    for secret in (found.password, found.extra):
        if secret:
            mask_secret(secret)
    return comms.ConnectionResult.from_conn_response(found)


def _tasks(msg: Any) -> dict[str, Any]:
    names = ("dag_id", "map_index", "task_ids", "task_group_id", "logical_dates", "run_ids")
    return {name: getattr(msg, name) for name in names}
