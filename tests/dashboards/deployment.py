"""Whether compose.yaml, Prometheus' settings, Grafana's provisioning and the collector of traces fit each other.

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


def of_traces(compose, collector, viewer, settings, exists):
    """Problems of the way of traces: programs, collector, viewer. `settings` is docs/configuration.md."""
    found = services(compose)
    host, port = re.search(r"OTEL_EXPORTER_OTLP_ENDPOINT: http://([a-z0-9-]+):(\d+)", compose).groups()
    if host not in found:
        yield f"traces are sent to `{host}`, which is no service"
    if f'grpc: {{endpoint: "0.0.0.0:{port}"}}' not in collector:
        yield f"traces are sent to port {port}, where the collector does not listen"
    config = re.search(r"--config=(/etc/otel/\S+?)\]", compose).group(1)
    if not exists(config.replace("/etc/otel", "./otel")):
        yield f"the collector reads `{config}`, which does not exist"
    target = re.search(r"endpoint: ([a-z0-9-]+):4317", collector).group(1)
    if target not in found:
        yield f"the collector sends to `{target}`, which is no service"
    pipeline = re.search(r"traces: \{(.*)\}", collector).group(1)
    for kind, names in re.findall(r"(\w+): \[(.*?)\]", pipeline):
        declared = re.search(rf"^{kind}:\n((?:  .*\n)+)", collector, re.MULTILINE).group(1)
        for name in names.split(", "):
            if not re.search(rf"^  {re.escape(name)}:", declared, re.MULTILINE):
                yield f"the pipeline has `{name}`, which is not among the {kind}"
    shown = re.search(r"url: http://([a-z0-9-]+):16686", viewer)
    if not shown or shown.group(1) not in found:
        yield "Grafana's data source of traces is no service of compose.yaml"
    for name in set(re.findall(r"\b(STEPFLEET_[A-Z_]+): ", compose)):
        if f"`{name}`" not in settings:
            yield f"no program reads {name}"


def trace_files():
    """What `of_traces` reads."""
    paths = ("deploy/compose.yaml", "deploy/otel/collector.yaml", "deploy/grafana/provisioning/datasources/jaeger.yaml")
    return [(TOP / path).read_text() for path in (*paths, "docs/configuration.md")]


def check():
    deploy = TOP / "deploy"
    traces = of_traces(*trace_files(), lambda path: (deploy / path).exists())
    return list(traces) + list(problems(
        (deploy / "compose.yaml").read_text(),
        (deploy / "prometheus/prometheus.yaml").read_text(),
        (deploy / "grafana/provisioning/datasources/prometheus.yaml").read_text(),
        (deploy / "grafana/provisioning/dashboards/stepfleet.yaml").read_text(),
        lambda path: (deploy / path).exists(),
    ))
