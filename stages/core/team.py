"""Data-parallel training: one stage in several processes, a device for each, with the result of one device to rounding.

    learn_subject(project, "toy", device="cuda:0,cuda:1")

Every process runs the same stage function. Each draws the random numbers of the whole batch, which are a function of
(seed, step), and computes the rows that are dealt to it. A loss is a mean over rows, or a sum of such means: each
process minimises its part of it, and the gradients are added up, so that all hold the same weights at every step. The
first process alone takes the project's lock, writes, and is heard. They talk through accelerate: NCCL between GPUs,
gloo on the CPU, and meet in a file, without a port of their own to agree on.
"""
from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import broadcast, check_cuda_p2p_ib_support, reduce
from torch import Tensor

from .errors import OutOfResources, UsageError, VideomageError
from .jobs import POLL_SECONDS, begin, deaf, safe_path
from .report import Report, ask_to_stop, asked_to_stop, silent, stoppable

GRACE_SECONDS = 3.0                # that the others of a failed run have to end by themselves
PATIENCE = timedelta(days=30)      # of a message: `together` notices who is gone, and previews take their time


class Team:
    """The processes that share a run, as one of them sees it. Team() is a team of one: nothing is sent."""

    def __init__(self, rank: int = 0, size: int = 1, meeting: Path | None = None, device: str = "cpu") -> None:
        """meeting: a file that does not exist yet, the same for all; returns when all have come."""
        self.rank, self.size, self.device = rank, size, torch.device(device)
        if size > 1:
            _join(rank, size, meeting, self.device)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    # -- sharing out -------------------------------------------------------------------------------------------------
    def require(self, parts: int, what: str) -> None:
        """Raise UsageError where a step has fewer parts than there are processes: some would never have any work."""
        if parts < self.size:
            raise UsageError(f"a step of {what} has {parts} part{'s' * (parts > 1)} to share out, too few for "
                             f"{self.size} devices", "raise its --batch, or name fewer --devices")

    def deal(self, costs: Mapping[str, Sequence[float]]) -> dict[str, list[int]]:
        """{term: the cost of each of its rows, in any unit} -> {term: the rows that this process computes}.

        The dearest first, each to whoever has least to do: no forward depends on another's, so a single row of a term
        is work for one process while the others do the rest.
        """
        loads, mine = [0.0] * self.size, {term: [] for term in costs}
        jobs = [(cost, term, row) for term, rows in costs.items() for row, cost in enumerate(rows)]
        for cost, term, row in sorted(jobs, key=lambda job: -job[0]):
            to = loads.index(min(loads))
            loads[to] += cost
            if to == self.rank:
                mine[term].append(row)
        return {term: sorted(rows) for term, rows in mine.items()}

    # -- messages ----------------------------------------------------------------------------------------------------
    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""
        return reduce(tensor, reduction="sum") if self.size > 1 else tensor

    def first_says(self, number: int) -> int:
        """The first process's number, for all: what they must not decide differently."""
        if self.size == 1:
            return number
        return int(broadcast(torch.tensor([int(number)], device=self.device)))

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of the processes."""
        return bool(self.total(torch.tensor([float(flag)], device=self.device))) if self.size > 1 else flag

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            PartialState().wait_for_everyone()

    @torch.no_grad()
    def same(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the first process's, in one message."""
        if self.size > 1:
            flat = broadcast(torch.cat([tensor.detach().flatten() for tensor in tensors]))
            for tensor, value in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
                tensor.copy_(value.view_as(tensor))

    @torch.no_grad()
    def add_up(self, parameters: Sequence[Tensor], losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace each gradient by its sum over the processes, and return the sums of the losses, all in one message.
        A parameter that no process has a gradient of has none afterwards either."""
        if self.size == 1:
            return {name: value.detach() for name, value in losses.items()}
        there = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
        values = torch.stack([value.detach() for value in losses.values()])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        sizes = [len(values), len(there), *(p.numel() for p in parameters)]
        values, there, *grads = self.total(torch.cat([values, there, *(g.flatten() for g in grads)])).split(sizes)
        for p, grad, held in zip(parameters, grads, there.tolist()):
            p.grad = grad.view_as(p).to(p.dtype) if held else None
        return dict(zip(losses, values))


ALONE = Team()


def mean_over(rows: Sequence[int], whole: Sequence[Tensor], loss: Callable[..., Tensor]) -> Tensor:
    """This process's part of loss(*whole), a mean over the rows of these tensors, each (B, ...): its own mean over the
    given rows, times their share of B. The parts of all processes add up to the whole. 0 without a row."""
    if len(rows) == len(whole[0]):
        return loss(*whole)
    if not rows:
        return whole[0].new_zeros(())
    return loss(*(tensor[list(rows)] for tensor in whole)) * (len(rows) / len(whole[0]))


def _join(rank: int, size: int, meeting: Path, device: torch.device) -> None:
    """Open the process group and tell accelerate of it. Loopback is enough: all are on this machine."""
    cpu = device.type == "cpu"
    local = 0 if cpu else device.index
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local), LOCAL_WORLD_SIZE=str(size),
                      OMP_NUM_THREADS=str(torch.get_num_threads()))              # or accelerate would change it
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if cpu and loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    if not cpu:
        torch.cuda.set_device(device)
        if not check_cuda_p2p_ib_support():                      # cards on which NCCL has to do without
            os.environ.update(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")
    backend = "gloo" if cpu else "nccl"
    torch.distributed.init_process_group(backend, store=torch.distributed.FileStore(str(meeting), size), rank=rank,
                                         world_size=size, timeout=PATIENCE)
    PartialState(cpu=cpu, backend=backend)


# -- processes ---------------------------------------------------------------------------------------------------------
def devices_of(text: str) -> list[str]:
    """"cuda:0,cuda:1" -> ["cuda:0", "cuda:1"]. Raises UsageError for what cannot work together."""
    devices = [name.strip() for name in text.split(",")]
    if len(devices) == 1:
        return devices
    kinds = {name.split(":")[0] for name in devices}
    if kinds not in ({"cpu"}, {"cuda"}):
        raise UsageError(f"{', '.join(devices)} cannot train together", "name several of one kind: cuda:0,cuda:1, or "
                         "cpu,cpu")
    devices = ["cuda:0" if name == "cuda" else name for name in devices]
    twice = {name for name in devices if devices.count(name) > 1} if kinds == {"cuda"} else ()
    if twice:
        raise UsageError(f"the device {min(twice)} is named twice", "name each GPU once")
    return devices


def on_devices(stage: Callable) -> Callable:
    """A stage function whose `device` may name several, "cuda:0,cuda:1": it then runs in a process for each, with its
    `team`, and returns what the first of them returned. One device: in this process, as it is."""

    @functools.wraps(stage)
    def call(*args: object, device: str = "cpu", report: Report = silent, **keywords: object) -> object:
        devices = devices_of(device)
        if len(devices) == 1:
            return stage(*args, device=devices[0], report=report, **keywords)
        return together(functools.partial(call, *args, **keywords), devices, report=report)

    return call


class _End(NamedTuple):
    """How a process ended. at: when it failed, by a clock that all processes share; 0 for one that just died."""

    value: object = None
    error: BaseException | None = None
    at: float = 0.0
    told: str = ""                                       # its traceback


@safe_path()
def together(call: Callable[..., object], devices: Sequence[str], *, report: Report = silent) -> object:
    """Run call(device=..., team=..., report=...) in a process for each device -> what the first of them returns.

    call: picklable, as what it returns, which must hold no tensor: that would need its process to live on. A process
    that fails or dies ends all others, and its error is raised; so do Ctrl-C and a request to stop, after the step that
    all are in.
    """
    spawn, processes = multiprocessing.get_context("spawn"), {}
    stopping = spawn.Event()
    with tempfile.TemporaryDirectory(prefix="videomage-") as folder:
        try:
            for rank in range(len(devices)):
                ours, theirs = spawn.Pipe(duplex=False)
                args = (rank, tuple(devices), Path(folder) / "meeting", stopping, theirs, call)
                process = spawn.Process(target=_member, args=args, daemon=True)
                with deaf():
                    process.start()
                theirs.close()
                processes[ours] = process
            ends = _watch(processes, devices, stopping, report)
            for process in processes.values() if all(end.error is None for end in ends) else ():
                process.join(GRACE_SECONDS)
        finally:
            for process in processes.values():
                process.kill()                           # locks are freed, and checkpoints are whole or not there
                process.join()
    failed = [end for end in ends if end.error is not None]
    if failed:
        first = min(failed, key=lambda end: end.at)      # what the others say is that they lost it
        raise first.error from (RuntimeError(first.told) if first.told else None)
    return ends[0].value


@stoppable()
def _watch(processes: Mapping, devices: Sequence[str], stopping, report: Report) -> list[_End]:
    """Pass on what the first process reports until all have ended, or GRACE_SECONDS after it has, or one has failed."""
    pipes, ends, limit, first = dict(zip(processes, devices)), {}, None, next(iter(processes))
    while pipes and (limit is None or time.monotonic() < limit):
        try:
            for pipe in wait(list(pipes), POLL_SECONDS):
                heard = _receive(pipe, processes[pipe], pipes[pipe])
                if not isinstance(heard, _End):
                    report(**heard)
                    continue
                ends[pipe] = heard
                del pipes[pipe]
                if limit is None and (heard.error is not None or pipe is first):
                    limit = time.monotonic() + GRACE_SECONDS
        except KeyboardInterrupt:
            if stopping.is_set():                        # asked twice: at once
                raise
            stopping.set()
            ends[None] = _End(error=KeyboardInterrupt(), at=-1.0)
        if asked_to_stop():
            stopping.set()
    return [ends.get(pipe, _End()) for pipe in (*processes, None)]


def _receive(pipe, process, device: str) -> _End | dict:
    """The next message of a process; where it died without a word, an error that says so."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        process.join(GRACE_SECONDS)
        if process.exitcode == -signal.SIGKILL:
            return _End(error=OutOfResources(f"the process on {device} was killed, most likely because memory ran out",
                                             "use fewer --devices, a smaller --batch, or --dtype bf16"))
        return _End(error=RuntimeError(f"the process on {device} ended with exit code {process.exitcode}"))


def _member(rank: int, devices: Sequence[str], meeting: Path, stopping, pipe, call: Callable[..., object]) -> None:
    """One process of `together`. SIGTERM to any of them stops all after the step."""
    asked = os.environ.get("OMP_NUM_THREADS")
    begin(stopping, threads=int(asked) if asked else max(1, (os.cpu_count() or 1) // len(devices)))
    signal.signal(signal.SIGTERM, lambda *_: ask_to_stop())
    try:
        team = Team(rank, len(devices), meeting, devices[rank])
        value = call(device=devices[rank], team=team, report=silent if rank else lambda **facts: pipe.send(facts))
        pipe.send(_End(value))
        torch.distributed.destroy_process_group()
    except BaseException as error:
        pipe.send(_End(error=_portable(error), at=time.monotonic(), told=traceback.format_exc()))


def _portable(error: BaseException) -> BaseException:
    """An error that arrives as what it is: ours, Python's own, memory of a device; any other by its text."""
    known = isinstance(error, (VideomageError, torch.OutOfMemoryError)) or type(error).__module__ == "builtins"
    return error if known else RuntimeError(f"{type(error).__name__}: {error}")
