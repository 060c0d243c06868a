"""The Helm chart, rendered by a real Helm over a matrix of values."""

import json
import runpy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ops.helm_binary import helm
from ops.rendered_chart import CHART, Chart, Document, render, run

from gateway.config import Config, parse
from retrain.cli import main

ROOT = CHART.parent
MATRIX = [None, *sorted((CHART / "ci").glob("*.yaml"))]
VERSIONS = ("1.27", "1.30", "1.33", "1.36")
#: kinds that only clusters with the Prometheus Operator know
CUSTOM = {"ServiceMonitor", "PrometheusRule"}
TASK = "config.tasks[0].name=triage,config.tasks[0].claim.model[0]=m"


@pytest.fixture(scope="session")
def program() -> Path:
    try:
        return helm()
    except RuntimeError as error:
        pytest.skip(str(error))


@cache
def rendered(program: Path, values: Path | None) -> Chart:
    return render(program, values)


@pytest.fixture(params=MATRIX, ids=lambda path: path.stem if path else "defaults")
def chart(request: pytest.FixtureRequest, program: Path) -> Chart:
    return rendered(program, request.param)


@pytest.fixture
def full(program: Path) -> Chart:
    return rendered(program, CHART / "ci/full-values.yaml")


def refused(program: Path, *settings: str) -> str:
    arguments = [part for setting in settings for part in ("--set", setting)]
    done = run(program, "template", "night", str(CHART), *arguments)
    assert done.returncode != 0, "Helm accepted it"
    return done.stderr


# -- the whole


@pytest.mark.parametrize("values", MATRIX, ids=lambda path: path.stem if path else "defaults")
def test_lint_finds_nothing(program: Path, values: Path | None) -> None:
    files = [] if values is None else ["--values", str(values)]
    done = run(program, "lint", "--strict", str(CHART), *files)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid_kubernetes(chart: Chart, version: str) -> None:
    seen = set()
    for document in chart.documents:
        seen.add(document["kind"])
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, version, strict=True)
    assert {"Deployment", "Service", "ConfigMap", "Pod"} <= seen


def test_every_document_is_named_labelled_and_in_the_namespace(chart: Chart) -> None:
    names = [(d["kind"], d["metadata"]["name"]) for d in chart.documents]
    assert len(set(names)) == len(names)
    for document in chart.documents:
        metadata = document["metadata"]
        assert metadata["namespace"] == "ml"
        assert len(metadata["name"]) <= (52 if document["kind"] == "CronJob" else 63)
        labels = metadata["labels"]
        assert {"app.kubernetes.io/name", "app.kubernetes.io/instance"} <= set(labels)
        assert labels["app.kubernetes.io/managed-by"] == "Helm"


def test_old_clusters_are_refused(program: Path) -> None:
    done = run(program, "template", "night", str(CHART), "--kube-version", "1.26.0")
    assert done.returncode != 0 and "incompatible" in done.stderr


def test_chart_and_project_have_one_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{about["appVersion"]}"' in (ROOT / "pyproject.toml").read_text()
    assert "dependencies" not in about


# -- retort.yaml


def test_gateway_accepts_the_rendered_configuration(chart: Chart) -> None:
    config = parse(chart.config())
    assert config.state_dir == "/var/lib/retort"
    assert (config.server.host, config.server.port) == ("0.0.0.0", 8080)


def test_secrets_the_configuration_names_are_in_the_environment(chart: Chart) -> None:
    config = parse(chart.config())
    shared = {config.teacher.api_key_env, config.store.url_env}
    wanted = {"gateway": shared | {config.server.api_keys_env}, "nightly": shared}
    for name, metadata, spec in chart.pods():
        component = metadata["labels"]["app.kubernetes.io/component"]
        if component in wanted:
            given = {variable["name"] for variable in spec["containers"][0]["env"]}
            assert wanted[component] - {None} <= given, name


def test_no_secret_is_written_into_the_release(chart: Chart) -> None:
    assert not chart.all("Secret")
    for _, _, spec in chart.pods():
        for variable in spec["containers"][0].get("env", []):
            if any(word in variable["name"] for word in ("KEY", "TOKEN", "DATABASE")):
                assert set(variable) == {"name", "valueFrom"}


def test_gateway_asks_the_student_of_the_chart(full: Chart) -> None:
    config = parse(full.config())
    service = full.one("Service", "student")
    port = service["spec"]["ports"][0]["port"]
    assert config.student.base_url == f"http://{service['metadata']['name']}:{port}/v1"
    assert config.training.base_model == "/models/qwen"
    (container,) = full.one("Deployment", "student")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["vllm", "serve", "/models/qwen"]
    assert f"--served-model-name={config.student.base_model}" in container["args"]
    assert {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "1"} in container["env"]


def test_large_numbers_survive(program: Path) -> None:
    config = parse(rendered(program, CHART / "ci/collect-values.yaml").config())
    assert config.server.max_body_bytes == 50_000_000
    config = parse(rendered(program, CHART / "ci/full-values.yaml").config())
    assert config.training.learning_rate == 5e-5


def test_schema_is_made_from_the_code() -> None:
    made = runpy.run_path(str(CHART / "generate_schema.py"))["schema"]()
    assert json.loads((CHART / "values.schema.json").read_text()) == made, (
        "run: python helm/generate_schema.py"
    )
    assert set(made["$defs"]["Config"]["properties"]) == set(Config.model_fields) - {"state_dir"}


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("gatway.replicas=2", "gatway"),
        ("gateway.replica=2", "replica"),
        ("gateway.replicas=many", "replicas"),
        ("config.server.drain=5", "drain"),
        ("config.teacher.api_key_env=X", "api_key_env"),
        ("config.state_dir=/tmp", "state_dir"),
        ("config.tasks[0].name=triage", "claim"),
        ("config.tasks[0].name=a,config.tasks[0].claim.modell=b", "modell"),
        ("nightly.schedule=at night", "schedule"),
        ("image.digest=latest", "digest"),
        ("student.maxLoraRank=12", "maxLoraRank"),
        ("metrics.serviceMonitor.interval=15", "interval"),
        ("networkPolicy.egressPorts[0]=0", "egressPorts"),
    ],
)
def test_typos_are_refused_by_name(program: Path, setting: str, complaint: str) -> None:
    assert complaint in refused(program, setting)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["gateway.replicas=2"], "several gateways need a shared database"),
        (["gateway.autoscaling.enabled=true"], "several gateways need a shared database"),
        (["nightly.enabled=true", TASK], "set database.existingSecret"),
        (["nightly.enabled=true", "database.existingSecret=x", TASK], "set bundles.enabled"),
        (
            ["nightly.enabled=true", "database.existingSecret=x", "bundles.enabled=true"],
            "nothing to distil",
        ),
        (
            ["nightly.enabled=true", "database.existingSecret=x", "bundles.enabled=true", TASK],
            "needs a student server",
        ),
        (["student.enabled=true", "bundles.enabled=true"], "needs student.model"),
        (["student.enabled=true", "student.model=m"], "set bundles.enabled"),
        (
            [
                "student.enabled=true",
                "student.model=m",
                "bundles.enabled=true",
                "config.training.rank=64",
            ],
            "raise student.maxLoraRank",
        ),
        (
            [
                "student.enabled=true",
                "student.model=m",
                "bundles.enabled=true",
                "config.student.base_url=http://x/v1",
            ],
            "leave it out",
        ),
        (
            [
                "nightly.enabled=true",
                "nightly.tasks[0]=traige",
                "database.existingSecret=x",
                "bundles.enabled=true",
                "config.student.base_url=http://x/v1",
                TASK,
            ],
            "no task named traige",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused(
    program: Path, settings: list[str], complaint: str
) -> None:
    assert complaint in refused(program, *settings)


# -- pods


def test_pods_keep_the_restricted_security_standard(chart: Chart) -> None:
    for name, _, spec in chart.pods():
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True and security["runAsUser"] == 10001, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim"}
        assert all(set(volume) <= {"name", *allowed} for volume in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"limits", "requests"} <= set(container["resources"])
            assert "memory" in container["resources"]["limits"]


def test_volumes_are_there_and_have_a_limit(chart: Chart) -> None:
    claims = {d["metadata"]["name"] for d in chart.all("PersistentVolumeClaim")}
    maps = {d["metadata"]["name"] for d in chart.all("ConfigMap")}
    brought = {"models", "my-disk", "shared-files"}
    for name, _, spec in chart.pods():
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in spec["containers"]:
            mounts = [mount["name"] for mount in container["volumeMounts"]]
            assert set(mounts) == set(volumes), name
        for volume in volumes.values():
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"]
            elif "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            else:
                assert volume["persistentVolumeClaim"]["claimName"] in claims | brought


def test_image_settings_reach_every_pod(full: Chart) -> None:
    for name, _, spec in full.pods():
        assert spec["imagePullSecrets"] == [{"name": "registry"}], name
    gateway = "registry.example.com/retort@sha256:" + "a" * 64
    images = {name: spec["containers"][0]["image"] for name, _, spec in full.pods()}
    assert images["Deployment/oracle-gateway"] == images["Pod/oracle-smoke"] == gateway
    assert images["Deployment/oracle-student"] == "vllm/vllm-openai:v0.32.0"


def test_gateway_is_probed_and_drained(chart: Chart) -> None:
    spec = chart.one("Deployment", "gateway")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
    pause = 0 if hook is None else int(hook[1])
    drain = parse(chart.config()).server.drain_s
    assert spec["terminationGracePeriodSeconds"] > pause + 2 * drain


def test_gateway_starts_the_command_that_exists(
    chart: Chart, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {("serve", "--config")}
    for name, _, spec in chart.pods():
        arguments = spec["containers"][0].get("args", [])
        if name.startswith(("Deployment", "CronJob")) and "vllm" not in str(spec):
            flags = [word.split("=")[0] for word in arguments if word.startswith("--")]
            commands.add((arguments[0], *flags))
    for command, *flags in commands:
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0
        text = capsys.readouterr().out
        assert all(flag in text for flag in flags), (command, flags)


def test_sqlite_is_never_opened_by_two_processes(chart: Chart) -> None:
    deployment = chart.one("Deployment", "gateway")["spec"]
    shared = parse(chart.config()).store.url_env is not None
    assert (deployment["strategy"]["type"] == "RollingUpdate") == shared
    assert shared or deployment["replicas"] == 1
    assert shared or not chart.all("CronJob")


def test_new_configuration_rolls_the_gateway(program: Path) -> None:
    def checksum(*arguments: str) -> str:
        chart = render(program, None, *arguments)
        metadata = chart.one("Deployment", "gateway")["spec"]["template"]["metadata"]
        return str(metadata["annotations"]["checksum/config"])

    assert checksum() == checksum()
    assert checksum() != checksum("--set", "config.server.drain_s=7")


def test_autoscaler_owns_the_replicas(full: Chart, program: Path) -> None:
    deployment = full.one("Deployment", "gateway")
    assert "replicas" not in deployment["spec"]
    target = full.one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    assert "requests" in deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
    collect = rendered(program, CHART / "ci/collect-values.yaml")
    assert collect.one("Deployment", "gateway")["spec"]["replicas"] == 3
    assert not collect.all("HorizontalPodAutoscaler")


# -- wiring


def test_selectors_find_their_pods(chart: Chart) -> None:
    pods = [metadata["labels"] for _, metadata, _ in chart.pods()]

    def finds(selector: dict[str, str]) -> int:
        return sum(selector.items() <= labels.items() for labels in pods)

    for document in chart.all("Service"):
        assert finds(document["spec"]["selector"]) == 1
    for document in chart.all("PodDisruptionBudget") + chart.all("Deployment"):
        assert finds(document["spec"]["selector"]["matchLabels"]) == 1
    for document in chart.all("NetworkPolicy"):
        assert finds(document["spec"]["podSelector"]["matchLabels"]) >= 1


def test_only_gateway_and_nights_reach_the_student(full: Chart) -> None:
    (rule,) = full.one("NetworkPolicy", "student")["spec"]["ingress"]
    own = [peer["podSelector"]["matchLabels"] for peer in rule["from"] if "podSelector" in peer]
    assert {labels["app.kubernetes.io/component"] for labels in own} == {"gateway", "nightly"}
    (added,) = (peer for peer in rule["from"] if "podSelector" not in peer)
    assert added == {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    }
    # offline: names may be looked up, nothing may be fetched
    (egress,) = full.one("NetworkPolicy", "student")["spec"]["egress"]
    assert {port["port"] for port in egress["ports"]} == {53}


def test_student_gateway_and_nights_name_files_alike(full: Chart) -> None:
    def shared(spec: Document) -> dict[str, str]:
        mounts = spec["containers"][0]["volumeMounts"]
        return {m["subPath"]: m["mountPath"] for m in mounts if m["name"] == "bundles"}

    found = [shared(spec) for name, _, spec in full.pods() if "smoke" not in name]
    assert all(paths["bundles"] == "/var/lib/retort/bundles" for paths in found)
    assert len({paths["runs"] for paths in found if "runs" in paths}) == 1
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for _, _, spec in full.pods()
        for volume in spec["volumes"]
        if volume["name"] == "bundles"
    }
    assert claims == {"oracle-bundles"}


def test_one_night_per_task_that_never_overlaps(full: Chart) -> None:
    nights = full.all("CronJob")
    tasks = [task.name for task in parse(full.config()).tasks]
    assert [night["metadata"]["labels"]["retort/task"] for night in nights] == tasks
    for night, task in zip(nights, tasks, strict=True):
        spec = night["spec"]
        assert spec["concurrencyPolicy"] == "Forbid"
        assert spec["startingDeadlineSeconds"] and spec["timeZone"] == "Europe/Berlin"
        job = spec["jobTemplate"]["spec"]
        assert job["activeDeadlineSeconds"] < 24 * 3600
        pod = job["template"]["spec"]
        assert pod["restartPolicy"] == "Never" and pod["hostname"] == night["metadata"]["name"]
        (container,) = pod["containers"]
        assert f"--task={task}" in container["args"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_only_the_api_is_exposed(program: Path) -> None:
    ingress = rendered(program, CHART / "ci/collect-values.yaml").one("Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert [path["path"] for path in rule["http"]["paths"]] == ["/v1"]
    assert ingress["spec"]["tls"] == [
        {"hosts": ["llm.example.com"], "secretName": "llm-example-com"}
    ]


# -- monitoring


def test_dashboards_arrive_unaltered(full: Chart) -> None:
    (found,) = (d for d in full.all("ConfigMap") if d["metadata"]["name"] == "oracle-dashboards")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"]["grafana_folder"] == "Retort"
    for board in ("overview", "student"):
        committed = (ROOT / f"dashboards/{board}.json").read_text()
        assert found["data"][f"retort-{board}.json"] == committed
    assert len(json.dumps(found)) < 1_000_000


def test_service_monitors_name_ports_and_services_that_exist(full: Chart) -> None:
    monitors = full.all("ServiceMonitor")
    assert len(monitors) == 2
    for monitor in monitors:
        assert set(monitor) == {"apiVersion", "kind", "metadata", "spec"}
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        spec = monitor["spec"]
        assert set(spec) == {"selector", "namespaceSelector", "endpoints"}
        assert spec["namespaceSelector"] == {"matchNames": ["ml"]}
        (endpoint,) = spec["endpoints"]
        assert set(endpoint) == {"port", "path", "interval"}
        wanted = spec["selector"]["matchLabels"].items()
        (service,) = (s for s in full.all("Service") if wanted <= s["metadata"]["labels"].items())
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_rules_arrive_with_their_runbooks(full: Chart, tmp_path: Path) -> None:
    rule = full.one("PrometheusRule")
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(rule["spec"]) == {"groups"}
    committed: Any = yaml.safe_load((ROOT / "dashboards/rules.yaml").read_text())
    text = json.dumps(committed).replace("docs/operations.md", "https://wiki.example.com/retort")
    assert rule["spec"] == json.loads(text)
    if (promtool := shutil.which("promtool")) is not None:
        path = tmp_path / "rules.yaml"
        path.write_text(yaml.safe_dump(rule["spec"]))
        subprocess.run([promtool, "check", "rules", str(path)], check=True, capture_output=True)
