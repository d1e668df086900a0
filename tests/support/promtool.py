"""Prometheus's promtool, which evaluates alerts on series that a test makes up or has recorded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from manifests import Manifest

PROMTOOL = shutil.which("promtool", path=Path(sys.executable).parent) or shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="needs promtool beside Python (`make promtool`) or on PATH")


def check(rule: Manifest, folder: Path) -> str:
    """Return promtool's objections to a PrometheusRule, empty if there are none."""
    done = _promtool("check", "rules", "--lint-fatal", str(_written(rule, folder)))
    return done.stdout + done.stderr if done.returncode else ""


def evaluate(rule: Manifest, test: dict[str, Any], folder: Path) -> str:
    """Return how a PrometheusRule differs from the expectation, empty if it does not.

    Args:
        rule: The PrometheusRule.
        test: One test in promtool's form: series, and the expected alerts with their times.
        folder: The folder for the files.
    """
    given = {"rule_files": [str(_written(rule, folder))], "evaluation_interval": "30s", "tests": [test]}
    path = folder / "test.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    done = _promtool("test", "rules", str(path))
    return done.stdout + done.stderr if done.returncode else ""


def firing(alerts: set[str], at: int, within: int = 1, selector: str = "") -> dict[str, Any]:
    """Return the expectation that exactly these alerts fire.

    Args:
        alerts: Their names, without the common prefix.
        at: The time, in seconds.
        within: Seconds before that time which count too.
        selector: Restricts the alerts, such as `alertname="A"`.
    """
    found = f'max_over_time(ALERTS{{alertstate="firing",{selector}}}[{within}s])'
    samples = [{"labels": f'{{alertname="ChannelsZmq{name}"}}', "value": 1} for name in sorted(alerts)]
    return {"expr": f"group by (alertname) ({found})", "eval_time": f"{at}s", "exp_samples": samples}


def _written(rule: Manifest, folder: Path) -> Path:
    path = folder / "rules.json"
    path.write_text(json.dumps(rule["spec"]), encoding="utf-8")
    return path


def _promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=120, check=False)
