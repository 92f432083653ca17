// Checks objects of KEDA, prometheus-operator and Gateway API against the schemas in the packages @kubernetes-models/*.
// Reads a JSON list from stdin and writes a JSON list of problems. Runs in the folder where the packages are installed.
import {readFileSync} from "node:fs";
import {ScaledObject, TriggerAuthentication} from "@kubernetes-models/keda/keda.sh/v1alpha1";
import * as monitoring from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import {HTTPRoute} from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";

const {PodMonitor, PrometheusRule, ServiceMonitor} = monitoring;
const models = {ScaledObject, TriggerAuthentication, PodMonitor, PrometheusRule, ServiceMonitor, HTTPRoute};
const problems = [];
for (const thing of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new models[thing.kind](thing).validate();
  } catch (error) {
    problems.push(`${thing.kind} ${thing.metadata.name}: ${error.message}`);
  }
}
process.stdout.write(JSON.stringify(problems));
