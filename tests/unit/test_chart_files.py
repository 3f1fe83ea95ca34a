"""The chart's generated files."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

if TYPE_CHECKING:
    from types import ModuleType

CHARTS = Path(__file__).parents[2] / "charts"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("charts_generate", CHARTS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_stale(generate: ModuleType) -> None:
    assert generate.stale(generate.files()) == []


def test_stale_files_are_found(generate: ModuleType) -> None:
    wanted = generate.files()
    changed = next(iter(wanted))
    assert generate.stale({**wanted, changed: wanted[changed] + "x: 1\n"}) == [changed]
    del wanted[changed]
    assert generate.stale(wanted) == [changed]


def test_crds_are_kept_and_otherwise_unchanged(generate: ModuleType) -> None:
    crd = {
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "a", "annotations": {"b": "c"}},
        "spec": {"n": 2**53},
    }
    kept = generate.crd(crd)
    assert kept["metadata"]["annotations"] == {"b": "c", "helm.sh/resource-policy": "keep"}
    assert kept["spec"] == crd["spec"]
    assert crd["metadata"]["annotations"] == {"b": "c"}


def test_big_numbers_stay_numbers(generate: ModuleType) -> None:
    """YAML that went through Helm's own functions would say 2.147483647e+09."""
    for text in generate.files().values():
        assert "e+0" not in text
        assert yaml.safe_load(text)


def test_leases_are_bound_where_the_operator_is(generate: ModuleType) -> None:
    lease = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get"]}
    pods = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    assert generate.rights([lease, pods]) == {"lease": [lease], "work": [pods]}


def test_the_stores_certificate_is_its_own_authority(tmp_path: Path) -> None:
    script = (CHARTS / "mms" / "files" / "store-certificate.sh").read_text()
    subprocess.run(["sh", "-c", script, "certificate", str(tmp_path)], check=True, capture_output=True)
    certificate = x509.load_pem_x509_certificate((tmp_path / "tls.crt").read_bytes())
    key = load_pem_private_key((tmp_path / "tls.key").read_bytes(), password=None)
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(certificate)
