"""An upgrade from an earlier version of the chart touches no field that Kubernetes refuses to change."""

import json
import shutil

import pytest

from chart import CHART, TOP, immutable, objects, render, text

# What earlier versions rendered, of fields that cannot be changed, by the values that they were given.
BEFORE = sorted((TOP / "tests/helm/before").glob("*.json"))


@pytest.mark.parametrize("path", BEFORE, ids=lambda path: path.stem)
@pytest.mark.parametrize("helm", ["3", "4"])
def test_an_installed_release_can_be_upgraded(path, helm):
    before = json.loads(path.read_text())
    now = immutable(render(before["values"], helm=helm))
    assert before["immutable"].items() <= now.items()


def test_a_change_of_such_a_field_would_be_seen():
    before = json.loads(BEFORE[0].read_text())
    now = immutable(render({**before["values"], "nameOverride": "other"}))
    assert not before["immutable"].items() <= now.items()


@pytest.mark.parametrize("name", ["valkey", "full", "api"])
def test_the_next_version_of_chart_and_program_changes_no_such_field(name, tmp_path):
    chart = tmp_path / "stepfleet"
    shutil.copytree(CHART, chart)
    about = (chart / "Chart.yaml").read_text()
    next_one = about.replace("\nversion: ", "\nversion: 9").replace('appVersion: "', 'appVersion: "9')
    assert next_one != about
    (chart / "Chart.yaml").write_text(next_one)
    values = CHART / f"ci/{name}-values.yaml"
    assert immutable(objects(text(values, chart=chart))) == immutable(objects(text(values)))
