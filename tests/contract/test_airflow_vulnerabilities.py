"""What ci/advisories.toml states about Airflow 3.0.4, in Airflow itself: what it lacks, what it does, and what keeps it from harm."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import airflow
import pytest
from fastapi.testclient import TestClient
from tests.support.airflow_home import Metadata

from airbridge.control_plane.airflow_settings import RECOMMENDED
from airbridge.edge_worker.runner import airflow_home

AIRFLOW = Path(airflow.__file__).parent
SITE_PACKAGES = AIRFLOW.parent
RECOMMENDATION = {(each.section, each.option): each.value for each in RECOMMENDED}
# Airflow reads only files that mention both words.
CODE = """\
# airflow dag
from pathlib import Path
Path({marker!r}).write_text("this ran in the api-server")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A DAGS_FOLDER with a file that leaves a mark where it is executed."""
    (tmp_path / "hostile.py").write_text(CODE.format(marker=str(tmp_path / "executed")))
    return tmp_path


@pytest.fixture
def client(sqlite_metadata: Metadata, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """An administrator of Airflow's api-server, with the plugin, under an https base URL that the requests do not show."""
    from airflow import plugins_manager, settings
    from airflow.api_fastapi.app import create_app

    monkeypatch.setattr(settings, "DAGS_FOLDER", str(folder))
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example")
    for cached in ("fastapi_apps", "fastapi_root_middlewares"):
        monkeypatch.setattr(plugins_manager, cached, None)
    with TestClient(create_app(apps="core"), base_url="http://behind-a-proxy") as made:
        yield made


pytestmark = pytest.mark.filterwarnings(
    "ignore:Support for class-based `config`",  # Airflow's models warn about themselves
    "ignore:Pydantic serializer warnings:UserWarning",
)


@pytest.mark.parametrize("path", ["/api/v2/dagReports", "/api/v2/dagReports/", "/api/v2/dag%52eports"])
def test_dag_report_runs_no_code(client: TestClient, folder: Path, path: str) -> None:
    """CVE-2025-62402: the route that executes DAG files in the api-server is closed to everybody."""
    answer = client.get(path, params={"subdir": str(folder)})
    assert not (folder / "executed").exists()
    assert answer.status_code == 404
    assert "CVE-2025-62402" in answer.json()["detail"]


def test_neighbouring_routes_are_served(client: TestClient) -> None:
    """Only that route is closed."""
    assert [200, 200] == [client.get(f"/api/v2/{path}").status_code for path in ("dags", "monitor/health")]


def test_token_cookie_is_secure(client: TestClient) -> None:
    """CVE-2026-41017: under an https base URL the token's cookie is Secure, although the proxy speaks plain HTTP."""
    (cookie,) = client.get("/auth/token/login", follow_redirects=False).headers.get_list("set-cookie")
    assert cookie.startswith("_token=")
    assert cookie.lower().count("secure") == 1


def test_no_other_route_parses_files() -> None:
    """Every other DAG bag of the api-server is read from the database."""
    parsing = [
        str(path.relative_to(AIRFLOW))
        for path in (AIRFLOW / "api_fastapi").rglob("*.py")
        for call in re.findall(r"(?<!def )\bDagBag\((?!\))[^)]*\)", path.read_text())
        if "read_dags_from_db=True" not in call
    ]
    assert parsing == ["api_fastapi/core_api/routes/public/dag_report.py"]


@pytest.mark.parametrize(
    "name",
    [
        "JWTRefreshMiddleware",  # CVE-2026-41017
        "SerializedCustomReference",  # CVE-2026-45360
        "HITLDetail",  # CVE-2026-30911, CVE-2026-38743
        "wait_dag_run_until_finished",  # CVE-2026-34538
        "partitioned_dag_runs",  # CVE-2026-41014
        "BulkTaskInstance",  # CVE-2026-41084
        "awaiting_input",  # CVE-2026-67260
        "get_team_name",  # CVE-2026-65017, CVE-2026-68076, CVE-2026-68971
    ],
)
def test_code_is_absent(name: str) -> None:
    """Airflow 3.0.4 does not have what the advisories under a name are about."""
    named = [path for path in AIRFLOW.rglob("*.py") if name in path.read_text()]
    assert named == []


def test_log_server_compares_whole_paths() -> None:
    """CVE-2026-45426: the path in a token and the requested one are compared as they are."""
    source = (AIRFLOW / "utils" / "serve_logs.py").read_text()
    assert "if token_filename != request_filename:" in source
    assert "lstrip" not in source


@pytest.mark.parametrize("role", ["VIEWER", "USER", "OP", "ADMIN"])
def test_roles_have_no_dag_permissions(role: str) -> None:
    """Airflow's SimpleAuthManager answers alike for every DAG, so there is no boundary between DAGs to cross."""
    from airflow.api_fastapi.auth.managers.models.resource_details import DagDetails
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    manager, user = SimpleAuthManager(), SimpleAuthManagerUser(username="someone", role=role)
    for method in ("GET", "POST", "PUT", "DELETE"):
        answers = {
            manager.is_authorized_dag(method=method, user=user, details=DagDetails(id=dag))
            for dag in ("one", "two", None)
        }
        assert len(answers) == 1


def test_images_have_one_auth_manager() -> None:
    """No other auth manager is among the installed packages, and AirBridge's own decides as SimpleAuthManager does."""
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager

    from airbridge.control_plane.sign_in.auth_manager import OidcAuthManager

    assert not [
        path for path in (AIRFLOW / "providers").glob("*") if path.name in {"fab", "keycloak", "amazon"}
    ]
    assert (SimpleAuthManager,) == OidcAuthManager.__bases__
    own = {name for name in vars(OidcAuthManager) if not name.startswith("__") and name != "_abc_impl"}
    assert {"init", "get_users", "get_url_login", "get_fastapi_app"} == own - {"__parameters__"}


def _allow(monkeypatch: pytest.MonkeyPatch, classes: str) -> None:
    from airflow.serialization import serde

    monkeypatch.setenv("AIRFLOW__CORE__ALLOWED_DESERIALIZATION_CLASSES", classes)
    for cached in (serde._get_patterns, serde._match_glob):
        cached.cache_clear()


@pytest.fixture
def named_class() -> Iterator[str]:
    """An XCom that names a class of Airflow, as an extra link reads it from the database."""
    from airflow.serialization import serde

    yield (
        '{"__classname__": "airflow.sdk.definitions.param.Param", "__version__": 1, '
        '"__data__": {"value": 1, "description": null, "schema": {}}}'
    )
    for cached in (serde._get_patterns, serde._match_glob):
        cached.cache_clear()


@pytest.mark.parametrize(("classes", "built"), [("airflow.*", True), ("recommended", False)])
def test_extra_link_builds_no_class(
    named_class: str, classes: str, built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2026-25917: what an extra link reads is decoded; the recommended settings refuse every class, Airflow's do not."""
    from airflow.models.xcom import XComModel
    from airflow.sdk.definitions.param import Param

    _allow(monkeypatch, RECOMMENDATION["core", "allowed_deserialization_classes"] if not built else classes)
    row = type("Row", (), {"value": named_class})
    if built:
        assert isinstance(XComModel.deserialize_value(row), Param)
        return
    with pytest.raises(ImportError, match="not found in allow list"):
        XComModel.deserialize_value(row)


def test_xcoms_are_shown_as_stored() -> None:
    """CVE-2026-59242: the API decodes no XCom, whatever a request asks for."""
    source = (AIRFLOW / "api_fastapi" / "core_api" / "routes" / "public" / "xcom.py").read_text()
    assert "enable_xcom_deserialize_support" in source
    assert RECOMMENDATION["api", "enable_xcom_deserialize_support"] == "False"


@pytest.mark.parametrize("name", ["access_key", "connection_string", "proxies", "proxy"])
def test_field_is_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2025-68675, CVE-2026-25219: such a field is masked with the recommended settings, and was not before."""
    from airflow.sdk.execution_time import secrets_masker

    def hidden(names: str) -> bool:
        monkeypatch.setenv("AIRFLOW__CORE__SENSITIVE_VAR_CONN_NAMES", names)
        secrets_masker.get_sensitive_variables_fields.cache_clear()
        return bool(secrets_masker.should_hide_value_for_key(name))

    recommended = RECOMMENDATION["core", "sensitive_var_conn_names"]
    assert (False, True) == (hidden(""), hidden(recommended))
    secrets_masker.get_sensitive_variables_fields.cache_clear()
    assert f"sensitive_var_conn_names = {recommended}\n" in airflow_home._text(Path("/home"), {})


def test_configuration_is_not_exposed() -> None:
    """CVE-2026-48892: the page and the API of the configuration are off."""
    from airflow.configuration import conf

    assert conf.get("api", "expose_config") == "False"
    assert ("api", "expose_config") not in RECOMMENDATION


def test_examples_are_not_loaded() -> None:
    """CVE-2025-54941: Airflow's example DAGs are off."""
    assert RECOMMENDATION["core", "load_examples"] == "False"


PROGRAMS = ("airflow", "airbridge", "typer", "uvicorn", "flask", "fastapi_cli", "rich_toolkit")


@pytest.mark.parametrize(
    ("function", "packages"),
    [
        ("click.edit", PROGRAMS),  # CVE-2026-7246
        ("request.form", ("airflow/api_fastapi", "airbridge")),  # CVE-2026-54283
        ("HTTPEndpoint", ("airflow/api_fastapi", "airbridge")),  # CVE-2026-48817
    ],
)
def test_function_is_not_called(function: str, packages: tuple[str, ...]) -> None:
    """Nothing that runs here uses the vulnerable function of a library that is not raised."""
    roots = [SITE_PACKAGES / package for package in packages if package != "airbridge"]
    roots += [
        Path(__file__).parents[2] / part / "src"
        for part in ("control_plane", "core", "edge_worker", "executor")
    ]
    used = {
        str(path)
        for root in roots
        for path in root.rglob("*.py")
        if function.rpartition(".")[2] in (text := path.read_text()) and function in _names(text)
    }
    assert used == set()


def _names(source: str) -> set[str]:
    """Return every dotted name that a module uses."""
    return {
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute | ast.Name)
    }
