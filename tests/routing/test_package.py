"""The package's public name, and that it costs nothing until used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import medmoe.routing


def test_record_routing_is_a_public_name_of_the_package() -> None:
    from medmoe.routing.trace import record_routing

    assert medmoe.routing.record_routing is record_routing
    assert "record_routing" in dir(medmoe.routing)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, medmoe.routing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_wrong_name_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"'medmoe\.routing' has no attribute 'record'"):
        _ = medmoe.routing.record
