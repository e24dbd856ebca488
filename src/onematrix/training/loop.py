"""The training loop: step after step, a record an epoch, a checkpoint from which it goes on exactly."""

import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from onematrix.errors import TrainingError
from onematrix.records.files import append_line, make_folder
from onematrix.training import checkpoint, history, state
from onematrix.training.budgets import Budget, check_budget
from onematrix.training.data import Data, batch_order, check_data, draw_batch, fingerprint
from onematrix.training.evaluation import Evaluation, kept_modes, run_evaluation
from onematrix.training.history import History, Record, Tally
from onematrix.training.interrupt import Request, catching_interrupt
from onematrix.training.losses import count_correct, find_loss, has_classes
from onematrix.training.progress import Reporter, choose_reporter
from onematrix.training.recipe import Recipe, describe_settings, make_optimizer


def train(
    module: nn.Module,
    data: Data,
    recipe: Recipe | None = None,
    *,
    budget: Budget,
    folder: str | Path | None = None,
    resume: bool = True,
    evaluate: Evaluation | None = None,
    progress: bool | None = None,
    label: str = "training",
    checkpoint_seconds: float = 30.0,
) -> History:
    """Train the module in place on shuffled batches until the budget is spent.

    `folder`: where records.jsonl and checkpoint.safetensors go; None keeps nothing. A checkpoint is written
    after the first step, at the end of every epoch, every `checkpoint_seconds` (0: after every step), at the
    end and on Ctrl-C; with `resume` a run goes on from the one it finds. For budgets of steps or epochs the
    final numbers are those of a run that was never stopped, bit for bit on one machine with one number of
    threads (on CUDA: as far as the module's operations are deterministic), provided that module and data draw
    chance from torch's global generators only. `resume=False` deletes the folder's checkpoint and records.
    `evaluate`: data, or a callable module → number or {name: number}; run at the end of every epoch and of
    the run, in evaluation mode, without gradients.
    `progress`: None or True shows a bar on a terminal and plain lines elsewhere, False nothing.

    The generators are seeded with recipe.seed inside and given back as they were. The first Ctrl-C ends the
    run after its step with History.interrupted; the second raises KeyboardInterrupt at once.

    Raises TrainingError (empty data, no trainable parameter, NaN or infinite loss, a checkpoint of another
    module or other settings, …), FormatError for a damaged checkpoint, OneMatrixError for an unwritable
    folder.

    >>> from onematrix.training import Examples, Steps
    >>> net = nn.Linear(2, 2)
    >>> train(net, Examples(torch.eye(2), torch.tensor([0, 1])), budget=Steps(3), progress=False).steps
    3
    """
    check_budget(budget)
    check_data("train", data)
    check_period(checkpoint_seconds)
    reporter = choose_reporter(progress, label)
    device = state.device_of(module)
    quiet = progress is False
    with kept_modes(module), state.forked_generators(device), catching_interrupt(not quiet) as request:
        run = Run(module, data, recipe or Recipe(), budget, evaluate, device, reporter)
        torch.manual_seed(run.recipe.seed)
        if folder is not None:
            run.open_folder(make_folder(folder), resume, checkpoint_seconds)
        try:
            return run.to_the_end(request)
        finally:
            reporter.close()


def check_period(seconds: object) -> None:
    """Raise TrainingError unless a number ≥ 0."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
        raise TrainingError(f"train: checkpoint_seconds must be a number >= 0, got {seconds!r}", got=seconds)


class Run:
    """A run under way."""

    def __init__(
        self,
        module: nn.Module,
        data: Data,
        recipe: Recipe,
        budget: Budget,
        evaluation: Evaluation | None,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        self.module, self.data, self.recipe, self.budget = module, data, recipe, budget
        self.evaluation, self.device, self.reporter = evaluation, device, reporter
        self.optimizer = make_optimizer(recipe, module)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.loss = find_loss(recipe.loss)
        self.steps_per_epoch = math.ceil(len(data) / recipe.batch)
        self.folder: Path | None = None
        self.settings: dict[str, object] = {}
        self.records: list[Record] = []
        self.tally = Tally()
        self.step = self.resumed_from = 0
        self.started = self.begun = time.perf_counter()
        self.order_of: tuple[int, Tensor] | None = None

    @property
    def seconds(self) -> float:
        """Seconds of wall clock since the first step of the run, without the time between its parts."""
        return time.perf_counter() - self.begun

    @property
    def spent(self) -> float:
        return self.budget.fraction(self.step, self.seconds, self.steps_per_epoch)

    def open_folder(self, folder: Path, resume: bool, checkpoint_seconds: float) -> None:
        """Take up the folder's checkpoint if there is one, and drop what was recorded after it."""
        self.folder, self.checkpoint_seconds = folder, checkpoint_seconds
        self.settings = describe_settings(self.recipe, self.optimizer, fingerprint(self.data))
        path = folder / checkpoint.NAME
        for name in (checkpoint.NAME, history.NAME):
            checkpoint.remove_leftovers(folder, name)
        if not resume:
            path.unlink(missing_ok=True)
        if path.exists():
            self.take_up(checkpoint.read_checkpoint(path))
        self.records = history.keep_records(folder, self.step)
        self.saved_at = time.perf_counter()

    def take_up(self, saved: checkpoint.Checkpoint) -> None:
        """Continue from a checkpoint. Raises TrainingError with all differences, changing nothing."""
        header, tensors = saved.header, saved.tensors
        differences = state.mapping_differences(header["settings"], self.settings)
        differences += state.module_differences(self.module, tensors, header["ties"])
        differences = differences or state.optimizer_differences(
            self.optimizer, self.module, header["optimizer"]
        )
        if differences:
            raise TrainingError(
                f"{saved.path} belongs to another run: {'; '.join(differences)}; {state.REMEDY}",
                differences=differences,
            )
        self.check_not_past(saved)
        state.restore_module(self.module, tensors)
        state.restore_optimizer(self.optimizer, self.module, tensors, header["optimizer"])
        state.restore_generators(tensors, self.device)
        self.step = self.resumed_from = header["step"]
        self.tally = Tally(**header["tally"])
        self.begun = time.perf_counter() - header["seconds"]
        self.reporter.note(f"resumed at step {self.step} from {saved.path}")

    def check_not_past(self, saved: checkpoint.Checkpoint) -> None:
        """Raise TrainingError when the checkpoint has more steps than a budget of steps or epochs allows."""
        step = saved.header["step"]
        if self.budget.fraction(step, 0.0, self.steps_per_epoch) > 1:
            raise TrainingError(
                f"{saved.path} is at step {step}, past the budget {self.budget}; "
                f"raise the budget, {state.REMEDY}",
                step=step,
            )

    def to_the_end(self, request: Request) -> History:
        """Step until the budget is spent or an end is asked for; close the epoch under way."""
        self.module.train()  # an evaluation gives the modes back
        while self.spent < 1 and not request.made:
            self.advance()
            self.show()
            if self.step % self.steps_per_epoch == 0:
                self.close_epoch(complete=True, evaluated=True)
            elif self.step == 1 or self.is_checkpoint_due():  # the first shows at once what cannot be saved
                self.save()
        if self.tally.steps:
            self.close_epoch(complete=False, evaluated=not request.made)
        if request.made:
            kept = f"; resume from {self.folder}" if self.folder else ""
            self.reporter.note(f"interrupted at step {self.step}{kept}")
        found = history.last_evaluation(self.records)
        return History(tuple(self.records), self.step, self.seconds, request.made, self.resumed_from, found)

    def advance(self) -> None:
        """One step: batch, loss, gradients, update."""
        begun = time.perf_counter()
        indices = self.next_indices()
        x, target = draw_batch(self.data, indices, self.device)
        outputs = self.module(*x)
        value = self.update(self.loss(outputs, target))
        judged = has_classes(outputs, target)
        correct = count_correct(outputs.detach(), target) if judged else 0
        rows = target.numel() if judged else 0
        self.step += 1
        self.tally.add(len(indices), value, rows, correct, time.perf_counter() - begun)

    def next_indices(self) -> Tensor:
        """Indices of the next batch, by (seed, step) alone; the last of an epoch may be smaller."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if self.order_of is None or self.order_of[0] != epoch:
            self.order_of = epoch, batch_order(len(self.data), self.recipe.seed, epoch)
        start = position * self.recipe.batch
        return self.order_of[1][start : start + self.recipe.batch]

    def update(self, loss: Tensor) -> float:
        """Move the parameters down the gradient; gives the loss. Raises TrainingError if not finite."""
        self.check_loss(loss)
        value = float(loss.detach())
        self.check_finite("loss", value)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip is not None:
            norm = float(nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip))
            self.check_finite("norm of the gradient", norm)
        self.optimizer.step()
        return value

    def check_loss(self, loss: object) -> None:
        """Raise TrainingError unless the loss is a scalar with a gradient."""
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            if isinstance(loss, Tensor) and loss.numel() == 1:
                got = "a scalar without gradient"
            raise TrainingError(
                f"loss: a scalar tensor that depends on the parameters was needed, got {got}", got=got
            )

    def check_finite(self, what: str, value: float) -> None:
        """Raise TrainingError naming the step when the value is not finite; no parameter has moved then."""
        if not math.isfinite(value):
            clip = "" if self.recipe.clip is not None else ", or set a clip such as 1.0"
            raise TrainingError(
                f"step {self.step + 1}: the {what} is {value}; lower the learning rate "
                f"({self.recipe.learning_rate:g}){clip}, and check the data for NaN",
                step=self.step + 1,
                value=value,
            )

    def show(self) -> None:
        text = self.budget.describe(self.step, self.seconds, self.steps_per_epoch)
        means = self.tally.means()
        text += f", loss {means['train_loss']:.4f}"
        if means["train_accuracy"] is not None:
            text += f", accuracy {means['train_accuracy']:.1%}"
        self.reporter.update(self.spent, text, time.perf_counter() - self.started)

    def close_epoch(self, complete: bool, evaluated: bool) -> None:
        """Record the epoch, then save: a kill between the two drops the record and makes it again."""
        found = run_evaluation(self.evaluation, self.module, self.recipe.loss) if evaluated else {}
        means = self.tally.means()
        seen = (self.step // self.steps_per_epoch) * len(self.data) + (0 if complete else self.tally.examples)
        record: Record = {
            "epoch": math.ceil(self.step / self.steps_per_epoch),
            "step": self.step,
            "examples": seen,
            "complete": complete,
            "train_loss": means["train_loss"],
            "train_accuracy": means["train_accuracy"],
            "evaluation": found,
            "seconds": self.seconds,
            "seconds_per_step": means["seconds_per_step"],
        }
        self.records.append(record)
        if self.folder is not None:
            append_line(self.folder / history.NAME, record)
        if complete:
            self.tally = Tally()
        self.save()

    def is_checkpoint_due(self) -> bool:
        return self.folder is not None and time.perf_counter() - self.saved_at >= self.checkpoint_seconds

    def save(self) -> None:
        """Write the checkpoint, when there is a folder."""
        if self.folder is None:
            return
        tensors, ties = state.pack_module(self.module)
        optimizer_tensors, numbers = state.pack_optimizer(self.optimizer, self.module)
        header = {
            "step": self.step,
            "epoch": self.step // self.steps_per_epoch,
            "seconds": self.seconds,
            "settings": self.settings,
            "tally": self.tally.numbers(),
            "ties": ties,
            "optimizer": numbers,
        }
        tensors = {**tensors, **optimizer_tensors, **state.pack_generators(self.device)}
        checkpoint.write_checkpoint(self.folder / checkpoint.NAME, tensors, header)
        self.saved_at = time.perf_counter()
