"""The transformers Trainer with our order of samples, checkpoints and guards in its hooks.

The training loop, gradient accumulation, mixed precision and distribution are the Trainer's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
    gather_object,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from medmoe.errors import GuardError
from medmoe.training.averaging import WeightMean
from medmoe.training.context import SCORE, PhaseRun, best_step
from medmoe.training.guards import StopRequest, cannot_save, ignore_sigterm, not_finite
from medmoe.training.parallel import (
    all_finite,
    fit_to_model,
    processes_where,
    trained_parameters,
    whole,
)
from medmoe.training.saving import state
from medmoe.training.saving.checkpoints import CheckpointFolder, verify_checkpoint
from medmoe.training.schedule import Ahead, Begin, Schedule
from medmoe.training.trainable import rate_factors

#: The Trainer's own state: step and learning curve. Named as it looks for it.
_TRAINER_STATE = "trainer_state.json"


class PhaseTrainer(Trainer):
    """Trains in the schedule's order; saves committed checkpoints; stops at what is not finite."""

    def __init__(
        self,
        *,
        run: PhaseRun,
        folder: CheckpointFolder | None,
        facts: dict[str, Any],
        stop: StopRequest,
        begin: Begin | None = None,
        **trainer: Any,
    ) -> None:
        super().__init__(**trainer)
        self.begin, self.validation = begin, run.validation
        self.factors = rate_factors(self.model, run.spec)
        self.mean = WeightMean(run.steps, run.spec.average)
        self.ahead: Ahead | None = None
        self.phase, self.progress = run.phase, run.progress
        self.folder, self.facts, self.stop = folder, facts, stop
        self.save_every = run.settings.save_every
        takes = inspect.signature(self.model.forward).parameters
        self.answers_only = run.settings.answers_only and "answers_only" in takes
        if run.validation is not None:  # a wrapper's signature does not show them
            self.label_names = ["classes" if "classes" in takes else "labels"]
        self.part = 0  # of the step's batch, where it is computed in several
        self.resumed: dict[str, Any] = {}
        self.saved: int | None = None
        self.add_callback(_Hooks(self))

    def create_accelerator_and_postprocess(self) -> None:
        """Create the Trainer's accelerator; let it shard on CPUs too."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            # differs from Accelerate, which offers FSDP2 on accelerators only: PyTorch's own
            # `fully_shard` serves processes on CPUs (gloo) alike, and so the same code is tested.
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            if self.args.bf16:
                state.fsdp_plugin.set_mixed_precision("bf16")
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        if self.is_fsdp_enabled:
            fit_to_model(state.fsdp_plugin, self.model)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the Trainer's optimiser, a group for each rate; the first is the phase's own."""
        ready = self.optimizer is not None
        optimizer = super().create_optimizer(*args, **kwargs)
        if ready or not self.factors:
            return optimizer
        factor_of = {id(p): self.factors[name] for name, p in trained_parameters(self.model)}
        optimizer.param_groups = [
            {**group, "params": chosen, "lr": group["lr"] * factor}
            for factor in sorted(set(self.factors.values()), key=lambda f: (f != 1, f))
            for group in optimizer.param_groups
            if (chosen := [p for p in group["params"] if factor_of[id(p)] == factor])
        ]
        return optimizer

    def get_train_dataloader(self) -> Any:
        """Return the batches in the schedule's order, prepared while the step before computes.

        By a thread of this process, or in loader processes if asked for.
        """
        workers = self.args.dataloader_num_workers
        samples: Dataset[Any] = self._schedule()
        if not workers:
            samples = self.ahead = Ahead(self._schedule(), self._batch(), self.begin)
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_size=self._train_batch_size,
            sampler=SequentialSampler(self._schedule()),
            collate_fn=self.data_collator,
            num_workers=workers,
            # Forked, so that the features of all images are shared and nothing is pickled.
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=ignore_sigterm if workers else None,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the batches that the validation loss is taken of."""
        assert self.validation is not None
        samples: Any = self.validation.samples
        loader: DataLoader[Any] = DataLoader(
            samples,
            batch_size=self._train_batch_size,
            collate_fn=self.validation.collate,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare_data_loader(loader)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure, the mean of weights if there is one; the random generators go on as without."""
        before = state.random_state()
        self.mean.swap(self.model)
        try:
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
            return metrics
        finally:
            self.mean.swap(self.model)
            state.load_random_state(before)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Take the validation loss, and the strict score of the model as it stands."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.validation is not None and self.validation.score is not None:
            output.metrics[SCORE] = self.validation.score(self.model)
        return output

    def keep_best(self) -> int | None:
        """Put the weights of the best step in place, if that is asked for; return which it is.

        Where weights are averaged, the mean up to that step, or to the last.

        Raises:
            CheckpointError: The checkpoint of that step is damaged.
        """
        best = self.best()
        if best is not None and best != self.state.global_step:
            assert self.folder is not None
            verify_checkpoint(self.folder.at(best))
            averaged = (self.folder.at(best) / state.AVERAGE).exists()
            name = state.AVERAGE if averaged else state.WEIGHTS
            state.load_weights(self.model, self.folder.at(best), name)
        else:
            self.mean.swap(self.model)
        return best

    def best(self) -> int | None:
        """Return the best step so far, None where no best one is to be kept."""
        if self.validation is None or not self.validation.keep_best:
            return None
        return best_step(self.state.log_history)

    def close(self) -> None:
        """End the thread that prepares samples; the next model is loaded as without sharding."""
        unset_hf_deepspeed_config()
        if self.ahead is not None:
            self.ahead.close()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], **kwargs: Any) -> Any:
        """Compute the loss, the head on answers only where the model can."""
        if self.answers_only:
            inputs = inputs | {"answers_only": True}
        return super().compute_loss(model, inputs, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Do the Trainer's step; stop if its loss is not finite, before weights are spoilt."""
        loss: Tensor = super().training_step(*args, **kwargs)
        bad = processes_where(not bool(torch.isfinite(loss)), self.accelerator)
        if bad:
            value = "not finite" if len(bad) > 1 or self.args.world_size > 1 else loss.item()
            names = [name for rank in bad for name in self._samples(self.part, rank)]
            raise not_finite(
                f"{self.phase}: the loss is {value}", self.state.global_step + 1, names
            )
        self.part += 1
        return loss

    def check(self, what: str, tensors: Mapping[str, Tensor], step: int) -> None:
        """Stop if a tensor is not finite in any process.

        Raises:
            GuardError: With the first such tensor and the samples of the step.
        """
        if processes_where(not all_finite(list(tensors.values())), self.accelerator):
            bad = [name for name, tensor in tensors.items() if not all_finite([tensor])]
            first = f" (first: {bad[0]})" if bad else " in another process"
            size = self._batch() * self.args.gradient_accumulation_steps
            names = self._schedule().names((step - 1) * size, step * size)
            raise not_finite(f"{self.phase}: {what}{first}", step, names)

    def _schedule(self) -> Schedule[Any]:
        assert isinstance(self.train_dataset, Schedule)
        return self.train_dataset

    def _batch(self) -> int:
        """Return how many samples all processes together take at a time."""
        return int(self._train_batch_size) * int(self.args.world_size)

    def _samples(self, part: int, rank: int) -> list[str]:
        parts = self.args.gradient_accumulation_steps
        start = (self.state.global_step * parts + part) * self._batch()
        start += rank * self._train_batch_size
        return self._schedule().names(start, start + self._train_batch_size)

    # ---- checkpoints: what the Trainer would pickle is written and read by `state` ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Commit a checkpoint of this step; every process takes part, the first one writes."""
        assert self.folder is not None
        step = int(self.state.global_step)
        if self.saved == step:
            return
        tensors = {
            state.WEIGHTS: {name: whole(p) for name, p in trained_parameters(self.model)},
            state.OPTIMIZER: state.optimizer_tensors(self.model, self.optimizer),
        }
        if self.mean.count:
            mean = self.mean.weights
            tensors[state.AVERAGE] = {name: whole(tensor) for name, tensor in mean.items()}
        loss = self.accelerator.gather(self._tr_loss.reshape(1)).mean()
        content = {
            "facts": self.facts,
            "step": step,
            "schedule": state.schedule_state(self.lr_scheduler),
            "random": gather_object([state.random_state()]),
            "averaged": self.mean.count,
            "loss": {"sum": loss.item(), "since": self._globalstep_last_logged},
        }
        error: list[GuardError | None] = [None]
        if self.args.process_index == 0:
            try:
                self._write(step, tensors, content)
            except (GuardError, OSError, SafetensorError) as fault:
                error = [self._named(fault, step)]
        if self.args.world_size > 1:  # the others must not wait for a process that has failed
            broadcast_object_list(error)
        if error[0] is not None:
            raise error[0] from None
        self.saved = step

    def _write(
        self, step: int, tensors: dict[str, dict[str, Tensor]], content: dict[str, Any]
    ) -> None:
        assert self.folder is not None
        if self.saved is None:
            self.folder.sweep()
        with self.folder.saving(step) as directory:
            for name, part in tensors.items():
                state.write_tensors(directory / name, part)
            state.write_state(directory, content)
            self.state.save_to_json(str(directory / _TRAINER_STATE))

    def _named(self, fault: Exception, step: int) -> GuardError:
        assert self.folder is not None
        if isinstance(fault, GuardError):
            return GuardError(f"{self.phase}: at step {step} {fault}")
        before = self.saved if self.saved is not None else self.resumed.get("step")
        error = cannot_save(fault, step, str(self.folder.path), before)
        return GuardError(f"{self.phase}: {error}")

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """Prepare as the Trainer does, which reads DeepSpeed's own checkpoints where it shards."""
        ours = self.is_deepspeed_enabled and resume_from_checkpoint is not None
        given = None if ours else resume_from_checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, given)
        if ours and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        directory = Path(resume_from_checkpoint)
        self.resumed = state.read_state(directory)
        model = model or self.model
        if count := self.resumed.get("averaged", 0):
            state.load_weights(model, directory, state.AVERAGE)
            self.mean.resume(model, count)
        state.load_weights(model, directory)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state.load_optimizer(self.model, self.optimizer, Path(checkpoint))
            state.load_schedule(self.lr_scheduler, self.resumed["schedule"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        states = self.resumed.get("random", [])
        if self.args.process_index < len(states):
            state.load_random_state(states[self.args.process_index])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Load nothing: neither float32 nor bfloat16 scales its losses."""


class _Hooks(TrainerCallback):
    """What happens around each step: guards, progress, and when to save and to stop."""

    def __init__(self, trainer: PhaseTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer.resumed:  # so that the next point of the curve is that of an unbroken run
            trainer.saved = trainer.resumed["step"]
            trainer._tr_loss += trainer.resumed["loss"]["sum"]
            trainer._globalstep_last_logged = trainer.resumed["loss"]["since"]
            if trainer.folder is not None:
                trainer.folder.best = trainer.best()

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._trainer.part = 0

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: Any, model: nn.Module, **kwargs: Any
    ) -> None:
        # After clipping: a norm that is not finite has made not a number of what was infinite.
        grads = {name: p.grad for name, p in trained_parameters(model) if p.grad is not None}
        self._trainer.check("the gradient is not finite", grads, state.global_step + 1)

    def on_step_end(
        self, args: Any, state: TrainerState, control: Any, model: nn.Module, **kwargs: Any
    ) -> None:
        trainer, step = self._trainer, state.global_step
        weights = dict(trained_parameters(model))
        trainer.check("a trained weight is not finite", weights, step)
        trainer.mean.take(model, step)
        trainer.progress(trainer.phase, step, state.max_steps, None)
        last = step >= state.max_steps
        if trainer.validation is not None and (step % trainer.validation.every == 0 or last):
            control.should_evaluate = True
        if trainer.folder is None:
            return
        stopping = bool(processes_where(trainer.stop.asked, trainer.accelerator))
        trainer.stop.asked = stopping
        if stopping or step % trainer.save_every == 0 or last:
            control.should_save = True
        if stopping:
            control.should_training_stop = True

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        if (loss := logs.get("loss")) is not None:
            trainer = self._trainer
            trainer.progress(trainer.phase, state.global_step, state.max_steps, loss)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer.folder is not None and trainer.best() == state.global_step:
            trainer.folder.best = state.global_step
            control.should_save = True
