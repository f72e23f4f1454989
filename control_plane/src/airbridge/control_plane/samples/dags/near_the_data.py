"""Weather records in two regions: each is summarised in its region, and only the summaries are transferred."""

from __future__ import annotations

import csv
from collections import defaultdict
from datetime import UTC, datetime
from statistics import mean

from airflow.sdk import dag, task

from airbridge.core import near

NEW_YORK = "s3://airbridge-local-us-east-1-data/weather/new-york-1973.csv"
NOTTINGHAM_1920S = "s3://airbridge-local-eu-west-1-data/weather/nottingham-1920s.csv"
NOTTINGHAM_1930S = "s3://airbridge-local-eu-west-1-data/weather/nottingham-1930s.csv"

SUMMER = range(5, 10)  # the months that all three records have


def read(url: str) -> list[dict[str, str]]:
    """Return the rows of the CSV object at `url`."""
    import boto3

    bucket, key = url.removeprefix("s3://").split("/", 1)
    body = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    rows = list(csv.DictReader(body.decode().splitlines()))
    print(f"read {len(rows)} rows, {len(body)} bytes, from {url}")
    return rows


def celsius(fahrenheit: float) -> float:
    """Return °C."""
    return (fahrenheit - 32) * 5 / 9


def by_month(rows: list[dict[str, str]], date_column: str, value_column: str) -> dict[int, list[float]]:
    """Group the non-empty values by month of the year."""
    values: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row[value_column]:
            values[int(row[date_column][5:7])].append(float(row[value_column]))
    return values


def summer_means(rows: list[dict[str, str]], date_column: str) -> dict[str, float]:
    """Return the mean temperature of each summer month, in °C."""
    months = by_month(rows, date_column, "temperature_f")
    means = {f"{month:02d}": round(celsius(mean(months[month])), 1) for month in SUMMER}
    print(f"mean temperature by month: {means}")
    return means


@dag(schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False, tags=["airbridge", "sample"])
def near_the_data() -> None:
    """Compare two cities' summers (New York's are daily maxima), and New York's ozone with its wind."""

    @task(executor_config=near(NEW_YORK))
    def new_york_temperature() -> dict[str, float]:
        return summer_means(read(NEW_YORK), "date")

    @task(executor_config=near(NEW_YORK))
    def new_york_ozone() -> dict[str, float]:
        measured = [row for row in read(NEW_YORK) if row["ozone_ppb"]]
        calm = [float(row["ozone_ppb"]) for row in measured if float(row["wind_mph"]) < 10]
        windy = [float(row["ozone_ppb"]) for row in measured if float(row["wind_mph"]) >= 10]
        print(f"{len(calm)} calm days, {len(windy)} windy days")
        return {"calm": round(mean(calm), 1), "windy": round(mean(windy), 1)}

    @task(executor_config=near(NOTTINGHAM_1920S))
    def nottingham_1920s() -> dict[str, float]:
        return summer_means(read(NOTTINGHAM_1920S), "month")

    @task(executor_config=near(NOTTINGHAM_1930S))
    def nottingham_1930s() -> dict[str, float]:
        return summer_means(read(NOTTINGHAM_1930S), "month")

    @task(executor_config=near("region:us-east-1"))
    def compare(
        new_york: dict[str, float],
        ozone: dict[str, float],
        twenties: dict[str, float],
        thirties: dict[str, float],
    ) -> dict[str, object]:
        """Compare four small summaries in the home region: no row of a record leaves its region."""
        nottingham = {month: round(mean([twenties[month], thirties[month]]), 1) for month in twenties}
        warmer = {month: round(new_york[month] - nottingham[month], 1) for month in new_york}
        result: dict[str, object] = {
            "new_york_celsius": new_york,
            "nottingham_celsius": nottingham,
            "new_york_warmer_by": warmer,
            "nottingham_warming_1920s_to_1930s": round(mean(thirties.values()) - mean(twenties.values()), 2),
            "new_york_ozone_ppb": ozone,
        }
        for name, value in result.items():
            print(f"{name}: {value}")
        return result

    compare(new_york_temperature(), new_york_ozone(), nottingham_1920s(), nottingham_1930s())


near_the_data()
