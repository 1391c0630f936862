"""`manage.py check --deploy`: each check fires when its fault is there, and a hardened node has none."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError

from dss_project import deploy_checks
from dss_project.config import ConfigError, NodeConfig

ROOT = Path(__file__).parents[2]
SECRET = "Wv7tq0YkZ3c9b1Xn5MdaR8sLfGhJ2pEu"
DUTIES = {"dss.I001", "dss.I002", "dss.I003", "dss.I004"}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    (directory / "raft.sqlite3").touch(mode=0o600)
    return directory


@pytest.fixture
def found(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., set[str]]:
    """`found(NAME="value", …)`: the ids of the faults of a hardened node with these settings in addition; None removes one."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    secret = data_dir.parent / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    hardened = {
        "NODE_ID": "node-1",
        "RPC_HOST": "10.0.0.5",
        "PEERS": "http://10.0.0.6:8101/node-2,http://10.0.0.7:8101/node-3",
        "DSS_DATA_DIR": str(data_dir),
        "DSS_CLUSTER_SECRET_FILE": str(secret),
        "DSS_TRUSTED_PROXIES": "10.0.0.1",
        "DSS_SECURE_COOKIES": "true",
        "DSS_HSTS_SECONDS": "31536000",
        "DSS_CALLS_PER_SECOND_PER_TOKEN_MAX": "500",
        "REDIS_URL": f"rediss://:{SECRET}@10.0.0.9:6379/0",
    }

    def run(**changed: str | None) -> set[str]:
        environ = {name: value for name, value in {**hardened, **changed}.items() if value is not None}
        messages = deploy_checks.run(NodeConfig.from_env(environ), environ)
        assert all(message.hint for message in messages)
        return {message.id for message in messages} - DUTIES

    return run


def test_a_hardened_node(found: Callable[..., set[str]]) -> None:
    assert found() == set()


#: check -> settings in which only that fault is added
FAULTS: dict[str, dict[str, str | None]] = {
    "dss.W001": {"DSS_OPEN": "true"},
    "dss.W002": {
        "RPC_HOST": "127.0.0.1",
        "DSS_TRUSTED_PROXIES": None,
    },
    "dss.W003": {"DSS_CLUSTER_SECRET_FILE": None, "RPC_HOST": "127.0.0.1"},
    "dss.W004": {"DSS_SECRET_KEY": "short", "@also": "dss.W017"},
    "dss.W005": {"DSS_API_TOKEN": SECRET, "@also": "dss.W017"},
    "dss.W006": {"DSS_TOKEN_KEY_PREVIOUS": SECRET, "@also": "dss.W017"},
    "dss.W007": {"DSS_TRUSTED_PROXIES": None},
    "dss.W008": {"RPC_HOST": "0.0.0.0"},
    "dss.W009": {"DSS_SECURE_COOKIES": None},
    "dss.W010": {"DSS_HSTS_SECONDS": "0"},
    "dss.W011": {"DSS_CSRF_TRUSTED_ORIGINS": "http://dss.example.org"},
    "dss.W012": {"DSS_ALLOWED_HOSTS": "*"},
    "dss.W013": {"DSS_OPEN_PATHS": "/metrics"},
    "dss.W014": {"DSS_DEBUG": "true"},
    "dss.W017": {"DSS_TOKEN_KEY": SECRET},
    "dss.W019": {"DSS_ADMIN_PASSWORD": "short", "@also": "dss.W017"},
    "dss.W020": {"REDIS_URL": f"redis://:{SECRET}@10.0.0.9:6379/0"},
    "dss.W021": {"REDIS_URL": "rediss://10.0.0.9:6379/0"},
    "dss.W022": {"DSS_CALLS_PER_SECOND_PER_TOKEN_MAX": None},
    "dss.W023": {"DSS_WATCHDOG_MS": "0"},
}
#: tested below, because they are not about settings
OTHERS = {"dss.W015", "dss.W016", "dss.W018"}


@pytest.mark.parametrize("id", sorted(FAULTS))
def test_each_fault_is_found(found: Callable[..., set[str]], id: str) -> None:
    changed = dict(FAULTS[id])
    also = {changed.pop("@also")} if "@also" in changed else set()
    assert found(**changed) == {id} | also


def test_no_check_is_without_a_test() -> None:
    assert {check.id for check in deploy_checks.CHECKS} == set(FAULTS) | OTHERS | DUTIES


def test_tls_of_the_node_itself(found: Callable[..., set[str]], data_dir: Path) -> None:
    key = data_dir.parent / "key.pem"
    key.touch(mode=0o600)
    tls = {"DSS_TLS_CERT_FILE": str(key), "DSS_TLS_KEY_FILE": str(key), "DSS_TRUSTED_PROXIES": None}
    tls["PEERS"] = "https://10.0.0.6:8101/node-2"
    assert found(**tls) == set()
    assert found(**tls, RPC_HOST="0.0.0.0") == set(), "also past a proxy, it speaks TLS"
    assert found(**tls, DSS_HSTS_SECONDS="0") == {"dss.W010"}
    key.chmod(0o644)
    assert found(**tls) == {"dss.W016"}


def test_a_previous_secret(found: Callable[..., set[str]]) -> None:
    assert found(DSS_CLUSTER_SECRET_PREVIOUS=SECRET[::-1]) == {"dss.W006", "dss.W017"}


def test_a_weak_secret_of_the_cluster(found: Callable[..., set[str]]) -> None:
    assert found(DSS_CLUSTER_SECRET_FILE=None, DSS_CLUSTER_SECRET="a" * 40) == {"dss.W003", "dss.W017"}


def test_a_redis_on_this_machine_needs_no_tls(found: Callable[..., set[str]]) -> None:
    assert found(REDIS_URL=f"redis://:{SECRET}@127.0.0.1:6379/0") == set()
    assert found(REDIS_URL="unix:///run/redis.sock") == set()


def test_every_host_of_a_redis_counts(found: Callable[..., set[str]]) -> None:
    assert found(REDIS_URL=f"redis+cluster://:{SECRET}@127.0.0.1:7000,localhost:7001") == set()
    assert found(REDIS_URL=f"redis+cluster://:{SECRET}@127.0.0.1:7000,10.0.0.9:7000") == {"dss.W020"}
    assert found(REDIS_URL="rediss+sentinel://10.0.0.8,10.0.0.9/values") == {"dss.W021"}


def test_the_engine_of_topics_is_looked_at_like_the_backing_store(found: Callable[..., set[str]]) -> None:
    assert found(DSS_ENGINE_URL=f"redis+cluster://:{SECRET}@127.0.0.1:7000") == set()
    assert found(DSS_ENGINE_URL=f"redis://:{SECRET}@10.0.0.9:6379") == {"dss.W020"}
    assert found(DSS_ENGINE_URL="rediss://10.0.0.9:6379") == {"dss.W021"}


@pytest.mark.parametrize("name", ["", "raft.sqlite3"])
def test_files_that_others_can_use(found: Callable[..., set[str]], data_dir: Path, name: str) -> None:
    (data_dir / name).chmod(0o750)
    assert found() == {"dss.W015"}


def test_a_secret_that_everybody_can_read(found: Callable[..., set[str]], data_dir: Path) -> None:
    secret = data_dir.parent / "secret"
    secret.chmod(0o440)
    assert found() == set(), "as orchestrators mount it"
    secret.chmod(0o644)
    assert found() == {"dss.W016"}


def test_root(found: Callable[..., set[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert found() == {"dss.W018"}


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Django's own checks add nothing: each is fulfilled, or silenced with a reason in settings.py."""
    monkeypatch.setattr(settings, "SILENCED_SYSTEM_CHECKS", settings.SILENCED_SYSTEM_CHECKS)
    call_command("check", "--deploy")
    said = set(re.findall(r"\((\w+\.[WEI]\d+)\)", capsys.readouterr().err))
    assert said >= DUTIES
    assert all(id.startswith("dss.") for id in said), said
    with pytest.raises(SystemCheckError):
        call_command("check", "--deploy", "--fail-level", "INFO")
    everything = [check.id for check in deploy_checks.CHECKS]
    monkeypatch.setattr(settings, "SILENCED_SYSTEM_CHECKS", [*settings.SILENCED_SYSTEM_CHECKS, *everything])
    call_command("check", "--deploy", "--fail-level", "INFO")
    assert not [message for message in checks.run_checks() if message.id and message.id.startswith("dss.")], "only with --deploy"


def test_silenced_checks_have_ids() -> None:
    assert NodeConfig.from_env({"DSS_SILENCED_CHECKS": "dss.I001, dss.I002"}).silenced_checks == ("dss.I001", "dss.I002")
    with pytest.raises(ConfigError, match="DSS_SILENCED_CHECKS must list ids"):
        NodeConfig.from_env({"DSS_SILENCED_CHECKS": "audit"})


def test_the_guide_has_every_check() -> None:
    rows = re.findall(r"^\| `(dss\.[WI]\d+)` \|", (ROOT / "docs/how-to/hardening.md").read_text(), flags=re.MULTILINE)
    assert rows == [check.id for check in deploy_checks.CHECKS]


def test_a_node_behind_a_proxy_is_not_for_this_machine_only() -> None:
    assert NodeConfig(rpc_host="127.0.0.1").is_local_only
    assert not NodeConfig(rpc_host="127.0.0.1", trusted_proxies=("127.0.0.1",)).is_local_only
