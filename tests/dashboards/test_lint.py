"""That every rule about dashboards finds a bad example, and that expressions are taken apart rightly."""

import copy
import sys
import unittest

sys.dont_write_bytecode = True

import catalog  # noqa: E402
import check  # noqa: E402
import deployment  # noqa: E402
import lint  # noqa: E402
import promql  # noqa: E402

GOOD = check.source().DASHBOARDS["queues-and-workers"]


def panel(dashboard, kind):
    return next(panel for panel in dashboard["panels"] if panel["type"] == kind)


def expression(dashboard, text):
    panel(dashboard, "timeseries")["targets"][0]["expr"] = text


# What is done to a good dashboard, and the rule that must notice.
SPOILED = [
    ("template-datasource", lambda d: d["templating"]["list"][0].update(name="prometheus")),
    ("template-required", lambda d: d["templating"]["list"].pop(3)),
    ("template-query", lambda d: d["templating"]["list"][1].update(refresh=1)),
    ("template-query", lambda d: d["templating"]["list"][3].update(allValue="")),
    ("template-query", lambda d: d["templating"]["list"][3]["query"].update(query="up")),
    ("template-unused", lambda d: [t.update(expr="up") for p in lint.panels(d) for t in p["targets"]]),
    ("uneditable", lambda d: d.update(editable=True)),
    ("shape", lambda d: d.update(schemaVersion=42)),
    ("shape", lambda d: d.update(uid="stepfleet-" + "x" * 31)),
    ("panel-kind", lambda d: panel(d, "stat").update(type="graph")),
    ("panel-datasource", lambda d: panel(d, "stat").update(datasource={"uid": "prometheus"})),
    ("panel-datasource", lambda d: panel(d, "stat")["targets"][0].update(datasource={"uid": "prometheus"})),
    ("panel-title-description", lambda d: panel(d, "stat").update(description="")),
    ("panel-units", lambda d: panel(d, "stat")["fieldConfig"]["defaults"].pop("unit")),
    ("panel-units", lambda d: panel(d, "stat")["fieldConfig"]["defaults"].update(unit="seconds")),
    ("panel-targets", lambda d: panel(d, "stat").update(targets=[])),
    ("panel-place", lambda d: panel(d, "stat")["gridPos"].update(x=22)),
    ("panel-place", lambda d: panel(d, "timeseries")["gridPos"].update(panel(d, "table")["gridPos"])),
    ("target-variables", lambda d: expression(d, 'sum(up{job=~"$jbo"})')),
    ("target-rate-interval", lambda d: expression(d, "sum(rate(stepfleet_jobs_lost_total[5m]))")),
    ("target-counter-agg", lambda d: expression(d, "sum(stepfleet_jobs_lost_total)")),
    ("target-counter-agg", lambda d: expression(d, "sum(rate(stepfleet_workers[$__rate_interval]))")),
    ("target-histogram", lambda d: expression(d, "histogram_quantile(0.9, sum by (queue) (rate(a_bucket[1m])))")),
    ("target-job", lambda d: expression(d, 'sum(stepfleet_worker_slots{namespace=~"$namespace"})')),
    ("target-queue", lambda d: expression(d, "max by (queue) (stepfleet_queue_depth)")),
    ("target-legend", lambda d: panel(d, "timeseries")["targets"][0].update(legendFormat="{{handler}}")),
]


class Rules(unittest.TestCase):
    def test_a_good_dashboard_has_no_problems(self):
        self.assertEqual(lint.problems(GOOD), [])

    def test_every_rule_notices_a_bad_example(self):
        for rule, spoil in SPOILED:
            with self.subTest(rule):
                bad = copy.deepcopy(GOOD)
                spoil(bad)
                self.assertTrue(any(f": {rule}: " in problem for problem in lint.problems(bad)), lint.problems(bad))

    def test_no_rule_is_without_a_bad_example(self):
        self.assertEqual({rule for rule, _ in SPOILED}, set(lint.RULES))


class Expressions(unittest.TestCase):
    def read(self, text):
        return [(s.name, s.window, s.function) for s in promql.selectors(text)]

    def test_metrics_are_told_from_functions_labels_and_words(self):
        self.assertEqual(
            self.read('sum by (queue, le) (rate(a_total{q=~"b|c_d(e)"}[5m])) / on (x) group_left (y) max(f) > bool 2'),
            [("a_total", "[5m]", "rate"), ("f", None, "max")],
        )
        self.assertEqual(
            self.read("a unless a offset 15m or queue:b:c > 1e-9 and vector(0)"),
            [("a", None, None), ("a", None, None), ("queue:b:c", None, None)],
        )
        self.assertEqual(self.read('count_values("version", v{a="b"})'), [("v", None, None)])

    def test_matchers_are_read(self):
        (selector,) = promql.selectors('a{b="c", d=~"e|f"}')
        self.assertEqual(selector.matchers, {"b": ("=", "c"), "d": ("=~", "e|f")})

    def test_variables_are_replaced_and_unknown_ones_found(self):
        self.assertEqual(promql.substituted('a{j=~"$job"}[$__rate_interval]'), 'a{j=~".+"}[30s]')
        self.assertEqual(promql.unknown_variables('a{j=~"$job", k="$other"}'), ["$other"])


class Names(unittest.TestCase):
    METRICS = {
        "a_seconds": {"kind": "histogram", "labels": {"queue"}},
        "b_total": {"kind": "counter", "labels": set()},
        "c": {"kind": "gauge", "labels": None},
    }

    def problems(self, text):
        return list(check.known("here", text, self.METRICS, {"queue:a:rate"}))

    def test_what_exists_is_accepted(self):
        for text in ("sum by (le, queue) (rate(a_seconds_bucket[5m]))", "sum(b_total)", "c{x=\"y\"}", "queue:a:rate"):
            self.assertEqual(self.problems(text), [])

    def test_what_does_not_exist_is_found(self):
        unknown = ("sum(d)", "b_total_count", "b_total_bucket", "queue:d")
        for text in (*unknown, 'b_total{queue="x"}', "sum by (queue) (b_total)"):
            self.assertEqual(len(self.problems(text)), 1, text)

    def test_the_document_of_the_metrics_is_read(self):
        text = "| metric | kind | labels |\n|---|---|---|\n| `a_total` | counter | `queue`, `outcome` |\n"
        text += "| `b` | gauge | |\n"
        expected = {
            "a_total": {"kind": "counter", "labels": {"queue", "outcome"}},
            "b": {"kind": "gauge", "labels": set()},
        }
        self.assertEqual(catalog.from_document(text), expected)
        text = "| metric | means |\n|---|---|\n| `a_total{queue}` | this |\n| `b` | that |\n"
        expected = {"a_total": {"kind": "", "labels": {"queue"}}, "b": {"kind": "", "labels": None}}
        self.assertEqual(catalog.from_document(text), expected)


class Deployment(unittest.TestCase):
    def found(self, name=None, old="", new=""):
        """The problems when `old` became `new` in one of the files."""
        deploy = deployment.TOP / "deploy"
        files = [
            deploy / "compose.yaml",
            deploy / "prometheus/prometheus.yaml",
            deploy / "grafana/provisioning/datasources/prometheus.yaml",
            deploy / "grafana/provisioning/dashboards/stepfleet.yaml",
        ]
        texts = [file.read_text() for file in files]
        if name is not None:
            self.assertIn(old, texts[name])
            texts[name] = texts[name].replace(old, new)
        return list(deployment.problems(*texts, lambda path: (deploy / path).exists()))

    def test_the_files_fit_each_other(self):
        self.assertEqual(self.found(), [])

    def test_what_does_not_fit_is_found(self):
        for name, old, new in (
            (0, '"0.0.0.0:9091"', '"0.0.0.0:9092"'),
            (0, "  worker:\n", "  workers:\n"),
            (0, "grafana/grafana:11.2.0", "grafana/grafana"),
            (0, "prom/prometheus:v2.53.0", "prom/prometheus:latest"),
            (0, "./prometheus:/etc", "./prometheuses:/etc"),
            (0, "dashboards/overview.json", "dashboards/home.json"),
            (1, "coordinator-2:9090", "coordinator-3:9090"),
            (1, "port: 9091", "port: 9090"),
            (2, "http://prometheus:9090", "http://metrics:9090"),
            (3, "/etc/stepfleet/dashboards", "/etc/dashboards"),
        ):
            with self.subTest(f"{old} -> {new}"):
                self.assertNotEqual(self.found(name, old, new), [])

    def test_a_break_in_the_way_of_traces_is_found(self):
        deploy = deployment.TOP / "deploy"
        for name, old, new in (
            (0, "http://otel-collector:4317", "http://collector:4317"),
            (0, "http://otel-collector:4317", "http://otel-collector:4318"),
            (0, "  jaeger:\n", "  viewer:\n"),
            (0, "/etc/otel/collector.yaml", "/etc/otel/otel.yaml"),
            (0, "STEPFLEET_CONCURRENCY:", "STEPFLEET_CONCURENCY:"),
            (1, "endpoint: jaeger:4317", "endpoint: tempo:4317"),
            (1, "exporters: [otlp/viewer]", "exporters: [otlp]"),
            (1, "processors: [memory_limiter, batch]", "processors: [memory_limiter, batches]"),
            (2, "http://jaeger:16686", "http://tempo:16686"),
        ):
            with self.subTest(f"{old} -> {new}"):
                texts = deployment.trace_files()
                self.assertIn(old, texts[name])
                texts[name] = texts[name].replace(old, new)
                found = list(deployment.of_traces(*texts, lambda path: (deploy / path).exists()))
                self.assertEqual(len(found), 2 if "viewer:" in new else 1, found)


if __name__ == "__main__":
    unittest.main()
