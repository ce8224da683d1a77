"""The chart as Helm renders it: what it grants, what it runs, which values it takes.

Here without a cluster, for many sets of values; tests/cluster/test_chart.py installs it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from sluice_api import names
from sluice_gateway import settings as gateway_settings
from sluice_operator import app as operator_app
from sluice_operator import kinds
from sluice_operator import settings as operator_settings
from sluice_operator.metrics_api import registration
from sluice_operator.metrics_api.values import METRICS
from tests.support import chart, pod_security

DIGEST = "sha256:" + "0" * 64
EXPOSED = {"auth": {"publicAccess": True}}
VALUE_SETS: dict[str, dict[str, Any]] = {
    "default": {},
    "test images": chart.TEST_IMAGES,
    "plain manifest": chart.MANIFEST_VALUES,
    "no redis": {"redis": {"enabled": False}},
    "own redis": {"redis": {"enabled": False, "url": "rediss://cache.example:6380/1"}},
    "redis in a Secret": {"redis": {"enabled": False, "existingSecret": "shared"}},
    "all Secrets given": {
        "cache": {"existingSecret": "mine"},
        "redis": {"enabled": False, "existingSecret": "mine"},
    },
    "no metrics API": {"metricsApi": {"enabled": False}},
    "no policies": {"networkPolicy": {"enabled": False}},
    "scrapers": {"networkPolicy": {"metricsFrom": [{"namespaceSelector": {}}]}},
    "closed gateway": {"networkPolicy": {"applicationsFrom": [{"podSelector": {}}]}},
    "digests": {
        component: {"image": {"digest": DIGEST}} for component in ("operator", "gateway", "worker")
    },
    "registry": {"image": {"registry": "registry.example/ai", "pullSecrets": ["pull"]}},
    "openshift": {"redis": {"runAsUser": None}},
    "other priority": {"priorityClass": {"create": False, "name": "system-cluster-critical"}},
    "no priority": {"priorityClass": {"name": ""}},
    "ingress": {**EXPOSED, "ingress": {"enabled": True, "host": "ai.example", "tlsSecret": "ai"}},
    "route": {**EXPOSED, "httpRoute": {"enabled": True, "parentRefs": [{"name": "edge"}]}},
    "load balancer": {**EXPOSED, "gateway": {"service": {"type": "LoadBalancer"}}},
    "keys": {"auth": {"mode": "keys", "existingSecret": "mine"}, "ingress": {"enabled": True}},
    "limits": {"auth": {"limits": {"requests": "20/s:100", "inputs": "600/m", "tokens": "9/h"}}},
    "no CRD": {"crds": {"install": False}},
    "leaves nothing": {"crds": {"keep": False}},
    "labelled": {"labels": {"team": "platform"}, "annotations": {"cost": "shared"}},
    "placed": {
        component: {
            "nodeSelector": {"pool": "infra"},
            "tolerations": [{"key": "infra", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
        }
        for component in ("operator", "gateway", "redis")
    },
    "one of each": {"operator": {"replicas": 1}, "gateway": {"replicas": 1}},
    "pods with marks": {
        component: {
            "podLabels": {"zone": "a"},
            "podAnnotations": {"prometheus.io/scrape": "true"},
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
            "resources": {"requests": {"cpu": 1, "memory": "1.5Gi"}, "limits": {"memory": "2e9"}},
            "topologySpreadConstraints": [{"topologyKey": "rack"}],
        }
        for component in ("operator", "gateway")
    },
    "one zone": {"gateway": {"zone": "eu-1a"}},
    "slow drain": {"gateway": {"drainDelay": "1m30s", "drainGrace": "10m"}},
}

Objects = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rendered() -> dict[str, Objects]:
    """The objects of every set of values."""
    return {name: chart.render(values) for name, values in VALUE_SETS.items()}


@pytest.fixture(params=VALUE_SETS)
def objects(request: pytest.FixtureRequest, rendered: dict[str, Objects]) -> Objects:
    found: Objects = rendered[request.param]
    return found


def one(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    (found,) = (
        each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name
    )
    return found


@pytest.mark.parametrize(("replicas", "fewer"), [(1, 0), (2, 1), (5, 1)])
def test_an_upgrade_ends_no_models_worker_and_needs_no_room(replicas: int, fewer: int) -> None:
    """A pod in surplus that preempts takes a worker's place; one that may not waits for its own."""
    values = {"replicas": replicas}
    made = chart.render({"operator": values, "gateway": values})
    assert one(made, "PriorityClass", "sluice-platform")["preemptionPolicy"] == "Never"
    for name in ("sluice-operator", "sluice-gateway"):
        strategy = one(made, "Deployment", name)["spec"]["strategy"]
        assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": fewer}


def keys(objects: Objects) -> list[tuple[str, str, str]]:
    return [
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"])
        for each in objects
    ]


def pods(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, spec) of everything that becomes a pod."""
    for each in objects:
        if each["kind"] == "Deployment":
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            yield each["metadata"]["name"], each["spec"]


def environment(objects: Objects, component: str) -> dict[str, str]:
    """The variables of a component's container; what comes from elsewhere gets a stand-in."""
    spec = one(objects, "Deployment", f"sluice-{component}")["spec"]["template"]["spec"]
    stand_ins = {"secretKeyRef": "redis://:secret@redis:6379/0", "fieldRef": "sluice-system"}
    return {
        variable["name"]: variable.get("value")
        or next(stand_ins[source] for source in variable["valueFrom"])
        for variable in spec["containers"][0]["env"]
    }


# What is there ------------------------------------------------------------------------------------


def test_the_names_that_other_parts_rely_on(rendered: dict[str, Objects]) -> None:
    objects = rendered["default"]
    for component in ("operator", "gateway"):
        one(objects, "Deployment", f"sluice-{component}")
        one(objects, "ServiceAccount", f"sluice-{component}")
    ports = {
        name: [
            (port["port"], port["targetPort"])
            for port in one(objects, "Service", name)["spec"]["ports"]
        ]
        for name in ("sluice-gateway", "sluice-gateway-admin", "sluice-metrics-api", "sluice-redis")
    }
    assert ports == {
        "sluice-gateway": [(80, "http")],
        "sluice-gateway-admin": [(names.ADMIN_PORT, "admin")],
        "sluice-metrics-api": [(443, "metrics-api")],
        "sluice-redis": [(6379, "redis")],
    }
    declared = {
        (name, port["name"]): port["containerPort"]
        for name, spec in pods(objects)
        for container in spec["containers"]
        for port in container.get("ports", ())
    }
    assert declared == {
        ("sluice-operator", "metrics-api"): names.METRICS_API_PORT,
        ("sluice-operator", "admin"): names.ADMIN_PORT,
        ("sluice-gateway", "http"): names.APP_PORT,
        ("sluice-gateway", "admin"): names.ADMIN_PORT,
        ("sluice-redis", "redis"): 6379,
    }
    (token,) = (
        volume["projected"]["sources"][0]["serviceAccountToken"]
        for volume in one(objects, "Deployment", "sluice-operator")["spec"]["template"]["spec"][
            "volumes"
        ]
        if "projected" in volume
    )
    assert token["audience"] == names.DEMAND_AUDIENCE
    one(objects, "Lease", names.LEASE)
    one(objects, "Secret", registration.SECRET)
    one(objects, "Service", registration.SERVICE)
    one(objects, "Service", operator_app.GATEWAY_ADMIN_SERVICE)


def test_the_release_may_have_any_name_and_the_objects_keep_theirs() -> None:
    other = chart.render(release="another")
    assert keys(other) == keys(chart.render())


def test_every_object_has_a_place_and_the_given_marks(rendered: dict[str, Objects]) -> None:
    for each in rendered["labelled"]:
        assert each["metadata"]["labels"]["team"] == "platform", each["metadata"]
        assert each["metadata"]["annotations"]["cost"] == "shared", each["metadata"]
        if each["kind"] == "Deployment":
            template = each["spec"]["template"]["metadata"]
            assert (template["labels"]["team"], template["annotations"]["cost"]) == (
                "platform",
                "shared",
            )


def test_no_object_twice(objects: Objects) -> None:
    found = keys(objects)
    assert len(found) == len(set(found))


def test_services_and_policies_and_budgets_select_the_pods_they_mean(objects: Objects) -> None:
    labels = {
        each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"]
        for each in objects
        if each["kind"] == "Deployment"
    }

    def selected(selector: Mapping[str, str]) -> set[str]:
        return {name for name, own in labels.items() if selector.items() <= own.items()}

    for each in objects:
        name, spec = each["metadata"]["name"], each.get("spec", {})
        component = {
            "sluice-gateway-admin": "sluice-gateway",
            "sluice-metrics-api": "sluice-operator",
        }
        match each["kind"]:
            case "Service":
                assert selected(spec["selector"]) == {component.get(name, name)}
            case "NetworkPolicy":
                assert selected(spec["podSelector"]["matchLabels"]) == {name}
            case "PodDisruptionBudget" | "Deployment":
                assert selected(spec["selector"]["matchLabels"]) == {name}
            case _:
                continue


def test_networks_are_closed_but_for_what_is_meant(rendered: dict[str, Objects]) -> None:
    def rules(name: str, component: str) -> dict[int, Any]:
        spec = one(rendered[name], "NetworkPolicy", f"sluice-{component}")["spec"]
        return {
            port["port"]: rule.get("from", "anywhere")
            for rule in spec["ingress"]
            for port in rule["ports"]
        }

    def labelled(component: str) -> list[dict[str, Any]]:
        labels = {names.APP_NAME: "sluice", names.COMPONENT: component}
        return [{"podSelector": {"matchLabels": labels}}]

    everyone = [{"namespaceSelector": {}}]
    assert rules("default", "gateway") == {8080: "anywhere", 8081: labelled("operator")}
    assert rules("default", "operator") == {8443: "anywhere"}
    assert rules("default", "redis") == {6379: labelled("gateway")}
    assert rules("scrapers", "gateway")[8081] == labelled("operator") + everyone
    assert rules("scrapers", "operator")[8081] == everyone
    assert rules("closed gateway", "gateway")[8080] == [{"podSelector": {}}, *labelled("test")]
    assert not [each for each in rendered["no policies"] if each["kind"] == "NetworkPolicy"]


# What it runs -------------------------------------------------------------------------------------


def test_every_pod_is_restricted(objects: Objects) -> None:
    for name, spec in pods(objects):
        assert pod_security.breaches(spec) == [], name
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name


def test_a_pod_that_is_not_restricted_is_noticed() -> None:
    bare = {"containers": [{"name": "main"}], "hostNetwork": True, "volumes": [{"hostPath": {}}]}
    assert pod_security.breaches(bare) == [
        "hostNetwork",
        "volume hostPath",
        "main: may escalate privileges",
        "main: keeps capabilities",
        "main: may run as root",
        "main: no seccomp profile",
    ]


def test_every_container_has_memory_bounds_and_long_ones_probes(objects: Objects) -> None:
    for name, spec in pods(objects):
        # Otherwise the Service sluice-gateway would set SLUICE_GATEWAY_PORT, a setting of ours.
        assert spec["enableServiceLinks"] is False, name
        for container in spec["containers"]:
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
            if spec.get("restartPolicy") != "Never":
                assert {"readinessProbe", "livenessProbe"} <= container.keys(), name


def test_only_operator_and_gateway_have_a_token(objects: Objects) -> None:
    for name, spec in pods(objects):
        with_token = spec.get("automountServiceAccountToken", True)
        assert with_token == (name in {"sluice-operator", "sluice-gateway"}), name


def test_images_are_where_the_values_say(rendered: dict[str, Objects]) -> None:
    def images(name: str) -> dict[str, str]:
        return {
            pod: container["image"]
            for pod, spec in pods(rendered[name])
            for container in spec["containers"]
        }

    version = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["appVersion"]
    assert images("default") == {
        "sluice-operator": f"localhost/sluice-operator:{version}",
        "sluice-gateway": f"localhost/sluice-gateway:{version}",
        "sluice-test-gateway": f"localhost/sluice-gateway:{version}",
        "sluice-redis": "docker.io/library/redis:8.2",
    }
    assert images("registry")["sluice-gateway"] == f"registry.example/ai/sluice-gateway:{version}"
    assert images("digests")["sluice-operator"] == f"localhost/sluice-operator@{DIGEST}"
    for _, spec in pods(rendered["registry"]):
        assert spec["imagePullSecrets"] == [{"name": "pull"}]
    told = environment(rendered["default"], "operator")
    assert told["SLUICE_OPERATOR_WORKER_IMAGE"] == f"localhost/sluice-worker:{version}"
    assert told["SLUICE_OPERATOR_WORKER_IMAGE_GPU"] == f"localhost/sluice-worker:{version}-cuda"
    told = environment(rendered["digests"], "operator")
    assert told["SLUICE_OPERATOR_WORKER_IMAGE"] == f"localhost/sluice-worker@{DIGEST}"


def test_the_gateway_takes_every_setting(objects: Objects) -> None:
    told = environment(objects, "gateway")
    known = {option.variable for option in gateway_settings.OPTIONS}
    foreign = {"USER", "HTTPS_PROXY"}
    assert told.keys() - known - foreign == set()
    settings = gateway_settings.read([], told)
    assert (settings.host, settings.port) == ("0.0.0.0", names.APP_PORT)
    assert (settings.admin_host, settings.admin_port) == ("0.0.0.0", names.ADMIN_PORT)
    grace = one(objects, "Deployment", "sluice-gateway")["spec"]["template"]["spec"][
        "terminationGracePeriodSeconds"
    ]
    assert grace == settings.drain_delay + settings.drain_grace + 10


def test_the_operator_takes_every_setting(objects: Objects) -> None:
    told = environment(objects, "operator")
    known = {option.variable for option in operator_settings.OPTIONS}
    foreign = {"USER", "HTTPS_PROXY"}
    assert told.keys() - known - foreign == set()
    operator_settings.read([], told)


def test_the_gateway_of_a_shared_cache_has_its_secret(objects: Objects) -> None:
    told = environment(objects, "gateway")
    assert ("SLUICE_REDIS_URL" in told) == ("SLUICE_GATEWAY_CACHE_SECRET" in told)
    spec = one(objects, "Deployment", "sluice-gateway")["spec"]["template"]["spec"]
    mounted = {mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
    if path := told.get("SLUICE_GATEWAY_CACHE_SECRET"):
        assert path.rpartition("/")[0] in mounted
    made = {key[2] for key in keys(objects) if key[0] == "Secret"}
    asked = {volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
    given = {"mine", "shared"}
    assert asked <= made | given


def test_keys_are_mounted_as_a_folder_that_follows_its_secret(
    rendered: dict[str, Objects],
) -> None:
    settings = gateway_settings.read([], environment(rendered["keys"], "gateway"))
    assert (settings.auth, settings.allow_anonymous_network) == ("keys", False)
    spec = one(rendered["keys"], "Deployment", "sluice-gateway")["spec"]["template"]["spec"]
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "keys")
    assert volume["secret"]["secretName"] == "mine"
    (mount,) = (m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "keys")
    assert mount["readOnly"] is True and "subPath" not in mount
    assert str(settings.keys_file) == f"{mount['mountPath']}/keys.yaml"
    one(rendered["keys"], "Ingress", "sluice-gateway")
    default = gateway_settings.read([], environment(rendered["default"], "gateway"))
    assert (default.auth, default.limit_gateways) == ("none", 2)


def test_limits_are_told_to_gateways(rendered: dict[str, Objects]) -> None:
    settings = gateway_settings.read([], environment(rendered["limits"], "gateway"))
    found = settings.tenant_limits
    assert [rate and rate.text for rate in (found.requests, found.inputs, found.tokens)] == [
        "20/s:100",
        "600/m",
        "9/h",
    ]


# What it grants -----------------------------------------------------------------------------------


def rules(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    for each in objects:
        if each["kind"] in {"Role", "ClusterRole"}:
            for rule in each["rules"]:
                yield each["metadata"]["name"], rule


def test_no_right_is_a_wildcard(objects: Objects) -> None:
    for name, rule in rules(objects):
        for field in ("apiGroups", "resources", "verbs"):
            assert rule[field], name
            assert not [word for word in rule[field] if "*" in word], (name, rule)
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), (name, rule)


def test_secrets_are_named_and_never_listed_or_made(objects: Objects) -> None:
    found = [rule for _, rule in rules(objects) if "secrets" in rule["resources"]]
    assert [(rule["resourceNames"], rule["verbs"]) for rule in found] == [
        (["sluice-metrics-api-tls"], ["get", "patch"])
    ]


def test_the_gateway_changes_nothing(rendered: dict[str, Objects]) -> None:
    role = one(rendered["default"], "ClusterRole", "sluice-gateway")
    granted = {(r, v) for rule in role["rules"] for r in rule["resources"] for v in rule["verbs"]}
    reads = {
        (r, v) for r in ("inferenceservices", "endpointslices") for v in ("get", "list", "watch")
    }
    assert granted == reads | {("tokenreviews", "create")}


def test_only_the_registration_of_custom_metrics_may_be_changed(
    rendered: dict[str, Objects],
) -> None:
    changing = [
        rule
        for _, rule in rules(rendered["default"])
        if "apiservices" in rule["resources"] and set(rule["verbs"]) - {"get", "list", "watch"}
    ]
    versions = [f"{version}.{names.METRICS_GROUP}" for version in ("v1beta1", "v1beta2")]
    assert [(rule["resourceNames"], rule["verbs"]) for rule in changing] == [(versions, ["patch"])]


def test_the_operator_may_do_what_it_does_and_no_more(rendered: dict[str, Objects]) -> None:
    """What its code calls: kopf lists and watches, an apply makes or patches what it names."""
    granted: dict[str, set[str]] = {}
    for name, rule in rules(rendered["default"]):
        if name == "sluice-operator":
            for resource in rule["resources"]:
                granted.setdefault(resource, set()).update(rule["verbs"])
    child = {"get", "list", "watch", "create", "patch", "delete"}
    assert granted == {
        **{kind.plural: child for kind in kinds.CHILDREN},
        "deployments/scale": {"patch"},
        "inferenceservices": {"list", "watch"},
        "inferenceservices/status": {"patch"},
        "inferenceservices/finalizers": {"update"},
        "pods": {"list", "watch", "patch"},
        "nodes": {"get"},
        "events": {"list", "create", "patch"},
        "endpointslices": {"list", "watch"},
        "apiservices": {"get", "patch"},
        "leases": {"get", "create", "update"},
        "secrets": {"get", "patch"},
    }


def test_the_metrics_that_hpas_may_read(rendered: dict[str, Objects]) -> None:
    (rule,) = one(rendered["default"], "ClusterRole", "sluice-metrics-reader")["rules"]
    assert rule["apiGroups"] == [names.METRICS_GROUP]
    assert set(rule["resources"]) == {f"{names.PLURAL}.{names.GROUP}/{name}" for name in METRICS}


def test_without_the_metrics_api_nothing_of_it_is_there(rendered: dict[str, Objects]) -> None:
    left = keys(rendered["no metrics API"])
    assert not [key for key in left if "metrics" in key[2] or key[1] == "kube-system"]
    assert (
        environment(rendered["no metrics API"], "operator")["SLUICE_OPERATOR_METRICS_API"]
        == "false"
    )


# The CRD ------------------------------------------------------------------------------------------


def test_the_crd_is_the_generated_one_and_kept(rendered: dict[str, Objects]) -> None:
    name = f"{names.PLURAL}.{names.GROUP}"
    source = yaml.safe_load((chart.CHART / f"files/crds/{name}.yaml").read_text())
    kept = one(rendered["default"], "CustomResourceDefinition", name)
    assert kept["spec"] == source["spec"]
    assert kept["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    gone = one(rendered["leaves nothing"], "CustomResourceDefinition", name)
    assert "annotations" not in gone["metadata"]
    assert not [key for key in keys(rendered["no CRD"]) if key[0] == "CustomResourceDefinition"]


# The values ---------------------------------------------------------------------------------------

SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((chart.CHART / "values.yaml").read_text())


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    for reference in schema.get("allOf", ()):
        name = reference["$ref"].rpartition("/")[2]
        schema = {**SCHEMA["definitions"][name], **schema}
    return schema


def test_every_value_is_described_and_every_description_has_a_value() -> None:
    def compare(where: str, schema: dict[str, Any], values: dict[str, Any]) -> None:
        properties = resolve(schema)["properties"]
        optional = (
            {"registry"} if "repository" in properties else {"global"} if not where else set()
        )
        assert properties.keys() - values.keys() <= optional, where
        assert values.keys() <= properties.keys(), where
        assert resolve(schema)["additionalProperties"] is False, where
        for name, inner in properties.items():
            assert inner["description"].endswith("."), f"{where}.{name}"
            if "properties" in resolve(inner) and name not in ("resources", "affinity"):
                compare(f"{where}.{name}", inner, values[name])

    compare("", SCHEMA, VALUES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gatewy": {}}, "additional properties 'gatewy' not allowed"),
        ({"gateway": {"replica": 3}}, "at '/gateway': additional properties 'replica' not allowed"),
        ({"auth": {"mode": "oidc"}}, "at '/auth/mode': value must be one of 'none', 'keys'"),
        ({"auth": {"mode": "keys"}}, "auth.mode is keys, which needs auth.existingSecret"),
        ({"auth": {"existingSecret": "k"}}, "auth.existingSecret has no effect with auth.mode no"),
        ({"auth": {"limits": {"requests": "fast"}}}, "at '/auth/limits/requests'"),
        ({"auth": {"limits": {"request": "1/s"}}}, "additional properties 'request' not allowed"),
        ({"gateway": {"replicas": 0}}, "at '/gateway/replicas'"),
        ({"gateway": {"replicas": "two"}}, "at '/gateway/replicas': got string, want integer"),
        ({"gateway": {"drainDelay": "5"}}, "at '/gateway/drainDelay'"),
        ({"gateway": {"drainGrace": 10}}, "gateway.drainGrace: 10 has no unit; write a duration"),
        ({"gateway": {"url": "models.example.com"}}, "at '/gateway/url'"),
        ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy'"),
        ({"operator": {"image": {"digest": "abc"}}}, "at '/operator/image/digest'"),
        ({"redis": {"maxMemory": "256Mi"}}, "at '/redis/maxMemory'"),
        ({"redis": {"runAsUser": 0}}, "at '/redis/runAsUser'"),
        ({"redis": {"url": "cache:6379"}}, "at '/redis/url'"),
        ({"priorityClass": {"value": 2000000000}}, "at '/priorityClass/value'"),
        ({"redis": {"url": "redis://x:1"}}, "redis.enabled and redis.url exclude each other"),
        ({"ingress": {"enabled": True}}, "ingress.enabled opens the gateway"),
        ({"gateway": {"service": {"type": "NodePort"}}}, "gateway.service.type: NodePort opens"),
        ({**EXPOSED, "httpRoute": {"enabled": True}}, "needs httpRoute.parentRefs"),
        ({"ingress": {"host": "Models_x"}}, "at '/ingress/host'"),
        ({"labels": {"team": "a b"}}, "at '/labels/team'"),
        ({"labels": {"te am": "a"}}, "invalid propertyName 'te am'"),
        ({"labels": {"app.kubernetes.io/name": "x"}}, "labels: app.kubernetes.io/name is the"),
        (
            {"gateway": {"podLabels": {"app.kubernetes.io/component": "x"}}},
            "gateway.podLabels: app.kubernetes.io/component is the chart's own",
        ),
        (
            {"operator": {"extraEnv": [{"name": "SLUICE_LOG", "value": "text"}]}},
            "operator.extraEnv: SLUICE_LOG is there already",
        ),
        (
            {"gateway": {"extraEnv": [{"name": "A", "value": "a"}] * 2}},
            "gateway.extraEnv: A is there already",
        ),
        ({"gateway": {"extraEnv": [{"name": "A", "value": 1}]}}, "at '/gateway/extraEnv/0/value'"),
        ({"gateway": {"resources": {"request": {}}}}, "additional properties 'request' not"),
        (
            {"operator": {"resources": {"requests": {"cpu": "abc"}}}},
            "at '/operator/resources/requests/cpu'",
        ),
        ({"redis": {"tolerations": [{"operater": "Exists"}]}}, "at '/redis/tolerations/0'"),
        ({"gateway": {"affinity": {"podAfinity": {}}}}, "at '/gateway/affinity'"),
        ({"networkPolicy": {"metricsFrom": [{}]}}, "at '/networkPolicy/metricsFrom/0'"),
        ({"networkPolicy": {"applicationsFrom": [{"pods": {}}]}}, "'pods' not allowed"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(chart.ChartError, match=re.escape(message)):
        chart.template(values)


# The plain manifest -------------------------------------------------------------------------------


def test_a_gateway_knows_its_zone_by_its_own_label_unless_it_is_told(
    rendered: dict[str, Objects],
) -> None:
    for name, objects in rendered.items():
        pod = one(objects, "Deployment", "sluice-gateway")["spec"]["template"]["spec"]
        (zone,) = (e for e in pod["containers"][0]["env"] if e["name"] == "SLUICE_GATEWAY_ZONE")
        label = "metadata.labels['topology.kubernetes.io/zone']"
        told = {"value": "eu-1a"} if name == "one zone" else _field(label)
        assert {key: value for key, value in zone.items() if key != "name"} == told


def _field(path: str) -> dict[str, Any]:
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def test_the_plain_manifest_equals_the_chart() -> None:
    assert chart.MANIFEST.read_text() == chart.manifest(), "run `make generate`"


def test_the_plain_manifest_holds_no_secret_and_no_release() -> None:
    objects = list(yaml.safe_load_all(chart.MANIFEST.read_text()))
    assert objects[0]["kind"] == "Namespace"
    for each in objects:
        assert "data" not in each or each["kind"] != "Secret"
        assert each["metadata"]["labels"].get(names.MANAGED_BY) != "Helm"
    assert chart.manifest() == chart.manifest()
