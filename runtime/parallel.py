"""Several processes, on one node or more: the one file that knows of torchrun.

Needs torch; knows nothing of methods. Without torchrun there is no process group and every function
here does what a single process would: shares are the whole, sums are the values, models stay as
they are. Under `torchrun --nproc-per-node N train.py ...`

    problems       Each rank samples, verifies and scores its own. Then all ranks exchange their
                   attempts (a few MB), so peers, weights and the normaliser are computed over the
                   whole step and are the same on every rank.
    micro-batches  Dealt out round-robin and padded with micro-batches of weight 0: every
                   all-gather of weights needs every rank.
    gradient       g = sum of g_rank, a plain sum: the loss is already divided by the normaliser of
                   the whole step.
    models         FSDP2: each rank keeps 1/N of every matrix, of its gradient, moments and EMA, in
                   float32. A block is gathered only while it computes, the whole model only while
                   it samples.

Every rank must run the same collectives in the same order. So no collective depends on a condition
that a single rank decides, and none is called inside rollout.generate, whose number of decoding
steps differs from rank to rank.
"""

import atexit
import contextlib
import ctypes
import datetime
import os
import signal
import sys
import time
import types
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from sandbox import cores

# Timeout of a collective: ranks may wait this long for the rollouts of the slowest. A rank that has
# died is noticed by torchrun at once.
PATIENCE = datetime.timedelta(hours=2)
REFUSALS = (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError, MemoryError)


# --- processes ---


class Refused(ValueError):
    """An error that every rank raises at once, so that all exit together and rank 0 prints it."""


def join() -> None:
    """Join the process group of the torchrun job, if there is one.

    From here on only rank 0 writes to standard output. Raises Refused where a node has GPUs, but
    fewer than ranks.
    """
    if (
        not dist.is_torchelastic_launched()
        or os.environ["WORLD_SIZE"] == "1"
        or dist.is_initialized()
    ):
        return
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if 0 < gpus < here:
        raise Refused(
            f"--nproc-per-node {here} on a node with {gpus} GPUs: start {gpus}, or hide the GPUs "
            "(CUDA_VISIBLE_DEVICES=) to run on the CPU"
        )
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # gloo too: gather() pickles objects, which NCCL cannot carry on the CPU
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    with contextlib.suppress(AttributeError, TypeError):  # no prctl but on Linux
        # PR_SET_PDEATHSIG: when torchrun itself is killed, get SIGTERM, save and stop
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    # gloo's threads need the interpreter's lock to free the tensors of the last collective; without
    # this pause they may abort the process after the interpreter has ended.
    atexit.register(time.sleep, 0.2)
    if not is_main():
        sys.stdout = open(os.devnull, "w")


def leave() -> None:
    """Barrier, then destroy the process group.

    Without the barrier torchrun would kill the ranks that still work when the first one exits.
    """
    if dist.is_initialized():
        wait()
        dist.destroy_process_group()


def world() -> int:
    """The number of ranks, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, the one that prints and writes; can be called before `join`."""
    return int(os.environ.get("RANK", 0)) == 0 if dist.is_torchelastic_launched() else True


def share(items: list) -> list:
    """This rank's part of a list that all ranks have: every world-th item."""
    return items[dist.get_rank() :: world()] if dist.is_initialized() else items


def gather(items: list) -> list:
    """All-gather: the lists of all ranks, joined in the order of the ranks.

    Items are pickled: for a few MB at most.
    """
    if world() == 1:
        return items
    lists = [None] * world()
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def total(values: list[float]) -> list[float]:
    """All-reduce: the sum of each of these numbers over all ranks, in float64."""
    if world() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def workers() -> int | None:
    """How many programs this rank may run at once: its part of the node's cores.

    None, which stands for all cores, without torchrun.
    """
    return None if world() == 1 else max(1, cores() // int(os.environ["LOCAL_WORLD_SIZE"]))


def agree(flag: bool) -> bool:
    """Any-reduce: true on every rank when `flag` is true on any.

    A collective: must not stand inside an `except` that only one rank enters.
    """
    return total([int(flag)])[0] > 0


def wait() -> None:
    """Barrier."""
    gather([])


def left_alone(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone.

    gloo raises plain RuntimeErrors, which only their text tells from others.
    """
    return world() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())


@contextlib.contextmanager
def together():
    """When another rank has failed, exit with one line, not a traceback."""
    try:
        yield
    except RuntimeError as error:
        if not left_alone(error):
            raise
        sys.exit(
            f"train.py: process {dist.get_rank()} stops: another process is gone, and its own line "
            "or torchrun's report says why"
        )


def in_turn(make):
    """make() on the first rank of each node, then on the others, which find its caches filled.

    An error of one rank (of REFUSALS, or SystemExit) is raised on every rank as Refused, the lowest
    rank's first; else the others would wait in their next collective for a rank that has given up.
    `make` must not contain a collective.
    """
    if world() == 1:
        return make()
    made, refusal = None, None
    for turn in (True, False):
        if turn == (os.environ["LOCAL_RANK"] == "0"):
            try:
                made = make()
            except REFUSALS as error:
                refusal = str(error)
            except SystemExit as error:  # of argparse, which has printed its line
                refusal = error.code
        for found in gather([refusal]):
            if found is not None:
                raise SystemExit(found) if isinstance(found, int) else Refused(found)
    return made


def by_main(make):
    """Broadcast: what make() returns on rank 0. Errors as in `in_turn`; no collective in `make`."""
    return gather([in_turn(lambda: make() if is_main() else None)])[0]


# --- sharded models ---


def shard(model: torch.nn.Module, *, device: str, dtype: str) -> None:
    """Move `model` to its device, in place; with several ranks each keeps only its shards.

    dtype "bfloat16": weights are cast to it before the all-gather, gradients are summed in float32,
    and shards keep their type (float32 for what is trained). The blocks and the rest at the root
    (embedding, last norm, head; tied or not) are gathered separately. Make the optimizer after
    this, or it holds the unsharded parameters.
    """
    if world() == 1 or isinstance(model, FSDPModule):
        model.to(device)
        return
    mesh = dist.init_device_mesh(torch.device(device).type, (world(),))
    policy = MixedPrecisionPolicy(*([torch.bfloat16, torch.float32] if dtype == "bfloat16" else []))
    blocks = [
        part for part in model.modules() if type(part).__name__ in (model._no_split_modules or ())
    ]
    for part in [*blocks, model]:
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=part is not model)
        # FSDP2 averages over ranks by default; the normaliser is in the loss already
        part.set_gradient_divide_factor(1.0)
        # 1.0 alone asks for PREMUL_SUM, which gloo does not have
        part.set_force_sum_reduction_for_comms(True)
    model.inside, model.has_run = types.MethodType(lambda self, function: function(), model), False
    register_fsdp_forward_method(model, "inside")


def inside(model: torch.nn.Module, function):
    """function() as the forward pass of `model`, for code that uses its parts or its head itself.

    FSDP2 gathers the weights at the root (embedding, last norm, head) only during the root's
    forward pass, and hooks the backward pass to the tensors that this pass returns: so `function`
    must return the loss, alone or in a tuple. After a pass without gradient the root stays gathered
    until `release`.
    """
    if not isinstance(model, FSDPModule):
        return function()
    model.has_run = True
    return model.inside(function)


def release(model: torch.nn.Module) -> None:
    """Reshard the weights that a forward pass without a backward pass has left gathered."""
    # before its first forward pass FSDP2 has no state to reset, and raises
    if isinstance(model, FSDPModule) and model.has_run:
        # newer versions have reset_iter_state, which also forgets the passes counted so far
        getattr(model, "reset_iter_state", model.reshard)()


@contextlib.contextmanager
def gathered(model: torch.nn.Module):
    """Keep all of `model` gathered on every rank, so that running it needs no collective."""
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def number(tensor: torch.Tensor) -> float:
    """The value of a scalar, sharded (a norm over DTensors) or not."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).item()


# --- checkpoints ---


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The whole state dict of `model`; of a sharded one on rank 0's CPU, empty on other ranks."""
    if not isinstance(model, FSDPModule):
        return model.state_dict()
    return get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load a whole state dict, which every rank has, into `model`, sharded or not."""
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(weights)


def write_state(folder, student, optimizer, teacher) -> None:
    """Write AdamW's moments and the teacher (a model or None) to `folder`, each rank its shards."""
    tensors = _tensors(student, optimizer, teacher)
    _plainly(lambda: dcp.save(tensors, storage_writer=_Writer(folder), no_dist=world() == 1))


def read_state(folder, student, optimizer, teacher) -> None:
    """Read what `write_state` wrote, into a fresh optimizer and the teacher.

    The number of ranks may differ. The names in the folder tell which parameters had moments:
    torch's get_optimizer_state_dict would take a step with gradient 0 to create them, so an
    optimizer that has never stepped would come back at step 1.
    """
    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    for name, parameter in student.named_parameters():
        if f"optimizer.{name}.step" in stored:
            place = parameter.device if optimizer.defaults["fused"] else "cpu"
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=place),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    tensors = _tensors(student, optimizer, teacher)
    _plainly(lambda: dcp.load(tensors, checkpoint_id=folder, no_dist=world() == 1))


def _tensors(student, optimizer, teacher):
    """Name -> tensor, the same names for any number of ranks."""
    tensors = {
        f"optimizer.{name}.{key}": value
        for name, parameter in student.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    if teacher is not None:
        tensors.update(
            (f"teacher.{name}", parameter.detach())
            for name, parameter in teacher.named_parameters()
        )
    return tensors


class _Writer(dcp.FileSystemWriter):
    """Raises the OSError itself: torch would pickle its own error, which loses the cause."""

    def write_data(self, *args):
        try:
            return super().write_data(*args)
        except Exception as error:
            raise of_the_system(error) from None


def of_the_system(error: BaseException) -> BaseException:
    """The OSError in an error's chain of contexts ("disk full"), else the error itself."""
    behind = error
    while behind.__context__ and not isinstance(behind, OSError):
        behind = behind.__context__
    return behind if isinstance(behind, OSError) else error


def _plainly(work):
    """work(), where the error of any rank is raised on all ranks, and torch's warnings are silent.

    torch wraps it into CheckpointException, a BaseException; its warning tells a single process
    that there is no process group.
    """
    failures = {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
            )
            work()
    except CheckpointException as error:
        failures = error.failures
    # outside of the `except`: there the failure's own context, the OSError, would be replaced
    for failure, _ in failures.values():
        failure.everywhere = True
        raise failure
