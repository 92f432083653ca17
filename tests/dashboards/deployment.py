"""Whether compose.yaml, Prometheus' settings and Grafana's provisioning fit each other.

The files are read as text, by the few lines that matter: names, ports, folders and versions.
"""

import pathlib
import re

TOP = pathlib.Path(__file__).resolve().parents[2]


def services(compose):
    """The text of each service by its name."""
    body = compose.split("\nservices:\n", 1)[1].split("\nvolumes:\n", 1)[0]
    parts = re.split(r"^  ([a-z0-9-]+):.*\n", body, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2]))


def problems(compose, prometheus, datasource, provider, exists):
    """`exists` says whether a path beside compose.yaml is there."""
    found = services(compose)
    listens = {}
    for name, text in found.items():
        for variable in ("METRICS_LISTEN", "HEALTH_LISTEN"):
            if port := re.search(rf'STEPFLEET_{variable}: "0\.0\.0\.0:(\d+)"', text):
                listens[name] = port.group(1)
        if "<<: *coordinator" in text:
            listens[name] = listens["coordinator-1"]
    wanted = re.findall(r'"([a-z0-9-]+):(\d+)"', prometheus)
    wanted += re.findall(r"names: \[([a-z0-9-]+)\], type: A, port: (\d+)", prometheus)
    for name, port in wanted:
        if listens.get(name) != port:
            yield f"Prometheus scrapes {name}:{port}, where it listens at {listens.get(name)}"
    for name in sorted(set(listens) - {name for name, _ in wanted}):
        yield f"nobody scrapes {name}"

    for image in re.findall(r"image: (\S+)", compose):
        if image != "stepfleet" and not re.fullmatch(r"\S+/\S+:v?\d\S*", image):
            yield f"the image `{image}` is not pinned to a version"
    mounts = re.findall(r"(\./[a-z/]+):(/[a-z/]+):ro", compose)
    for source, _ in mounts:
        if not exists(source):
            yield f"compose mounts `{source}`, which does not exist"
    folders = {target: source for source, target in mounts}
    path = re.search(r"path: (\S+?)\}", provider).group(1)
    if folders.get(path) != "./grafana":
        yield f"Grafana reads dashboards of `{path}`, where {folders.get(path)} is mounted"
    if folders.get("/etc/grafana/provisioning") != "./grafana/provisioning":
        yield "Grafana's provisioning is not mounted"
    home = re.search(r"HOME_DASHBOARD_PATH: (\S+)", compose).group(1)
    if not exists(home.replace(path, "./grafana")):
        yield f"there is no dashboard `{home}`"
    host = re.search(r"url: http://([a-z0-9-]+):9090", datasource)
    if not host or host.group(1) not in found:
        yield "Grafana's data source is no service of compose.yaml"
    if "name: Prometheus" not in datasource or "type: prometheus" not in datasource:
        yield "Grafana's data source is no Prometheus"


def check():
    deploy = TOP / "deploy"
    return list(problems(
        (deploy / "compose.yaml").read_text(),
        (deploy / "prometheus/prometheus.yaml").read_text(),
        (deploy / "grafana/provisioning/datasources/prometheus.yaml").read_text(),
        (deploy / "grafana/provisioning/dashboards/stepfleet.yaml").read_text(),
        lambda path: (deploy / path).exists(),
    ))
