"""One training run: build, warm up, train between evaluations, stop, and say how it ended. Always a row."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.catalogue import registry
from harness.catalogue.workload import Batch, Workload
from harness.errors import Unsupported
from harness.measure.training import checkpoint, crossing, schedule, state
from harness.measure.training import log as logs
from harness.measure.training import outcome as outcomes
from harness.measure.training.clock import Buckets, TrainClock
from harness.measure.training.distributed import ALONE, DRIFT, Alone
from harness.measure.training.outcome import Outcome, failure
from harness.measure.training.spec import BLOW_UP, RunSpec
from harness.measure.training.step import Loss, Stepper, counted, told
from harness.measure.training.warmup import warm_up
from harness.measure.training_device import TrainingCPU

Report = Callable[..., None]
#: Samples of one evaluation batch: what an accelerator is filled with at little memory.
EVALUATION_BATCH = (256, 1024)
#: A factory or a dropout mask must not see the numbers that initial weights were drawn from.
_FACTORY, _TRAINING = 0x5EED, 0x7EED


class Diverged(Exception):
    """A loss that is not finite, or that blew up."""


class Run:
    """One run.

    Args:
        spec: what to do.
        workload: its workload.
        runtime: the workload's runtime.
        data: the workload's data on the device.
        device: the training device.
        loss: ``loss(model, inputs, targets)``, shared by all arms.
        report: called at block ends with what people want to see; it keeps the run from being taken for a hang.
        model: a used model of the same workload to take over (compiled graphs hold on to it), None for a new one.
        costs: what compiling and warming up took in earlier runs of this process, by what it was for. A run is charged
            the most that any run has paid, so that the first arm does not pay for all.
        now: the host's monotonic clock.
        ranks: the processes that train together. The clock runs from when all of them are ready to when the last one
            is done, by rank 0's reading.
    """

    def __init__(
        self,
        *,
        spec: RunSpec,
        workload: Workload,
        runtime: Any,
        data: Any,
        device: TrainingCPU,
        loss: Loss,
        report: Report = lambda **_: None,
        model: nn.Module | None = None,
        costs: dict[tuple[str, ...], float] | None = None,
        now: Callable[[], float] = time.perf_counter,
        ranks: Alone = ALONE,
    ) -> None:
        self.ranks = ranks
        self.spec, self.workload, self.runtime, self.data = spec, workload, runtime, data
        self.device, self.loss, self.report = device, loss, report
        self.model: nn.Module = model  # type: ignore[assignment]
        self.optimizer: Any = None
        self.costs = {} if costs is None else costs
        self._held = 0.0
        self.log = logs.Log()
        self.updates: int | None = None
        self.final: dict[str, float] = {}
        self.detail: dict[str, Any] = {}
        self.buckets = Buckets(device)
        self.clock = TrainClock(self._meet, now)
        self._now = now
        self._saved_at = now()
        self._saved_done = 0
        own = workload.target.metric.split("_", 1)
        self._prefix = "val" if spec.validation or own[0] == "val" else "test"
        self.metric = f"{self._prefix}_{own[-1]}"

    def _meet(self) -> None:
        """Everything that this device was given is done, and every rank is here."""
        self.device.synchronize()
        self.ranks.meet()

    # -- the whole -------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Train; every way to end becomes a status."""
        before = self.device.settings()
        try:
            status, reason = self._run()
        except Diverged as error:
            status, reason = "diverged", str(error)
            self.detail |= counted(self.optimizer)
        except Unsupported as error:
            status, reason = "unsupported", str(error)
        except Exception as error:
            status, reason = failure(self.device, error)
        finally:
            self.clock.abandon()
        self._close()
        if why := self.device.changed(before):
            status, reason = "error", f"impure: {why}"
        self.log.train_s = self.clock.elapsed_s
        self.log.buckets = self.buckets.totals
        return outcomes.outcome(
            spec=self.spec,
            workload=self.workload,
            log=self.log,
            status=status,
            reason=reason,
            metric=self.metric,
            updates=self.updates,
            crossings=self._crossings(),
            final=self.final,
            detail=self.detail,
        )

    def _run(self) -> tuple[str, str | None]:
        self._build()
        self._warm_up()
        self._resume()
        if not self.log.curve:
            self._evaluate()
        self._train()
        self.detail["weights_sha256"] = state.digest(state.weights(self.model))
        self.detail |= counted(self.optimizer)
        self._tell()
        if self.ranks.rank == 0 and callable(final := getattr(self.runtime, "final", None)):
            self.final = {
                name: float(value) for name, value in self._aside(lambda: final(self.model, self.data)).items()
            }
        return self._verdict()

    def _tell(self) -> None:
        """What each of several ranks has seen, for rank 0's record."""
        if self.ranks.size == 1:
            return
        log, mine = self.log, self.device.device_peak()
        self.log.ranks = self.ranks.gather(
            {
                "rank": self.ranks.rank,
                "device": self.device.name(),
                "peak_device_bytes": max(log.device_peak, mine + self._held if mine > 0 else 0.0),
                "peak_host_bytes": log.host_peak,
                "optimizer_state_bytes": log.state_bytes,
                "energy_j": log.energy_j,
                "weights_sha256": self.detail["weights_sha256"],
            }
        )
        log.device_peak = max(rank["peak_device_bytes"] for rank in log.ranks)
        joules = [rank["energy_j"] for rank in log.ranks]
        log.energy_j = None if None in joules else sum(joules)

    def _verdict(self) -> tuple[str, str | None]:
        target, values = self.workload.target, self.log.curve[self.metric]
        if any(c.level == target.value for c in self._crossings()):
            return "target_reached", None
        sign = "at least" if target.larger_is_better else "at most"
        best = (max if target.larger_is_better else min)(values)
        shown = f"{self.metric} {values[-1]:.4g} at the end, {best:.4g} at best"
        if self.log.stopped_early and self.spec.until is not None:
            open_ = f"the target of {sign} {target.value:g} was left open"
            return "budget_exhausted", f"{shown}; stopped at {self.spec.until:g}, as asked: {open_}"
        passed = f" (the budget of {self.spec.max_s:g} s is spent)" if "stopped_by" in self.detail else ""
        if target.mode == "crossing" and any(target.met(v) for v in values[1:]):
            passed += "; it was met, but never at two evaluations in a row"
        return "budget_exhausted", f"{shown}; wanted {sign} {target.value:g}{passed}"

    def _crossings(self) -> list[crossing.Crossing]:
        target, curve = self.workload.target, self.log.curve
        if self.metric not in curve:
            return []
        axes = {name: curve[name] for name in ("s", "steps", "samples")}
        return crossing.of_run(target, curve[self.metric], axes, self.log.done == self.updates)

    # -- before the clock ------------------------------------------------------------------------------------------

    def _build(self) -> None:
        spec, device = self.spec, self.device
        self.updates = max(1, round(float(spec.trainer["epochs"]) * self.data.size / self.workload.batch))
        if self.model is not None:
            self.model.zero_grad(set_to_none=True)
            self._held = state.device_bytes(self.model)  # there before the baseline, and the run's own
        if callable(forget := getattr(self.data, "forget", None)):
            forget()
        device.peak_start()
        device.seed(spec.stream)
        fresh = self.runtime.model(self.workload)
        if self.model is None:
            self.model = self._placed(fresh)
        else:
            state.restore_weights(self.model, state.weights(self._placed(fresh)))
        if callable(prepare := getattr(self.runtime, "prepare", None)):
            prepare(self.model, self.data)
        self.ranks.spread(self.model)
        self.model.train()
        device.seed(spec.stream ^ _FACTORY)
        method = registry.method(spec.method)
        self.optimizer = registry.resolve(method.impl)(self.model, **spec.factory)
        schedule.remember(self.optimizer)
        device.seed(spec.stream ^ _TRAINING)
        self.detail |= told(self.optimizer)
        self.detail["parameters"] = sum(p.numel() for p in self.model.parameters())
        self.stepper = Stepper(
            model=self.model,
            optimizer=self.optimizer,
            loss=self.loss,
            runtime_loss=self.runtime.loss,
            device=device,
            buckets=self.buckets,
            batch=self.workload.batch,
            trainer=spec.trainer,
            ranks=self.ranks,
            stream=spec.stream,
        )

    def _placed(self, model: nn.Module) -> nn.Module:
        model = model.to(self.device.kind)
        if self.workload.pure_bf16:
            model = model.to(torch.bfloat16)
        if self.workload.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self.ranks.synced(model) if self.spec.sync_batch_norm else model

    def _warm_up(self) -> None:
        self.report(what="warm-up", done=0, updates=self.updates)
        found = warm_up(self.stepper, self.data, self.spec.stream, stall=self._alone())
        if found.why is not None:
            raise RuntimeError(found.why)
        self.log.compile_s = self._charged("graph", found.graph_s) + self._charged(self.spec.method, found.seconds)
        self.detail["warmup_own_s"] = found.graph_s + found.seconds
        self.log.stall, self.log.warmup_hash_ok = found.stall, True
        self.device.reset_peak()

    def _alone(self) -> bool:
        """Whether a stall can be told: not of a timing run, nor where other runs disturb the clock."""
        return not {"scaling", "side_by_side"} & set(self.spec.extra)

    def _charged(self, what: str, seconds: float) -> float:
        """The most that any run of this process has paid for the same thing: graphs and kernels are then kept."""
        key = (self.workload.name, str(self.spec.trainer["precision"]), str(self.spec.compile), what)
        self.costs[key] = max(seconds, self.costs.get(key, 0.0))
        return self.costs[key]

    def _resume(self) -> None:
        if self.spec.checkpoint is None:
            return
        stored = checkpoint.load(checkpoint.of_rank(Path(self.spec.checkpoint), self.ranks.rank), self.spec)
        if len(set(self.ranks.gather(None if stored is None else stored["log"]["done"]))) > 1:
            return  # written half by the ranks of a killed run: it begins again
        if stored is None:
            return
        compiled = self.log.compile_s
        self.log = logs.from_json(stored["log"])
        self.log.compile_s += compiled
        self.log.resumed = True
        state.restore_weights(self.model, stored["weights"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.device.set_random_state(stored["random"])
        if self.stepper.scaler is not None:
            self.stepper.scaler.load_state_dict(stored["scaler"])
        self.clock = TrainClock(self._meet, self._now, self.log.train_s)
        self.buckets.totals = dict(self.log.buckets)
        self._saved_done = self.log.done

    # -- training --------------------------------------------------------------------------------------------------

    def _train(self) -> None:
        every = self.workload.eval_every or self.data.size
        assert self.updates is not None
        for point in schedule.evaluation_points(every, self.workload.batch, self.updates):
            if point <= self.log.done and self.log.curve["steps"][-1] >= point:
                continue
            while self.log.done < point:
                left = point - self.log.done
                self._block(math.ceil(left / math.ceil(left / self.spec.block_updates)))
                if self.clock.elapsed_s >= self.spec.max_s and self.log.done < point:
                    self.detail["stopped_by"] = "max_s"
                    break
            self._evaluate()
            if "stopped_by" in self.detail or (point != self.updates and self._stop_early()):
                return
            if self.clock.elapsed_s >= self.spec.max_s and point != self.updates:
                self.detail["stopped_by"] = "max_s"
                return

    def _stop_early(self) -> bool:
        if self.spec.full or self.workload.target.mode != "crossing":
            return False
        wanted = crossing.levels(self.workload.target) if self.spec.until is None else (self.spec.until,)
        done = set(wanted) <= {found.level for found in self._crossings()}
        self.log.stopped_early = done
        return done

    def _block(self, count: int) -> None:
        """``count`` updates between two synchronisations, then housekeeping with the clock paused."""
        assert self.updates is not None
        trainer = self.spec.trainer
        losses: torch.Tensor | None = None
        counted = self.device.energy_j()
        self.clock.resume()
        for _ in range(count):
            schedule.apply(self.optimizer, schedule.of(trainer, self.log.done, self.updates))
            loss = self.stepper.update(self._fetch, self.log.done * self.workload.batch)
            losses = loss if losses is None else losses + loss
            self.log.done += 1
        seconds = self.clock.pause()
        self.clock.agree(self.ranks.first(self.clock.elapsed_s))
        if counted is not None and (now := self.device.energy_j()) is not None:
            self.log.energy_j = (self.log.energy_j or 0.0) + now - counted
        added = self.buckets.collect()
        self.device.release()
        if callable(parts := getattr(self.optimizer, "parts", None)):
            for name, spent in parts().items():
                self.buckets.add(f"optimizer_{name}", float(spent))
        self.log.step_s.append(seconds / count)
        self.log.optimizer_step_s.append(added.get("optimizer", 0.0) / count)
        assert losses is not None
        self._watch(float(self.ranks.mean(losses)), count)
        self._heartbeat()
        self._save()

    def _fetch(self, first: int, count: int) -> Batch:
        batch: Batch = self.data.train(self.spec.stream, first, count)
        return batch

    def _watch(self, total: float, count: int) -> None:
        """The block's losses, read after its synchronisation: not finite or blown up is divergence."""
        mean = total / count
        if not math.isfinite(mean):
            raise Diverged(f"the training loss is {mean} after {self.log.done} updates")
        if self.log.first_loss is None:
            self.log.first_loss = self.log.curve["train_loss"][0] if self.log.curve else mean
        if mean > BLOW_UP * self.log.first_loss > 0:
            raise Diverged(
                f"the training loss {mean:.3g} is over {BLOW_UP:g} times the initial {self.log.first_loss:.3g} "
                f"after {self.log.done} updates"
            )
        self.log.loss_sum, self.log.loss_count = self.log.loss_sum + total, self.log.loss_count + count
        self.log.last_loss = mean

    def _heartbeat(self) -> None:
        values = self.log.curve[self.metric]
        best = (max if self.workload.target.larger_is_better else min)(values)
        self.report(
            what="training",
            done=self.log.done,
            updates=self.updates,
            epoch=self.log.done * self.workload.batch / self.data.size,
            metric=self.metric,
            value=values[-1],
            best=best,
            loss=self.log.last_loss,
            train_s=self.clock.elapsed_s,
            reached_s=next((c.time_s for c in self._crossings() if c.level == self.workload.target.value), None),
        )

    # -- outside the clock -----------------------------------------------------------------------------------------

    def _aside(self, call: Callable[[], Any]) -> Any:
        """Call outside the clock; generators, mode and peak memory of training are as before afterwards."""
        device = self.device
        if (peak := device.device_peak()) > 0:
            self.log.device_peak = max(self.log.device_peak, peak + self._held)
        random_state = device.random_state()
        self.model.eval()
        try:
            with torch.no_grad(), device.autocast():
                return call()
        finally:
            self.model.train()
            device.set_random_state(random_state)
            device.reset_peak()

    def _evaluate(self) -> None:
        start = self._now()
        small, large = EVALUATION_BATCH
        size = int(self.workload.params.get("eval_batch", min(max(self.workload.batch, small), large)))
        split = "validation" if self.spec.validation else "test"
        self.ranks.average_buffers(self.model)
        found = self._aside(lambda: self._evaluated(self.data.evaluation(split, size)))
        values = {f"{self._prefix}_{name}": float(value) for name, value in found.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} is {value} after {self.log.done} updates")
        if self.metric not in values:
            raise Unsupported(f"the workload's target is {self.metric}, its runtime evaluates {sorted(values)}")
        average = self.log.loss_sum / self.log.loss_count if self.log.loss_count else None
        loss = self.ranks.first(self._aside(self._initial_loss)) if average is None else average
        self.log.loss_sum, self.log.loss_count = 0.0, 0
        done = self.log.done
        point = {"steps": done, "samples": done * self.workload.batch, "s": self.clock.elapsed_s, "train_loss": loss}
        self.log.evaluated({**point, **values})
        self._compare()
        self.log.saw(self.device.state())
        self.log.state_bytes = state.state_bytes(self.optimizer, self.model)
        self.log.host_peak = max(self.log.host_peak, self.device.peak().get("peak_host_bytes", 0.0))
        self.device.synchronize()
        self.buckets.add("evaluation", self._now() - start)

    def _evaluated(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Metrics over all batches. Of several ranks each evaluates its samples; metrics are means over samples."""
        seen = [0]

        def count(samples: int) -> None:
            seen[0] += samples

        found = self.runtime.evaluate(self.model, self.ranks.shard(batches, count))
        return self.ranks.merged(found, seen[0])

    def _compare(self) -> None:
        """The ranks' weights must stay together.

        Raises:
            RuntimeError: they are apart by more than kernels that add in any order explain.
        """
        if self.ranks.size == 1:
            return
        apart = self.ranks.drift(self.model)
        self.log.drift = max(self.log.drift or 0.0, apart)
        if not apart <= DRIFT:
            raise RuntimeError(
                f"the weights of the {self.ranks.size} processes are {apart:.2g} of their norm apart after "
                f"{self.log.done} updates: the method's step is not the same on every rank"
            )

    def _initial_loss(self) -> float:
        inputs, targets = self.data.train(self.spec.stream, 0, min(self.workload.batch, EVALUATION_BATCH[1]))
        value = float(self.runtime.loss(self.model(inputs), targets))
        if not math.isfinite(value):
            raise Diverged(f"the training loss of the initial weights is {value}")
        return value

    def _save(self) -> None:
        """A checkpoint at a block's end, when one is due."""
        spec = self.spec
        if spec.checkpoint is None or self.log.done >= (self.updates or 0):
            return
        by_updates = 0 < spec.checkpoint_updates <= self.log.done - self._saved_done
        if not self.ranks.first(by_updates or self._now() - self._saved_at >= spec.checkpoint_s):
            return
        start = self._now()
        self.log.train_s, self.log.buckets = self.clock.elapsed_s, dict(self.buckets.totals)
        content = {
            "weights": state.weights(self.model),
            "optimizer": self.optimizer.state_dict(),
            "random": self.device.random_state(),
            "scaler": self.stepper.scaler.state_dict() if self.stepper.scaler is not None else None,
            "log": self.log.to_json(),
        }
        path = checkpoint.of_rank(Path(spec.checkpoint), self.ranks.rank)
        checkpoint.save(path, spec, content, self.ranks.meet)
        self._saved_at, self._saved_done = self._now(), self.log.done
        self.buckets.add("checkpoint", self._saved_at - start)

    def _close(self) -> None:
        """Let the method remove its hooks, and drop what holds device memory."""
        if callable(close := getattr(self.optimizer, "close", None)):
            try:
                close()
            except Exception as error:
                self.detail["close"] = f"{type(error).__name__}: {error}"
        self.optimizer = None
        if hasattr(self, "stepper"):
            del self.stepper
