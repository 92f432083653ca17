"""Checks rendered manifests: the schemas of several versions of Kubernetes, and what this chart promises."""
import sys

import kubernetes_validate
import yaml

# The oldest and a middle version that the chart supports, and the newest that is known.
VERSIONS = ["1.28", "1.31", kubernetes_validate.latest_version()]
problems = []


def expect(holds, what):
    if not holds:
        problems.append(what)


def pod_of(manifest, where):
    """What the restricted level of the Pod Security Standards asks, and what keeps a pod from more than it needs."""
    pod = manifest["spec"]["template"]["spec"]
    expect(pod["automountServiceAccountToken"] is False, f"{where}: a token is mounted")
    security = pod["securityContext"]
    expect(security["runAsNonRoot"] and security["runAsUser"] > 0, f"{where}: may run as root")
    expect(security["seccompProfile"]["type"] == "RuntimeDefault", f"{where}: no seccomp profile")
    expect(all(set(v) <= {"name", "emptyDir", "secret"} for v in pod["volumes"]), f"{where}: a volume that is not allowed")
    for container in pod["containers"]:
        own = container["securityContext"]
        expect(own["allowPrivilegeEscalation"] is False, f"{where}: privilege escalation")
        expect(own["capabilities"] == {"drop": ["ALL"]}, f"{where}: capabilities are kept")
        expect(own["readOnlyRootFilesystem"], f"{where}: the root file system can be written")
        names = [variable["name"] for variable in container["env"]]
        expect(len(names) == len(set(names)), f"{where}: a variable twice")
        expect("memory" in container["resources"]["limits"], f"{where}: no memory limit")
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        if "STEPFLEET_DRAIN_TIMEOUT" in environment:
            drain = int(environment["STEPFLEET_DRAIN_TIMEOUT"].removesuffix("s"))
            expect(pod["terminationGracePeriodSeconds"] >= drain + 15, f"{where}: killed while it drains")


for path in sys.argv[1:]:
    with open(path) as file:
        text = file.read()
    expect("insecure" not in text.lower(), f"{path}: opens the API, which knows no users")
    manifests = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    expect(len(names) == len(set(names)), f"{path}: two manifests of one name")
    for manifest in manifests:
        where = f"{path}: {manifest['kind']} {manifest['metadata']['name']}"
        expect(len(manifest["metadata"]["name"]) <= 63, f"{where}: the name is too long")
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                problems.append(f"{where}: Kubernetes {version}: {error.message}")
        if manifest["kind"] == "Deployment":
            pod_of(manifest, where)
            selector = manifest["spec"]["selector"]["matchLabels"]
            labels = manifest["spec"]["template"]["metadata"]["labels"]
            expect(selector.items() <= labels.items(), f"{where}: the selector does not find its pods")
    print(f"{path.rsplit('/', 1)[-1]}: {len(manifests)} manifests, Kubernetes {', '.join(VERSIONS)}")

for problem in problems:
    print(problem, file=sys.stderr)
sys.exit(1 if problems else 0)
