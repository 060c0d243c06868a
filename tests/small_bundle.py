"""A real router on a toy task, for tests that need a student which is trusted, unsure or strange.

The task: a message about a parcel, a refund or a password gets that word as its label. The student
is right when it is sure (`SURE`) and wrong when it is not (`UNSURE`), which the router is fitted
to and certified on. `STRANGE` is a message unlike anything in training.
"""

import random
from pathlib import Path

import numpy as np

from gateway.config import Task
from gateway.prompt import prompt_hash
from router.artifact import save
from router.decision import Answer, Token
from router.embedder import Embedder
from router.output import OutputSpec
from router.prefix import Prefix
from router.router import Judged, Labelled, Router, fit_router

LABELS = ("parcel", "refund", "password")
SURE = -0.01
UNSURE = -2.5
STRANGE = "Ποια είναι η πρωτεύουσα της Μογγολίας; ◆◆◆ 0x1F600 SELECT * FROM zz9 WHERE qq=17"
#: P(not served) after one unsure token: 0.94, after a sure one 0.002
HEADS = Prefix(
    at=(1, 4),
    weights=np.array([[0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0]] * 2),
    biases=np.array([3.0, 3.0]),
    limits=np.array([0.5, 0.5]),
)
_OPENINGS = ("hello", "hi there", "good morning", "dear team", "hey", "please help")
_MIDDLES = ("my {} is missing", "where is my {}", "I need help with my {}", "the {} does not work")
_ENDINGS = ("thanks", "since yesterday", "it is urgent", "what now", "regards", "can you check")


def prompts(n: int, seed: int) -> list[tuple[str, str]]:
    """``n`` messages with their labels."""
    dice = random.Random(seed)
    made = []
    for _ in range(n):
        label = dice.choice(LABELS)
        parts = (dice.choice(_OPENINGS), dice.choice(_MIDDLES).format(label), dice.choice(_ENDINGS))
        made.append((", ".join(parts) + f" {dice.randrange(100)}", label))
    return made


def drafted(text: str, logprob: float) -> Answer:
    return Answer(text=text, tokens=(Token(text=text, logprob=logprob, top=(logprob, -5.0)),))


def make_router(embedder: Embedder | None = None) -> Router:
    """Certified: nine drafts in ten are sure and right."""
    calibration = [
        Judged(
            prompt=prompt,
            student=drafted(label, SURE) if k % 10 else drafted("refund!", UNSURE),
            teacher=label,
        )
        for k, (prompt, label) in enumerate(prompts(200, seed=2))
    ]
    router = fit_router(
        spec=OutputSpec(kind="label", labels=(*LABELS, "refund!"), max_tokens=16),
        train=[Labelled(prompt=prompt, answer=label) for prompt, label in prompts(150, seed=1)],
        calibration=calibration,
        max_disagreement=0.05,
        confidence=0.95,
        ood_epsilon=0.01,
        embedder=embedder,
    )
    assert router.certificate is not None
    return router


def save_parts(folder: Path, router: Router) -> tuple[Path, Path]:
    """Adapter and router folders, as a training run leaves them."""
    adapter_dir, router_dir = folder / "adapter", folder / "router"
    adapter_dir.mkdir(parents=True)
    (adapter_dir / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (adapter_dir / "adapter_model.safetensors").write_bytes(folder.name.encode())
    save(router, router_dir)
    return adapter_dir, router_dir


def contract_hash(task: Task) -> str:
    return prompt_hash(task.prompt)
