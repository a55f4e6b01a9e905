"""What can be said of the images and the compose file without a container engine."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.lock import CHECKS_HEADER
from server.settings import ENV_PREFIX, Settings
from tests.support.unavailable import unavailable

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
KNOWN = {ENV_PREFIX + field.upper() for field in Settings.model_fields}
SECRETS = ("KMSERVE_SECRET_KEY", "POSTGRES_PASSWORD", "REDIS_PASSWORD", "QDRANT_API_KEY")


@pytest.fixture
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def environment(service: Any) -> dict[str, str]:
    return dict(service.get("environment", {}))


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of each line of the Dockerfile, continuation lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    pairs = (line.strip().partition(" ") for line in text.splitlines() if line.strip())
    return [(name, rest.strip()) for name, _, rest in pairs]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            current = found[rest.rpartition(" AS ")[2]] = []
        current.append((name, rest))
    return found


def commands() -> Iterator[list[str]]:
    for stage in ("api", "worker"):
        yield json.loads(next(rest for name, rest in stages()[stage] if name == "CMD"))


def test_compose_has_the_five_services_each_with_a_health_check(compose: Any) -> None:
    assert set(compose["services"]) == {"api", "worker", "postgres", "redis", "qdrant"}
    for service in compose["services"].values():
        assert {"test", "interval", "timeout", "retries"} <= service["healthcheck"].keys()


def test_every_dependency_waits_for_health_and_the_worker_needs_no_index(compose: Any) -> None:
    for name, needed in (("api", {"postgres", "redis", "qdrant"}), ("worker", {"postgres", "redis"})):
        depends = compose["services"][name]["depends_on"]
        assert set(depends) == needed
        assert {dependency["condition"] for dependency in depends.values()} == {"service_healthy"}


def test_every_volume_is_declared_and_used(compose: Any) -> None:
    used = {volume.partition(":")[0] for service in compose["services"].values() for volume in service["volumes"]}
    assert used == compose["volumes"].keys()


def test_images_are_pinned(compose: Any) -> None:
    for service in compose["services"].values():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d+\.\d+", tag), service["image"]


def test_our_environment_names_are_settings(compose: Any) -> None:
    for name in ("api", "worker"):
        ours = {key for key in environment(compose["services"][name]) if key.startswith(ENV_PREFIX)}
        assert ours <= KNOWN
    in_image = re.findall(rf"\b({ENV_PREFIX}[A-Z_]+)=", (DEPLOY / "Dockerfile").read_text())
    assert {*in_image} <= KNOWN
    assert "KMSERVE_DATA_DIR" in in_image


def test_api_and_worker_agree_on_database_broker_and_secret(compose: Any) -> None:
    api, worker = (environment(compose["services"][name]) for name in ("api", "worker"))
    assert worker.items() <= api.items()
    assert {key for key in api.keys() - worker.keys() if "QDRANT" not in key} == set()


def test_no_secret_has_a_default() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    example = (DEPLOY / ".env.example").read_text()
    for secret in SECRETS:
        uses = re.findall(rf"(?<!\$)\$\{{{secret}([^}}]*)\}}", text)
        assert uses, secret
        assert all(use.startswith(":?") for use in uses), secret
        assert re.search(rf"^{secret}=$", example, re.MULTILINE), secret


def test_the_example_names_everything_that_compose_asks_for() -> None:
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", (DEPLOY / "compose.yaml").read_text()))
    offered = set(re.findall(r"^([A-Z_]+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert asked == offered


def test_the_api_is_published_on_loopback_and_nothing_else_is_published(compose: Any) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {"api": ["${PUBLISH:-127.0.0.1:8000}:8000"]}


def test_our_containers_are_read_only_and_without_capabilities(compose: Any) -> None:
    for name in ("api", "worker"):
        service = compose["services"][name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["tmpfs"] == ["/tmp"]
        assert service["build"]["target"] == name
        assert (ROOT / service["build"]["dockerfile"]).exists()


def test_the_docker_client_reads_the_compose_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode != 0:
        unavailable("no docker compose here", ci_has_it=False)
    command = [docker, "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict.fromkeys(SECRETS, "x") | {"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr


def test_stages_build_on_each_other_and_run_as_nobody_special() -> None:
    assert list(stages()) == ["build", "runtime", "api", "worker"]
    for stage in ("api", "worker"):
        assert stages()[stage][0] == ("FROM", f"runtime AS {stage}")
        assert {"HEALTHCHECK", "CMD"} <= {name for name, _ in stages()[stage]}
        assert [rest for name, rest in stages()[stage] if name == "USER"] == []
    users = [rest for name, rest in stages()["runtime"] if name == "USER"]
    assert users == ["10001:10001"]
    assert ("VOLUME", "/var/lib/kmserve") in stages()["runtime"]


def test_images_come_from_pinned_bases_and_hold_no_secret_and_no_test_tools() -> None:
    bases = {rest.split()[0] for name, rest in instructions() if name == "FROM"} - stages().keys()
    assert bases == {"python:3.12-slim"}
    assert not re.search(r"(SECRET|PASSWORD|API_KEY|TOKEN)\w*=", (DEPLOY / "Dockerfile").read_text())
    assert f"/^{CHECKS_HEADER}$/,$d" in (DEPLOY / "Dockerfile").read_text()


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {source for name, rest in stages()["build"] if name == "COPY" for source in rest.split()[:-1]}
    assert [source for source in sorted(copied) if not (ROOT / source).exists()] == []
    assert copied == kept


def test_the_commands_are_modules_of_ours() -> None:
    for command in commands():
        assert command[:2] == ["python", "-m"]
        assert importlib.util.find_spec(command[2]) is not None, command


def test_torch_has_one_version_in_image_and_makefile() -> None:
    in_image = re.search(r"TORCH_VERSION=(\S+)", (DEPLOY / "Dockerfile").read_text())
    in_makefile = re.search(r"TORCH_VERSION := (\S+)", (ROOT / "Makefile").read_text())
    assert in_image is not None
    assert in_makefile is not None
    assert in_image[1] == in_makefile[1]
