"""Identity of the worker: enrolment, renewal, revocation, over real TLS."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from tests.integration.edge_worker.conftest import World, until
from tests.integration.edge_worker.control_plane import ControlPlane, Fault
from tests.integration.edge_worker.cut import LinkState
from tests.integration.edge_worker.test_agent import Gate, succeed

from airbridge.core.protocol import Problem, RefusalReason
from airbridge.edge_worker.agent import Agent, ExitCode


def test_a_bad_token_ends_the_worker(world: World) -> None:
    """Enrolment refused: exit code 3, no loop of attempts."""

    async def scenario() -> ExitCode:
        settings = world.settings()
        assert settings.join_token_file is not None
        agent = Agent(settings, world.parts(succeed))
        settings.join_token_file.write_text("wrong")
        return await asyncio.wait_for(agent.run(), 10)

    assert asyncio.run(scenario()) is ExitCode.NO_IDENTITY
    assert world.control_plane.enrolments == 1


def test_certificate_is_renewed_at_half_life(world: World) -> None:
    """Certificates are replaced well before they lapse, and work goes on over it."""
    gate = Gate()

    async def scenario() -> None:
        world.control_plane.certificate_seconds = 242.0  # what is left beyond the worker's patience is short
        item = world.submit()
        async with world.worker(gate):
            await until(lambda: gate.running == 1)
            world.control_plane.commands.append({"kind": "renew"})
            await until(lambda: world.control_plane.renewals >= 1)
            gate.go.set()
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]
        assert world.control_plane.enrolments == 1

    asyncio.run(scenario())


def test_lapsed_certificate_leads_to_enrolment(world: World) -> None:
    """A worker whose certificate ran out joins again by its join method, and reports what it did meanwhile."""
    gate = Gate()

    async def scenario() -> None:
        world.control_plane.certificate_seconds = 2.0
        item = world.submit()
        async with world.worker(gate):
            await until(lambda: gate.running == 1)
            world.cut.set(LinkState.REFUSE)
            await asyncio.sleep(2.5)
            gate.go.set()
            world.control_plane.certificate_seconds = 3600.0
            enrolments = world.control_plane.enrolments
            world.cut.set(LinkState.UP)
            await until(lambda: item.state == "settled")
            await until(lambda: world.control_plane.enrolments > enrolments)
        assert item.states == ["success"]

    asyncio.run(scenario())


def test_lost_enrolment_response_is_survived(world: World) -> None:
    """Enrolling anew revokes the certificate before. Refused under that one, the worker enrols again; its task runs on."""
    gate = Gate()
    enrolments = 0

    def lose_the_first_answer(request: Request, response: Response | None) -> Response:
        nonlocal enrolments
        assert response is not None
        if request.path_params["what"] == "enrol":
            enrolments += 1
            return Response(status_code=502) if enrolments == 1 else response
        if enrolments == 1:
            problem = Problem(status=403, reason=RefusalReason.REVOKED, detail="superseded")
            return Response(problem.model_dump_json(), status_code=403)
        return response

    async def scenario() -> None:
        world.control_plane.certificate_seconds = 2.0
        item = world.submit()
        async with world.worker(gate, retry_base_seconds=0.3, retry_cap_seconds=0.5):
            await until(lambda: gate.running == 1)
            world.control_plane.fault = Fault(lose_the_first_answer, after=True)
            await until(lambda: enrolments >= 1)
            world.control_plane.certificate_seconds = 3600.0
            await until(lambda: enrolments >= 2)
            gate.go.set()
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]
        assert world.exit_code is ExitCode.OK

    asyncio.run(scenario())


def test_a_revoked_worker_ends(world: World) -> None:
    """Revocation takes effect on the next request: the task is stopped and the process ends with code 3."""
    gate = Gate()

    async def scenario() -> None:
        world.submit()
        async with world.worker(gate):
            await until(lambda: gate.running == 1)
            world.control_plane.revoked = True
            await until(lambda: gate.running == 0)
        assert world.exit_code is ExitCode.NO_IDENTITY

    asyncio.run(scenario())


def test_gateway_of_another_ca(world: World) -> None:
    """The CA is pinned: a server with a certificate of another one gets no request."""

    async def scenario() -> None:
        settings = world.settings()
        other = world.directory / "other"
        other.mkdir()
        impostor = ControlPlane(other, region=world.control_plane.region)
        impostor.start()
        try:
            elsewhere = settings.model_copy(update={"gateway_url": impostor.url})
            agent = Agent(elsewhere, world.parts(succeed))
            running = asyncio.create_task(agent.run())
            await asyncio.sleep(1.0)
            agent.drain()
            await asyncio.wait_for(running, 10)
        finally:
            impostor.stop()
        assert impostor.requests == []

    asyncio.run(scenario())
