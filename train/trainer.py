"""TRL's SFTTrainer with packed batches, the exact loss, a learning rate a part, whole checkpoints.

Everything else (devices, engines, accumulation, schedule, resume) is TRL's, transformers' and
accelerate's.
"""

import json
import time
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from transformers.trainer import TRAINING_ARGS_NAME
from trl import SFTConfig, SFTTrainer

from configs.errors import CheckpointError, DataError, DiskError
from data.batches import BAD_ROWS
from data.build import TrainingData
from data.ledger import BadRow
from data.loader import (
    JobSampler,
    PackDataset,
    death_of_worker,
    make_loader,
    take_first,
    told_by_worker,
)
from train.arguments import gather_objects
from train.build_model import load_weights
from train.checkpoints import (
    RANDOM,
    STAGING,
    Keeping,
    begin,
    checkpoint_at,
    clear_leftovers,
    finish,
    last_size,
    read_states,
    retain,
    step_of,
    write_states,
)
from train.disk import told_when_full
from train.parts import Part
from train.random_state import derive_random_state, random_state, set_random_state
from train.what_trains import trainable_by_part


class GraftTrainer(SFTTrainer):
    """SFTTrainer whose micro-batches are packs.

    The training set is the whole run, not an epoch: job i is the i-th micro-batch of this rank.
    Resuming at step k is therefore going on at job k * accumulation, in any epoch; a stream also
    takes up where its slots stood, from a file of each rank in the checkpoint.
    """

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        data: TrainingData,
        processing_class: Any,
        *,
        num_steps: int,
        learning_rates: dict[Part, float],
        callbacks: list[Any],
        keeping: Keeping,
    ) -> None:
        """Take a model prepared by `add_token_losses` and `set_what_trains`."""
        self.learning_rates = learning_rates
        self.keeping, self.best_is_due = keeping, False
        self.packs = data.packs_of(args.process_index, args.world_size)
        self.first_step = 0
        num_workers = args.dataloader_num_workers
        self.batches = PackDataset(
            data.samples,
            getattr(processing_class, "image_processor", None),
            skip=data.ledger.skip,
            num_workers=num_workers,
        )
        self.sampler = JobSampler(
            lambda: self.packs.jobs(self.first_step), num_steps * args.gradient_accumulation_steps
        )
        self.bad_rows: list[BadRow] = []  # met since they were last taken
        self.counts = dict.fromkeys(("tokens", "supervised_tokens", "tiles"), 0)
        self.data_wait_seconds = 0.0
        super().__init__(
            model=model,
            args=args,
            train_dataset=_described(),
            data_collator=take_first,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # ours shows progress
        # compute_loss divides by the supervised tokens of the global batch.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the sum of token losses over the supervised tokens of the global batch.

        Engines average gradients over ranks, hence the factor. The mean of micro-batch means would
        weigh a token by how few others share its pack.
        """
        assert num_items_in_batch is not None
        self._count(inputs)
        losses = model(**inputs, token_losses=True)
        # 1 where every row of the step proved bad: nothing is learned, and nothing is divided by 0.
        num_items = torch.as_tensor(num_items_in_batch).clamp(min=1)
        return losses.sum() * (self.args.world_size / num_items)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this rank's packs in order. They are already shared out over ranks."""
        workers = self.args.dataloader_num_workers
        return make_loader(self.batches, self.sampler, num_workers=workers)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from the start or from a checkpoint.

        Raises:
            DataError: a worker died; the message names the row it was on.
            CheckpointError: ranks do not see the same checkpoint.
        """
        seen = gather_objects(resume_from_checkpoint)
        if len(set(seen)) > 1:
            raise CheckpointError(
                f"ranks would go on from different checkpoints: {seen}; output_dir must be one "
                "folder that all machines see"
            )
        if resume_from_checkpoint:
            self.first_step = step_of(Path(resume_from_checkpoint))
            self.packs.go_on(read_states(Path(resume_from_checkpoint)))
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except (RuntimeError, ConnectionError, EOFError) as error:
            death = death_of_worker(error)
            if death is None:
                raise
            raise told_by_worker(death, self.batches, self.sampler) from None

    def take_bad_rows(self) -> list[BadRow]:
        """Return the bad rows that this rank met since the last time."""
        taken, self.bad_rows = self.bad_rows, []
        return taken

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return AdamW with a group for each part; vectors are not decayed."""
        if self.optimizer is None:
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            groups = []
            for part, named in trainable_by_part(model or self.model).items():
                for decays in (True, False):
                    chosen = [p for _, p in named if (p.ndim > 1) is decays]
                    if chosen:
                        groups.append(
                            {
                                "params": chosen,
                                "lr": self.learning_rates[part],
                                "weight_decay": self.args.weight_decay if decays else 0.0,
                                "part": part,
                            }
                        )
            options.pop("lr", None)
            self.optimizer = kind(groups, lr=self.args.learning_rate, **options)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Fetch the next micro-batches and count how long that took."""
        start = time.perf_counter()
        try:
            fetched = super().get_batch_samples(epoch_iterator, num_batches, device)
        except DataError as error:
            # A worker's error comes with its whole stack; the last paragraph is the message.
            raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None
        for batch in fetched[0]:
            self.bad_rows += batch.pop(BAD_ROWS, [])
        self.data_wait_seconds += time.perf_counter() - start
        return fetched

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the learning rate of each part to what is logged."""
        if self.optimizer is not None and "loss" in logs:
            logs.pop("learning_rate", None)
            for group in self.optimizer.param_groups:
                logs[f"learning_rate/{group.get('part', 'all')}"] = group["lr"]
        super().log(logs, start_time)

    def _count(self, inputs: dict[str, Any]) -> None:
        self.counts["tokens"] += inputs["input_ids"].numel()
        self.counts["supervised_tokens"] += int((inputs["labels"] != -100).sum())
        if "pixel_values" in inputs:
            self.counts["tiles"] += len(inputs["pixel_values"])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load weights by the names they have in files; PEFT and engines load their own."""
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(cast(Any, self.model), Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint beside its place and rename it, so that it is whole or not there."""
        run_dir, step = Path(str(self.args.output_dir)), self.state.global_step
        self.best_is_due = False
        staged = begin(run_dir, step) if self.args.should_save else None
        try:
            with told_when_full(f"checkpoint-{step}", run_dir, num_bytes=last_size(run_dir)):
                self.accelerator.wait_for_everyone()
                self._write_checkpoint(run_dir / STAGING, model, trial)
                self.accelerator.wait_for_everyone()
                if staged is not None:
                    finish(staged, self.keeping)
        except DiskError:
            clear_leftovers(run_dir)
            raise
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, staging: Path, model: Any, trial: Any) -> None:
        """Let the Trainer write its files, and write where this rank's streams stand."""
        run_dir, limit = self.args.output_dir, self.args.save_total_limit
        self.args.output_dir, self.args.save_total_limit = str(staging), None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir, self.args.save_total_limit = run_dir, limit
        folder = checkpoint_at(staging, self.state.global_step)
        # A pickle of any class, which nobody reads: config.yaml has it all.
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        write_states(folder, self.args.process_index, self.packs.state_at(self.state.global_step))

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        path = Path(output_dir) / RANDOM.format(rank=self.args.process_index)
        path.write_text(json.dumps(random_state()), encoding="utf-8")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Put the generators where they stood; for a rank that was not there, seed them."""
        if checkpoint is None:
            return
        rank, step = self.args.process_index, self.state.global_step
        path = Path(checkpoint) / RANDOM.format(rank=rank)
        if path.is_file():
            set_random_state(json.loads(path.read_text(encoding="utf-8")))
        else:  # told by check_resume
            derive_random_state(self.args.seed, step, rank)

    def measured(self, metrics: dict[str, float], step: int) -> None:
        """Take what was measured at a step: where it is the best so far, its checkpoint is kept.

        Ranks measure alike, but not to the last bit on every GPU: rank 0 decides.
        """
        best = self.keeping.best
        if best is None or not best.measure(gather_objects(metrics)[0], step):
            return
        run_dir = Path(str(self.args.output_dir))
        if not checkpoint_at(run_dir, step).is_dir():
            self.best_is_due = True
        elif self.args.should_save:  # after the last step, which is saved before it is measured
            retain(run_dir, self.keeping)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.control.should_save |= self.best_is_due
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write no card into checkpoints; the export has its own."""


def _described() -> Dataset:
    """Return one row in the form TRL looks at to learn that tokens and labels are made already."""
    return Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]})
