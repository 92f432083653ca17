"""The chart's README has every value as it is, says what each means, and is in the package."""

import importlib.util
import re
import subprocess
import tarfile

import yaml

from chart import CHART, HELMS, TOP

spec = importlib.util.spec_from_file_location("readme", TOP / "helm/readme.py")
readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(readme)


def rows():
    """Name, type, default and meaning of each value."""
    lines = [line for line in readme.readme().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_readme_is_what_the_values_say():
    assert (CHART / "README.md").read_text() == readme.readme(), "hint: make chart-readme"


def test_every_value_is_there_with_its_default():
    def leaves(part, at=()):
        for name, value in part.items():
            yield (*at, name), value
            if isinstance(value, dict):
                yield from leaves(value, (*at, name))

    told = {name.strip("`"): yaml.safe_load(default.strip("`")) for name, _, default, _ in rows() if default}
    known = {".".join(path): value for path, value in leaves(yaml.safe_load((CHART / "values.yaml").read_text()))}
    assert len(told) > 200
    assert told == {name: known[name] for name in told}
    # What has no row of its own is inside a value that has one, or is a part with rows.
    for name in set(known) - set(told):
        assert any(name.startswith(f"{one}.") or one.startswith(f"{name}.") for one in told), name


def test_every_value_has_a_type_and_a_meaning():
    for name, kind, _, means in rows():
        assert kind and "any" not in kind, name
        # Switches say themselves what they do, and security contexts are Kubernetes' own.
        assert means or name.endswith(".enabled`") or kind == "as in Kubernetes", name


def test_the_package_has_the_readme_and_none_of_the_tests(tmp_path):
    command = [HELMS["4"], "package", str(CHART), "--destination", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as package:
        names = set(package.getnames())
    assert {"stepfleet/README.md", "stepfleet/values.schema.json", "stepfleet/rules/stepfleet.yaml"} <= names
    assert not [name for name in names if "/ci/" in name]
