"""Messages between a task and its supervisor that the Task SDK does not have: transfers from and to the region's bucket."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from airflow.sdk.execution_time.comms import ToSupervisor, ToTask
from pydantic import BaseModel, Field, TypeAdapter


class StoreXCom(BaseModel):
    """Ask for a URL to write a value of so many bytes and this digest (SHA-256, in hex)."""

    size: int
    digest: str
    type: Literal["AirBridgeStoreXCom"] = "AirBridgeStoreXCom"


class LoadXCom(BaseModel):
    """Ask for a URL to read a value that a reference names."""

    region: str
    object: str
    type: Literal["AirBridgeLoadXCom"] = "AirBridgeLoadXCom"


class Transfer(BaseModel):
    """URL and headers of one request to the bucket."""

    url: str = Field(repr=False)
    headers: dict[str, str] = Field(default_factory=dict)
    region: str
    object: str
    type: Literal["AirBridgeTransfer"] = "AirBridgeTransfer"


# Built once: the Task SDK builds its own anew, twice, in every task.
TO_TASK: Final[TypeAdapter[Any]] = TypeAdapter(Annotated[ToTask | Transfer, Field(discriminator="type")])
TO_SUPERVISOR: Final[TypeAdapter[Any]] = TypeAdapter(
    Annotated[ToSupervisor | StoreXCom | LoadXCom, Field(discriminator="type")]
)
