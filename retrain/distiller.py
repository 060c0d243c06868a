"""TRL's SFT trainer with our batches, and the LM head run on the answers' tokens only.

Imports torch: only `retrain.trainer` imports this, when it trains.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from gateway.config import Training
from retrain.examples import IGNORED, Example

#: share of the steps in which the learning rate rises to its peak
WARM_UP = 0.06
#: up to this many tokens a row, plain attention is faster on a CPU than the fused kernel, whose
#: backward pass costs a sixth of the training at 64 tokens
SHORT = 256


class Distiller(SFTTrainer):  # type: ignore[misc]
    """``batches`` says which examples make up each step; the trainer draws nothing itself."""

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        examples: Sequence[Example],
        batches: Sequence[Sequence[int]],
        training: Training,
        folder: Path,
        step: Callable[[int, float], None],
    ) -> None:
        self.batches = batches
        pad = tokenizer.pad_token_id
        if pad is None:
            pad = tokenizer.eos_token_id
        super().__init__(
            model=model,
            args=_settings(training, len(batches), folder),
            train_dataset=Dataset.from_dict(
                {
                    "input_ids": [list(example.ids) for example in examples],
                    "labels": [example.labels for example in examples],
                }
            ),
            processing_class=tokenizer,
            data_collator=lambda picked: collate(picked, pad),
            peft_config=LoraConfig(
                r=training.rank,
                lora_alpha=training.alpha,
                lora_dropout=0.0,
                target_modules=training.target_modules,
                bias="none",
                task_type="CAUSAL_LM",
            ),
            callbacks=[_Reporter(step)],
        )
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        labels = inputs.pop("labels")
        end = inputs["input_ids"].shape[1] - 1
        # each position predicts the next. Given as indices, because a slice is no contiguous
        # tensor, and the head's weights would be copied once per row
        asked = torch.arange(end - labels.shape[1], end, device=labels.device)
        logits = model(**inputs, use_cache=False, logits_to_keep=asked).logits
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED
        )


class _Reporter(TrainerCallback):  # type: ignore[misc]
    def __init__(self, step: Callable[[int, float], None]) -> None:
        self.step = step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs is not None and "loss" in logs:
            self.step(state.global_step, float(logs["loss"]))


def dtype() -> torch.dtype:
    """bfloat16 where the hardware computes in it; elsewhere it is emulated, and slow."""
    fast = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def attention(longest: int) -> str:
    """Which implementation suits rows of up to ``longest`` tokens."""
    return "eager" if longest <= SHORT and not torch.cuda.is_available() else "sdpa"


def collate(picked: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """A batch padded on the left, so that the answers stand together at the end: the LM head,
    a fifth of a small model, is then run on them alone. ``labels`` are those of the end only."""
    answers = [[label for label in row["labels"] if label != IGNORED] for row in picked]
    width = max(len(row["input_ids"]) for row in picked)
    learned = max(map(len, answers))
    ids = torch.full((len(picked), width), pad)
    mask = torch.zeros((len(picked), width), dtype=torch.long)
    labels = torch.full((len(picked), learned), IGNORED)
    for index, (row, answer) in enumerate(zip(picked, answers, strict=True)):
        length = len(row["input_ids"])
        ids[index, width - length :] = torch.tensor(row["input_ids"])
        mask[index, width - length :] = 1
        labels[index, learned - len(answer) :] = torch.tensor(answer)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}


def _settings(training: Training, steps: int, folder: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=max(1, round(WARM_UP * steps)),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        seed=training.seed,
        data_seed=training.seed,
        use_cpu=not torch.cuda.is_available(),
        # the base model's own type is kept; the adapter's weights are float32
        bf16=False,
        fp16=False,
        # recomputing activations costs a third of the time, and these models are small
        gradient_checkpointing=False,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        shuffle_dataset=False,
        remove_unused_columns=False,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
