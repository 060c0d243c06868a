"""Writes values.schema.json: the chart's own keys from below, `config` from gateway/config.py.

    python helm/generate_schema.py            # write
    python helm/generate_schema.py --check    # exit 1 if the committed file is not up to date

So a typo in retort.yaml is refused by `helm install`, not by a crashing pod.
"""

import json
import sys
from pathlib import Path
from typing import Any

from gateway.config import Config

Json = dict[str, Any]

PATH = Path(__file__).parent / "values.schema.json"

#: what the chart itself fills in: setting it by hand would be overwritten, so it is refused
FILLED_IN = {
    "Config": ["state_dir"],
    "Server": ["host", "port", "api_keys_env"],
    "StoreSection": ["url", "url_env"],
    "Teacher": ["api_key_env"],
}

TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
COUNT: Json = {"type": "integer", "minimum": 0}
POSITIVE: Json = {"type": "integer", "minimum": 1}
WORDS: Json = {"type": "object", "additionalProperties": {"type": "string"}}
ANYTHING: Json = {"type": "object"}
OBJECTS: Json = {"type": "array", "items": {"type": "object"}}
STRINGS: Json = {"type": "array", "items": {"type": "string"}}
SIZE: Json = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"}
DURATION: Json = {"type": "string", "pattern": r"^[0-9]+(s|m|h)$"}
NAME: Json = {"type": "string", "pattern": r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$"}
VARIABLE: Json = {"type": "string", "pattern": r"^[-._a-zA-Z0-9]+$"}
PORT: Json = {"type": "integer", "minimum": 1, "maximum": 65535}
CRON: Json = {"type": "string", "pattern": r"^(@(hourly|daily|weekly|monthly)|(\S+ ){4}\S+)$"}


def closed(**properties: Json) -> Json:
    """An object with these keys and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def one_of(*words: str) -> Json:
    return {"type": "string", "enum": list(words)}


SECRET = closed(existingSecret=NAME, key=VARIABLE)
IMAGE = closed(
    repository={"type": "string", "minLength": 1},
    tag=TEXT,
    digest={"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    pullPolicy=one_of("Always", "IfNotPresent", "Never"),
)
RESOURCES = closed(requests={"type": "object"}, limits={"type": "object"}, claims={"type": "array"})
PLACEMENT: dict[str, Json] = {
    "resources": RESOURCES,
    "podAnnotations": WORDS,
    "podLabels": WORDS,
    "nodeSelector": WORDS,
    "tolerations": OBJECTS,
    "affinity": ANYTHING,
    "priorityClassName": TEXT,
}
GATEWAY = closed(
    replicas=COUNT,
    spoolSize=SIZE,
    preStopSeconds=COUNT,
    autoscaling=closed(
        enabled=FLAG,
        minReplicas=POSITIVE,
        maxReplicas=POSITIVE,
        targetCPUUtilizationPercentage={"type": "integer", "minimum": 1, "maximum": 100},
    ),
    podDisruptionBudget=closed(
        enabled=FLAG,
        maxUnavailable={"oneOf": [POSITIVE, {"type": "string", "pattern": "^[0-9]+%$"}]},
    ),
    extraEnv=OBJECTS,
    topologySpreadConstraints=OBJECTS,
    **PLACEMENT,
)
STUDENT = closed(
    enabled=FLAG,
    image=IMAGE,
    model=TEXT,
    modelClaim=NAME,
    download=FLAG,
    hubToken=SECRET,
    maxLoras=POSITIVE,
    maxLoraRank={"type": "integer", "enum": [8, 16, 32, 64, 128, 256, 320, 512]},
    extraArgs=STRINGS,
    cacheSize=SIZE,
    shmSize=SIZE,
    runtimeClassName=TEXT,
    **PLACEMENT,
)
NIGHTLY = closed(
    enabled=FLAG,
    image=IMAGE,
    schedule=CRON,
    timeZone={"type": "string", "minLength": 1},
    suspend=FLAG,
    tasks=STRINGS,
    startingDeadlineSeconds=POSITIVE,
    activeDeadlineSeconds=POSITIVE,
    backoffLimit=COUNT,
    ttlSecondsAfterFinished=COUNT,
    extraArgs=STRINGS,
    extraEnv=OBJECTS,
    cacheSize=SIZE,
    shmSize=SIZE,
    runtimeClassName=TEXT,
    **PLACEMENT,
)
CHART = closed(
    # Helm passes these to every chart
    **{"global": ANYTHING},
    nameOverride=TEXT,
    fullnameOverride=NAME,
    image=IMAGE,
    imagePullSecrets=OBJECTS,
    teacher=SECRET,
    clientKeys=SECRET,
    database=SECRET,
    sqlite=closed(size=SIZE, storageClass=TEXT, existingClaim=NAME),
    bundles=closed(
        enabled=FLAG,
        existingClaim=NAME,
        size=SIZE,
        storageClass=TEXT,
        accessModes={
            "type": "array",
            "minItems": 1,
            "items": one_of("ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"),
        },
    ),
    gateway=GATEWAY,
    service=closed(
        type=one_of("ClusterIP", "NodePort", "LoadBalancer"), port=PORT, annotations=WORDS
    ),
    ingress=closed(
        enabled=FLAG,
        className=TEXT,
        annotations=WORDS,
        host={"type": "string", "minLength": 1},
        path={"type": "string", "pattern": "^/"},
        tlsSecret=NAME,
    ),
    serviceAccount=closed(create=FLAG, name=NAME, annotations=WORDS),
    networkPolicy=closed(
        enabled=FLAG,
        gatewayFrom=OBJECTS,
        studentFrom=OBJECTS,
        egressPorts={"type": "array", "items": PORT},
    ),
    student=STUDENT,
    nightly=NIGHTLY,
    metrics=closed(
        serviceMonitor=closed(enabled=FLAG, interval=DURATION, labels=WORDS),
        prometheusRule=closed(enabled=FLAG, labels=WORDS, runbookUrl=TEXT),
        dashboards=closed(enabled=FLAG, labels=WORDS, annotations=WORDS),
    ),
)


def schema() -> Json:
    config = Config.model_json_schema()
    definitions: Json = config.pop("$defs")
    definitions["Config"] = config
    for name, keys in FILLED_IN.items():
        for key in keys:
            del definitions[name]["properties"][key]
    chart = {**CHART, "properties": {**CHART["properties"]}}
    chart["properties"]["config"] = {"$ref": "#/$defs/Config"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the Retort chart",
        **chart,
        "$defs": definitions,
    }


def main() -> int:
    text = json.dumps(schema(), indent=2) + "\n"
    current = PATH.read_text(encoding="utf-8") if PATH.exists() else ""
    if "--check" in sys.argv[1:]:
        if current != text:
            print(
                "helm/values.schema.json is not up to date: python helm/generate_schema.py",
                file=sys.stderr,
            )
        return int(current != text)
    PATH.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
