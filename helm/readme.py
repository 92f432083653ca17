"""Writes the chart's README from values.yaml, its comments, and values.schema.json. Run it with `make chart-readme`.

A comment above a value, or behind it, is its description; lines that are further in are code. What stands above a part
that has values of its own is said above its table. Where pools and Valkey say nothing, the coordinator's words hold.
"""

import json
import pathlib
import re
import sys

import yaml

CHART = pathlib.Path(__file__).resolve().parent / "stepfleet"
# The top values that are no part.
GENERAL = "General"
HEAD = """\
<!-- Written by `make chart-readme` from values.yaml and values.schema.json. Changes here are lost. -->

# Stepfleet's chart

{description}. Chart {version}, program {program}, Kubernetes {kubernetes}, Helm 3 and 4.

```sh
kubectl create secret generic stepfleet-redis --from-literal=url='redis://redis:6379'
helm install fleet helm/stepfleet \\
  --set image.repository=registry.example.org/stepfleet --set redis.existingSecret=stepfleet-redis
```

[docs/kubernetes.md](../../docs/kubernetes.md) tells how to install, scale, watch and upgrade it;
[docs/runbooks](../../docs/runbooks/README.md) what to do about its alerts. Every value is below, and checked: a name
that is not there is an error. Objects *of Kubernetes* are as in its API, which checks them.
"""


class Comments:
    """The comments of a YAML file by the lines of their keys."""

    def __init__(self, text):
        self._lines = text.splitlines()

    def of(self, line):
        """What is said above a key, and behind it."""
        first = line
        while first and re.match(r"\s*#", self._lines[first - 1]):
            first -= 1
        said = [one.lstrip()[1:] for one in self._lines[first:line]]
        behind = re.search(r"  # -- (.*)$", self._lines[line])
        return _joined(said + ([f" {behind[1]}"] if behind else []))


def _joined(lines):
    """One line of Markdown. Two more blanks than usual are code."""
    text = ""
    for line in lines:
        if line.startswith("   "):
            text += f" `{line.strip()}`"
        else:
            text += " " + line.strip().removeprefix("-- ")
    return text.strip().replace("|", "\\|")


def _leaves(node, at=()):
    """Each value with its path and the line of its key. Mappings in braces are values, others are parts."""
    for key, value in node.value:
        path, line = (*at, key.value), key.start_mark.line
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            yield path, line, None
            yield from _leaves(value, path)
        else:
            yield path, line, value


def _written(node, text):
    """A default as it is in the file, without the comments inside."""
    return re.sub(r"\s*\n\s*", " ", text[node.start_mark.index : node.end_mark.index]).strip()


class Types:
    """What the schema says of each value."""

    def __init__(self, schema):
        self._schema = schema

    def _known(self, part):
        while "$ref" in part:
            name = part["$ref"].rsplit("/", 1)[1]
            if name == "kubernetes":
                return {"words": "object of Kubernetes"}
            part = self._schema["definitions"][name]
        return part

    def of(self, path):
        part = self._known(self._schema)
        for name in path:
            if part.get("words"):
                return "as in Kubernetes"
            inside = part.get("properties", {})
            part = self._known(inside[name] if name in inside else part["additionalProperties"])
        return self._words(part)

    def _words(self, part):
        part = self._known(part)
        if "words" in part:
            return part["words"]
        if "enum" in part:
            return ", ".join(f"`{one}`" for one in part["enum"])
        if "oneOf" in part:
            return " or ".join(self._words(one) for one in part["oneOf"])
        kind = part.get("type", "any")
        if isinstance(kind, list):
            return " or ".join(kind)
        if kind == "array":
            return f"list of {self._words(part['items'])}"
        if kind == "object":
            inside = part.get("additionalProperties")
            return f"map of {self._words(inside)}" if isinstance(inside, dict) else "object"
        if "minimum" in part:
            return f"{kind}, {part['minimum']} to {part['maximum']}"
        return kind


def _sections(text, types):
    """Parts of the README: title, what is said of it, and rows."""
    comments = Comments(text)
    said = {}
    sections = {GENERAL: ("", [])}
    for path, line, value in _leaves(yaml.compose(text)):
        about = comments.of(line)
        if path[0] in ("workerDefaults", "valkey") and not about:
            about = said.get(("coordinator", *path[1:]), "")
        said[path] = about
        if len(path) == 1 and value is None:
            sections[path[0]] = (about, [])
        elif value is not None:
            title = path[0] if path[0] in sections else GENERAL
            sections[title][1].append((".".join(path), types.of(path), _written(value, text), about))
        elif about:
            sections[path[0]][1].append((".".join(path), "object", "", about))
    return sections


def readme():
    """The whole file."""
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    lines = [
        HEAD.format(
            description=chart["description"],
            version=chart["version"],
            program=chart["appVersion"],
            kubernetes=chart["kubeVersion"].removeprefix(">=").removesuffix("-0") + " and newer",
        )
    ]
    for title, (about, rows) in _sections(text, Types(schema)).items():
        lines.append(f"## {title}\n")
        if about:
            lines.append(f"{about}\n")
        lines.append("| value | type | default | means |\n|---|---|---|---|")
        for name, kind, default, means in rows:
            lines.append(f"| `{name}` | {kind} | {f'`{default}`' if default else ''} | {means} |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def main():
    if sys.argv[1:]:
        sys.exit(f"readme: takes no arguments, found `{' '.join(sys.argv[1:])}`")
    (CHART / "README.md").write_text(readme())


if __name__ == "__main__":
    main()
