"""What a server's GET /metrics shows, read with Prometheus' own parser, and what its instruments are labelled with."""

from __future__ import annotations

import ast
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

# What the process tells of itself.
_NOT_OURS = ("process_", "python_")
_LABELS_SCRIPT = b"result = {each.name: each.label_names for each in app.state.metrics.all()}"


@dataclass(frozen=True, slots=True)
class Family:
    """`name` as it is shown, a counter's with its suffix."""

    name: str
    type: str
    labels: tuple[str, ...]


def scrape(http: httpx.Client) -> dict[str, float]:
    """Values by `name{label=value,...}`, labels in the order of their names, those of buckets left out."""
    found = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def families(http: httpx.Client) -> set[Family]:
    """Every one of ours that is declared, with events or without. Labels as the instruments of the process have them;
    the server must serve /run_script."""
    answer = http.post("/run_script", files={"script": ("labels.py", _LABELS_SCRIPT)})
    assert answer.status_code == 200, answer.text
    labels = {name.removesuffix("_total"): found for name, found in ast.literal_eval(answer.text).items()}
    return {
        Family(family.name + ("_total" if family.type == "counter" else ""), family.type, labels[family.name])
        for family in text_string_to_metric_families(http.get("/metrics").text)
        if not family.name.startswith(_NOT_OURS)
    }
