"""Many processes, on one node or several: the one file that knows of torchrun. Needs torch; knows
nothing of methods.

Without torchrun there is no process group and every function here does what a single process would:
shares are the whole, sums are the values, models stay as they are. Under `torchrun --nproc-per-node
N train.py ...`

    problems       each process samples, verifies and scores its own; then all exchange attempts (a
    few MB), so that
                   peers, weights and the normaliser are worked out over the whole step, the same
                   everywhere
    micro-batches  dealt out round-robin, padded with weight 0: every gather of weights needs every
    process gradient       g = sum of g_rank, a plain sum: the normaliser of the whole step is
    already in the loss models         FSDP2: each process keeps 1/N of every matrix, of its
    gradient, moments and EMA, in float32; a block
                   is whole only while it computes, and the whole model only while it samples

A collective is a meeting: all processes must come, in the same order. So none stands behind a
condition that one process alone could see, and none inside rollout.generate, whose number of
decoding steps differs from process to process."""

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

# the longest wait for another's rollouts; torchrun notices the dead
PATIENCE = datetime.timedelta(hours=2)
REFUSALS = (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError, MemoryError)


# --- processes ---


class Refused(ValueError):
    """A refusal that every process has heard, so that all part together and one of them says it."""


def join():
    """Join the job that torchrun has started, if it has; from here on only process 0 writes to
    standard output.

    One GPU for each process of a node, or no GPU at all: anything between raises Refused.
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
    # objects travel over gloo
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=PATIENCE)
    with contextlib.suppress(AttributeError, TypeError):  # other systems
        # Linux: torchrun itself may be killed; then save and stop
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    # gloo's threads free the last meeting's tensors when the interpreter's lock lets them; after
    # its end they abort.
    atexit.register(time.sleep, 0.2)
    if not is_main():
        sys.stdout = open(os.devnull, "w")


def leave():
    """Wait for the others and part: without the wait, the first to exit has torchrun end those
    still at work.
    """
    if dist.is_initialized():
        wait()
        dist.destroy_process_group()


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is process 0, the one that prints and writes. Right before `join`, too."""
    return int(os.environ.get("RANK", 0)) == 0 if dist.is_torchelastic_launched() else True


def share(items) -> list:
    """This process's part of a list that all processes have: every world-th item."""
    return items[dist.get_rank() :: world()] if dist.is_initialized() else items


def gather(items) -> list:
    """The lists of all processes, one after the other, everywhere. They are pickled: nothing large."""
    if world() == 1:
        return items
    lists = [None] * world()
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def total(values) -> list:
    """The sum over all processes of each of these numbers, in float64."""
    if world() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def launcher() -> list[str]:
    """The words that start this job again, before the script's own; on several nodes HOST:PORT is
    to be filled in.
    """
    if world() == 1:
        return ["python"]
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = [
        "--nnodes",
        str(world() // here),
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "HOST:PORT",
    ]
    return ["torchrun", *(nodes if world() > here else []), "--nproc-per-node", str(here)]


def workers():
    """How many programs this process may run at once: its part of the node's cores. None, all of
    them, when alone.
    """
    return None if world() == 1 else max(1, os.cpu_count() // int(os.environ["LOCAL_WORLD_SIZE"]))


def agree(flag) -> bool:
    """True everywhere when `flag` is true anywhere. A meeting: not from inside an `except` that one
    process enters.
    """
    return total([int(flag)])[0] > 0


def wait():
    """Go on when all processes are here."""
    gather([])


def left_alone(error) -> bool:
    """Whether a meeting broke off because another process is gone. gloo has no exception of its
    own, only its name.
    """
    return world() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error).lower())


@contextlib.contextmanager
def together():
    """Where another process has failed, end this one with one line instead of the traceback of a
    broken meeting.
    """
    try:
        yield
    except RuntimeError as error:
        if not left_alone(error):
            raise
        sys.exit(
            f"train.py: process {dist.get_rank()} stops: another process is gone, and its own line or torchrun's "
            "report says why"
        )


def in_turn(make):
    """make() on the first process of each node, then on the others, which find its downloads and
    caches ready.

    What `make` refuses on one process (one of REFUSALS, SystemExit) is raised on all of them as
    Refused, the lowest rank's first: none goes on to wait for one that has given up. `make` must
    not contain a meeting of its own.
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
            except SystemExit as error:  # argparse's: its line is printed already
                refusal = error.code
        for found in gather([refusal]):
            if found is not None:
                raise SystemExit(found) if isinstance(found, int) else Refused(found)
    return made


def by_main(make):
    """What make() returns on process 0, everywhere; refusals as in `in_turn`. Not for what contains
    a meeting.
    """
    return gather([in_turn(lambda: make() if is_main() else None)])[0]


# --- sharded models ---


def shard(model, *, device, dtype):
    """Move `model` to its device, in place; with several processes each keeps only its shards, as
    DTensors.

    dtype "bfloat16": weights are rounded to it before they travel, gradients are summed in float32,
    shards stay as they were (float32 for what is trained). The blocks and what is left at the root
    (embedding, last norm, head; tied or not) are gathered separately. An optimizer must be made
    after this.
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
        # the default is the mean, which knows no normaliser
        part.set_gradient_divide_factor(1.0)
        # 1.0 alone asks for a pre-multiplied sum: not in gloo
        part.set_force_sum_reduction_for_comms(True)
    model.inside, model.has_run = types.MethodType(lambda self, function: function(), model), False
    register_fsdp_forward_method(model, "inside")


def inside(model, function):
    """function() as the forward pass of `model`: for code that calls parts of it, or multiplies
    with its head itself.

    In a sharded model the weights at the root (embedding, last norm, head) are gathered only for
    the root's own forward pass, and the backward pass begins only at a tensor that comes out of it:
    so the loss must, alone or in a tuple. After a pass without gradient the root stays gathered
    until `release`.
    """
    if not isinstance(model, FSDPModule):
        return function()
    model.has_run = True
    return model.inside(function)


def release(model):
    """Cut up what a forward pass without a backward pass has left gathered."""
    # else FSDP2 has nothing set up that it could reset
    if isinstance(model, FSDPModule) and model.has_run:
        # newer: also forgets the passes it has counted
        getattr(model, "reset_iter_state", model.reshard)()


@contextlib.contextmanager
def gathered(model):
    """All of `model` whole on every process while this lasts, so that running it needs no meeting."""
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


def number(tensor) -> float:
    """The value of a scalar, sharded (a norm over DTensors) or not."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).item()


# --- checkpoints ---


def whole_weights(model) -> dict:
    """The state dict of `model`, whole and on the CPU on process 0; empty on the others."""
    if not isinstance(model, FSDPModule):
        return model.state_dict()
    return get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


def load_weights(model, weights):
    """Load a whole state dict, which every process has, into `model`, sharded or not."""
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(weights)


def write_state(folder, student, optimizer, teacher):
    """Write AdamW's moments and the teacher (a model or None) to `folder`, each process its shards."""
    tensors = _tensors(student, optimizer, teacher)
    _plainly(lambda: dcp.save(tensors, storage_writer=_Writer(folder), no_dist=world() == 1))


def read_state(folder, student, optimizer, teacher):
    """Read what `write_state` wrote, on any number of processes, into a fresh optimizer and the
    teacher.

    The names in the folder say which parameters had moments. (torch's get_optimizer_state_dict
    would take a step with gradient 0 to find out, and leave an optimizer that never stepped at step
    1.)
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
    """Name -> tensor, the same names for any number of processes."""
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
    """Raises the system's own error: on the way to the other processes torch's would lose what lies
    behind it.
    """

    def write_data(self, *args):
        try:
            return super().write_data(*args)
        except Exception as error:
            raise of_the_system(error)


def of_the_system(error):
    """The OSError behind an error ("disk full"), else the error itself."""
    behind = error
    while behind.__context__ and not isinstance(behind, OSError):
        behind = behind.__context__
    return behind if isinstance(behind, OSError) else error


def _plainly(work):
    """work(), raising the error of a process itself, everywhere: torch wraps it into one that is no
    Exception. Without torch's warning that a single process is alone."""
    failures = {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
            )
            work()
    except CheckpointException as error:
        failures = error.failures
    for failure, _ in failures.values():  # out here, where it keeps its own context
        failure.everywhere = True
        raise failure
