"""TRL's SFTTrainer with packed batches, the exact loss, a learning rate a part, whole checkpoints.

Everything else (devices, engines, accumulation, schedule, resume) is TRL's, transformers' and
accelerate's.
"""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import AutocastKwargs
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINING_ARGS_NAME
from trl import SFTTrainer

from configs.errors import CheckpointError, DataError, DiskError
from data.batches import BAD_ROWS, SAMPLES
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
from train.arguments import GraftArguments
from train.model import fsdp
from train.model.load import load_weights
from train.model.offload import offloading
from train.model.parts import Part
from train.model.what_trains import trainable_by_part
from train.model.zero3 import num_dimensions
from train.ranks import gather_objects
from train.saving.checkpoints import (
    RANDOM,
    STAGING,
    Keeping,
    begin,
    checkpoint_at,
    clear_leftovers,
    finish,
    last_size,
    read_states,
    read_watches,
    retain,
    step_of,
    write_states,
    write_watch,
)
from train.saving.disk import told_when_full
from train.saving.random_state import derive_random_state, random_state, set_random_state
from train.watching.step_watch import StepWatch


class GraftTrainer(SFTTrainer):
    """SFTTrainer whose micro-batches are packs.

    The training set is the whole run, not an epoch: job i is the i-th micro-batch of this rank.
    Resuming at step k is therefore going on at job k * accumulation, in any epoch; a stream also
    takes up where its slots stood, from a file of each rank in the checkpoint.
    """

    def __init__(
        self,
        model: Any,
        args: GraftArguments,
        data: TrainingData,
        processing_class: Any,
        *,
        num_steps: int,
        learning_rates: dict[Part, float],
        callbacks: list[Any],
        keeping: Keeping,
        watch: StepWatch,
    ) -> None:
        """Take a model prepared by `add_token_losses` and `set_what_trains`."""
        self.learning_rates = learning_rates
        self.keeping, self.best_is_due = keeping, False
        self.last_saved: int | None = None  # step
        self.on_saving: Callable[[], object] = lambda: None  # before a checkpoint is written
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
        self.watch = watch
        super().__init__(
            model=model,
            args=args,
            train_dataset=_described(),
            data_collator=take_first,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # ours shows progress
        if args.offload:
            cast(
                Any, self
            ).maybe_activation_offload_context = offloading()  # TRL enters it at each step
        # The name of what we need: neither wrap the model nor shard it, for it is sharded already.
        self.is_distributed_loading_by_transformers = fsdp.is_sharded(self.model)
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
        self.watch.peaks.enter("forward")
        losses = model(**inputs, token_losses=True)
        self.watch.meter.add_losses(losses)
        self.watch.peaks.enter("backward")
        # 1 where every row of the step proved bad: nothing is learned, and nothing is divided by 0.
        num_items = torch.as_tensor(num_items_in_batch).clamp(min=1)
        return losses.sum() * (self.args.world_size / num_items)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this rank's packs in order. They are already shared out over ranks."""
        workers = self.args.dataloader_num_workers
        return make_loader(self.batches, self.sampler, num_workers=workers)

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """Let autocast keep no copies: it would hold one of each weight that trains."""
        args = super()._build_accelerator_args(**kwargs)
        args["kwargs_handlers"].append(AutocastKwargs(cache_enabled=False))
        return args

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
            self.last_saved = self.first_step
            self.packs.go_on(read_states(Path(resume_from_checkpoint)))
            rank, num_ranks = self.args.process_index, self.args.world_size
            self.watch.load_states(read_watches(Path(resume_from_checkpoint), rank, num_ranks))
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
                    chosen = [p for _, p in named if (num_dimensions(p) > 1) is decays]
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
        batches, num_items = fetched
        for batch in batches:
            self.bad_rows += batch.pop(BAD_ROWS, [])
        packs = [batch.pop(SAMPLES) for batch in batches]
        self.watch.begin(packs, num_items, time.perf_counter() - start)
        return fetched

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the loss of a micro-batch, for transformers' own sum, which is not told."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.watch.measure_parts(self.model, self.state.global_step + 1)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the norm of the gradient; a step that may not be made is left without one."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self.watch.peaks.enter("optimizer")
        if not self.watch.check(self.model, grad_norm, self.state.global_step + 1):
            model.zero_grad(set_to_none=True)  # AdamW passes over what has no gradient
        self.watch.learning_rates = self._learning_rates()
        return grad_norm

    def _learning_rates(self) -> dict[str, float]:
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        return {str(group.get("part", "all")): float(group["lr"]) for group in groups}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load weights by the names they have in files; PEFT and DeepSpeed load their own."""
        if not isinstance(self.model, PeftModel):
            load_weights(cast(Any, self.model), Path(resume_from_checkpoint))
        elif fsdp.is_sharded(self.model):
            fsdp.load_adapter(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write whole weights, of FSDP2 too."""
        if not fsdp.is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        state = fsdp.whole_weights(cast(Any, self.model))
        if self.args.should_save:
            with fsdp.plain_classes(cast(Any, self.model)):
                self._save(output_dir, state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not fsdp.is_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = fsdp.whole_optimizer(self.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not fsdp.is_sharded(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        fsdp.load_optimizer(self.optimizer, Path(checkpoint) / OPTIMIZER_NAME)
        schedule = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        cast(Any, self.lr_scheduler).load_state_dict(schedule)

    def _defer_fsdp_gradient_reduction(self) -> Any:
        """Reduce at every micro-batch: whole gradients, kept to the last, are what FSDP2 saves."""
        return contextlib.nullcontext()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint beside its place and rename it, so that it is whole or not there."""
        run_dir, step = Path(str(self.args.output_dir)), self.state.global_step
        self.best_is_due = False
        self.on_saving()
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
        self.last_saved = step
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
        rank = self.args.process_index
        write_states(folder, rank, self.packs.state_at(self.state.global_step))
        write_watch(folder, rank, self.watch.state())

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
        if step != self.last_saved:
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
