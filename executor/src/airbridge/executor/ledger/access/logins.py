"""Logins of the services' database roles: ``python -m airbridge.executor.ledger.access.logins``, after ``airflow db migrate``.

Each service's password is read from the variable AIRBRIDGE_SECRET_DATABASE_<SERVICE> (GATEWAY, API_SERVER, ...); a service
without one is left alone. Run it as the user who migrates.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from airbridge.executor.ledger.access import roles
from airbridge.executor.service_secrets import Service

PREFIX = "AIRBRIDGE_SECRET_DATABASE_"


def passwords(environ: Mapping[str, str]) -> dict[Service, str]:
    """Return the passwords that are given."""
    named = {service: environ.get(PREFIX + service.replace("-", "_").upper(), "") for service in Service}
    return {service: password for service, password in named.items() if password}


def main(environ: Mapping[str, str]) -> int:
    """Set the passwords; 1 if there is none."""
    given = passwords(environ)
    if not given:
        sys.stderr.write(
            f"no service's password is given: set {PREFIX}GATEWAY and those of the other services\n"
        )
        return 1
    from airbridge.executor.ledger._airflow import airflow_engine

    with airflow_engine().begin() as connection:
        for service, password in given.items():
            connection.exec_driver_sql(roles.login(service.role, password))
    sys.stdout.write(f"logins set: {', '.join(service.role for service in given)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ))
