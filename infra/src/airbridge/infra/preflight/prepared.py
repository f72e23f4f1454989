"""Checks of what people prepare: certificate, names, images, secrets, address ranges."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from ipaddress import IPv4Network, ip_network
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from airbridge.infra import service_secrets
from airbridge.infra.environment import Environment
from airbridge.infra.preflight.finding import Account, Finding, failed, later, ok


def certificate(account: Account) -> Iterator[Finding]:
    """The UI's certificate is in the home region, is issued, has not expired, and has the UI's name."""
    arn = account.environment.control_plane.certificate_arn
    region = arn.split(":")[3]
    if region != account.home:
        yield failed(
            "certificate",
            arn,
            f"is in {region}, and the UI's balancer is in {account.home}",
            f"request one in {account.home}: aws acm request-certificate --region {account.home} --validation-method DNS --domain-name …",
        )
        return
    try:
        found = account.client("acm", region).describe_certificate(CertificateArn=arn)["Certificate"]
    except ClientError as error:
        if error.response["Error"]["Code"] not in {"ResourceNotFoundException", "InvalidArnException"}:
            raise
        yield failed(
            "certificate",
            arn,
            "there is none",
            "request one, and set control_plane.certificate_arn to its ARN",
        )
        return
    problems = list(_problems_of(account, found))
    for detail, remedy in problems:
        yield failed("certificate", arn, detail, remedy)
    if not problems:
        yield ok("certificate", arn, f"for {found['DomainName']}")


def _problems_of(account: Account, found: dict[str, object]) -> Iterator[tuple[str, str]]:
    if found["Status"] != "ISSUED":
        yield f"is {found['Status']}", "make the DNS records that it asks for, and wait until it is issued"
    ends = found.get("NotAfter")
    if isinstance(ends, datetime) and ends < account.now():
        yield f"expired at {ends}", "renew it"
    auth = account.environment.control_plane.auth
    host = urlsplit(auth.url).hostname if auth else None
    alternatives = found.get("SubjectAlternativeNames", [])
    names = {str(found["DomainName"]), *(alternatives if isinstance(alternatives, list) else ())}
    if host and not any(_covers(name, host) for name in names):
        yield (
            f"is for {', '.join(sorted(names))}, and the UI is {host}",
            "request one for that name, or correct control_plane.auth.url",
        )


def _covers(name: str, host: str) -> bool:
    """Return whether a certificate's name is the host's; `*.` stands for one label."""
    return name == host or (name.startswith("*.") and name[1:] == host[host.find(".") :])


def dns(account: Account) -> Iterator[Finding]:
    """The issuer that signs people in has an address; the UI's own name gets one after the control plane is there."""
    auth = account.environment.control_plane.auth
    if auth is None:
        return
    if issuer := urlsplit(auth.issuer or "").hostname:
        if account.resolves(issuer):
            yield ok("DNS", issuer, "the issuer of sign-ins has an address")
        else:
            yield failed(
                "DNS",
                issuer,
                "the issuer of sign-ins has no address",
                "correct control_plane.auth.issuer, or the DNS",
            )
    host = str(urlsplit(auth.url).hostname)
    if account.resolves(host):
        yield ok("DNS", host, "the UI's name has an address; it must be the balancer's")
    else:
        yield later(
            "DNS",
            host,
            "the UI's name has no address",
            "after control-plane, point it to the output `ui_address`",
        )


def images(account: Account) -> Iterator[Finding]:
    """The repositories have the environment's images, by digest: all at home, where they are pushed, and elsewhere the pools'."""
    for region, reference in _wanted_images(account.environment):
        image, _, digest = reference.partition("@")
        repository = account.environment.names.repository(image)
        subject = f"{region} {repository}@{digest[:19]}…"
        try:
            account.client("ecr", region).describe_images(
                repositoryName=repository, imageIds=[{"imageDigest": digest}]
            )
        except ClientError as error:
            found = _missing_image(account, region, subject, str(error.response["Error"]["Code"]))
            if found is None:
                raise
            yield found
        else:
            yield ok("image", subject, "is there")


def _wanted_images(environment: Environment) -> list[tuple[str, str]]:
    """Return each region with an image that is pulled from its registry, once each."""
    pinned = environment.images
    wanted = [(environment.home_region, reference) for reference in (pinned.control_plane, pinned.worker)]
    for region in environment.regions:
        for reference in (environment.worker_image(pool) for pool in region.pools):
            wanted += [(environment.home_region, reference), (region.name, reference)]
    return list(dict.fromkeys(wanted))


def _missing_image(account: Account, region: str, subject: str, code: str) -> Finding | None:
    """Return the finding of a refused look at an image; None if AWS did not say that it is missing."""
    name = account.environment.name
    if code == "RepositoryNotFoundException":
        how = (
            "deploy foundation, then push"
            if region == account.home
            else f"after the home region's: airbridge-ci copy {name} {name}"
        )
        return later("image", subject, "there is no repository yet", how)
    if code == "ImageNotFoundException":
        how = "airbridge-ci publish" if region == account.home else f"airbridge-ci copy {name} {name}"
        return failed("image", subject, "the repository has no such digest", f"{how}, or correct [images]")
    return None


def secrets(account: Account) -> Iterator[Finding]:
    """Every secret has a value."""
    auth = account.environment.control_plane.auth
    client = account.client("secretsmanager", account.home)
    fill = f"python -m airbridge.infra.tools.secrets fill --environment {account.environment.name} --directory keys"
    for name in service_secrets.described(client_secret=bool(auth and auth.client_secret)):
        full = f"{account.environment.names.base}/{name}"
        try:
            found = client.describe_secret(SecretId=full)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceNotFoundException":
                raise
            yield later("secret", full, "is not there yet", "deploy foundation, then fill it")
            continue
        if any("AWSCURRENT" in stages for stages in (found.get("VersionIdsToStages") or {}).values()):
            yield ok("secret", full, "has a value")
        else:
            yield failed("secret", full, "has no value", fill)


def ranges(account: Account) -> Iterator[Finding]:
    """The networks' ranges are free: a VPC of others with an overlapping one could never be routed to."""
    environment = account.environment
    for network in environment.control_plane.operator_cidrs:
        if network.overlaps(environment.control_plane.cidr):
            yield failed(
                "address range",
                f"operator_cidrs {network}",
                f"overlaps control_plane.cidr {environment.control_plane.cidr}: answers would stay in the VPC",
                "choose another cidr for the control plane",
            )
    plane = environment.control_plane
    places = [("control_plane.cidr", account.home, plane.cidr, plane.network)]
    places += [(f"region {each.name}", each.name, each.cidr, each.network) for each in environment.regions]
    for where, region, wanted, given in places:
        taken = list(_overlapping(account, region, wanted, given.vpc if given else None))
        if taken:
            yield failed(
                "address range",
                f"{where} {wanted}",
                f"overlaps {', '.join(taken)}",
                "choose another cidr, as your network plan has it",
            )
        else:
            yield ok("address range", f"{where} {wanted}", "is free")


def _overlapping(account: Account, region: str, wanted: IPv4Network, given: str | None) -> Iterator[str]:
    for page in account.client("ec2", region).get_paginator("describe_vpcs").paginate():
        for vpc in page["Vpcs"]:
            if vpc["VpcId"] == given or account.owns(vpc):
                continue
            for block in vpc["CidrBlockAssociationSet"]:
                if wanted.overlaps(ip_network(block["CidrBlock"])):
                    yield f"{vpc['VpcId']} ({block['CidrBlock']})"
