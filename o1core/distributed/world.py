"""The processes of a run: who they are, how they join, and what each of them is to do.

A run that torchrun did not start has no world: it is rank 0 of 1, and every function of this package does what one
process needs. So the rest of the project calls them without asking. Ranks agree through torchrun's own store, not
through collectives: a wait there ends after --timeout seconds and can say for whom it waited. What travels is JSON.
Left out on purpose: Slurm, ports and hosts of our own; torchrun's rendezvous does that.
"""

import contextlib
import json
import logging
import os
import sys
import sysconfig
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partialmethod
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from tqdm import tqdm

from ..choices import PATIENCE
from ..errors import UserError

T = TypeVar("T")

LOOK_EVERY = 1.0  # seconds, for ranks that have died
LAST_LOOK = 5.0  # seconds that the end of looking may take, where the store is gone
GRACE = 30.0  # seconds beyond --timeout after which NCCL's own watchdog aborts, so that a rank can be named before
WHY_DEAD = "killed, or out of memory"
RERUN = "rerun the same command to continue"
PACKAGE = Path(__file__).parents[1]
LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


@dataclass
class World:
    """A process among others. device: where it computes; mesh: [nodes, ranks of a node] or [ranks], of the shards; writers:
    the process group of the threads that write training states.

    meetings and deals count those calls: all ranks go through the same ones in the same order. Threads of one name meet
    each other only, so that a thread that writes does not get what the main threads tell each other.
    """

    rank: int
    size: int
    store: Store
    device: torch.device
    mesh: DeviceMesh
    timeout: float
    writers: dist.ProcessGroup | None
    meetings: Counter[str] = field(default_factory=Counter, init=False)
    deals: int = field(default=0, init=False)


_world: World | None = None


def world() -> World | None:
    """The open world, None in a run of one process that torchrun did not start."""
    return _world


def rank() -> int:
    return _world.rank if _world else 0


def size() -> int:
    return _world.size if _world else 1


def processes() -> int:
    """How many processes share the run."""
    return size()


def processes_asked() -> int:
    """The same before they have met."""
    return told_by_torchrun("WORLD_SIZE", 1) if "RANK" in os.environ else 1


def neighbours() -> int:
    """How many of them share this machine's memory."""
    return min(size(), told_by_torchrun("LOCAL_WORLD_SIZE", size()))


def told_by_torchrun(name: str, default: int) -> int:
    """A number of torchrun's environment. Raises UserError where it is none."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(
            f"{name}: {text!r} in the environment is no number; start the command with torchrun, or unset it"
        )
    return int(text)


def is_lead() -> bool:
    """Whether this process writes what is written once, and prints."""
    return rank() == 0


@contextlib.contextmanager
def opened(device: torch.device, timeout: float = PATIENCE) -> Iterator[torch.device]:
    """Join torchrun's other processes, if there are any. Yields the device to compute on.

    Raises UserError where torchrun's environment is incomplete or nobody answers; on rank 0 also for what went wrong
    elsewhere. A rank other than 0 leaves silently, with status 2, after an error that rank 0 tells as well.
    """
    global _world
    if "RANK" not in os.environ:
        yield device
        return
    first = told_by_torchrun("RANK", 0) == 0
    try:
        _world = join(device, timeout)
    except UserError as error:
        raise error if first else SystemExit(2) from None
    _world.store.set(f"process/{rank()}", whereabouts())
    if not is_lead():
        silence()
    end_watch = watch_others(_world, deaf=_world.device.type == "cuda")
    try:
        yield _world.device
    except UserError as error:
        raise told_once(error) from None
    except KeyboardInterrupt:  # all of them are asked to stop
        if is_lead():
            raise
        raise SystemExit(130) from None
    except RuntimeError as error:
        if not broke_off(error):
            raise
        raise told_once(UserError(who_is_missing(error))) from error
    finally:
        if _world is not None:
            with contextlib.suppress(RuntimeError):
                _world.store.set(f"left/{_world.rank}", "")
        _world = None
        end_watch()
        dist.destroy_process_group()


def join(device: torch.device, timeout: float) -> World:
    """Meet the others at torchrun's store and make the mesh: inside a node weights are sharded, across nodes replicated."""
    wait = timedelta(seconds=timeout)
    local, per_node = told_by_torchrun("LOCAL_RANK", 0), told_by_torchrun("LOCAL_WORLD_SIZE", 0)
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"--nproc-per-node: {per_node} processes, but {torch.cuda.device_count()} GPUs on this node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, own, count = next(iter(rendezvous("env://", timeout=wait)))
        store = PrefixStore(
            f"o1core, start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store
        )  # it outlives a restart
        store.set_timeout(wait)
        groups = PrefixStore("group", store)
        dist.init_process_group(backend, store=groups, rank=own, world_size=count, timeout=patience(device, timeout))
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"torchrun's other processes cannot be joined: {reason}; start all of them with torchrun"
        ) from None
    nodes = count // per_node if per_node and count % per_node == 0 else 1
    shape, names = ((nodes, count // nodes), ("replicate", "shard")) if nodes > 1 else ((count,), ("shard",))
    set_timeout = (
        getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    )  # its name before torch 2.14
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    for group in mesh.get_all_groups():
        set_timeout(patience(device, timeout), group)
    writers = dist.new_group(backend="gloo", timeout=wait)
    return World(own, count, PrefixStore("meetings", store), device, mesh, timeout, writers)


def patience(device: torch.device, timeout: float) -> timedelta:
    """How long a process group waits by itself: where the watching thread has to speak first, a little longer."""
    return timedelta(seconds=timeout + (GRACE if device.type == "cuda" else 0))


def watch_others(world: World, deaf: bool) -> Callable[[], None]:
    """In a thread, say once a second that this rank lives, where its main thread stands and how many collectives it has
    entered. Where the main thread is deaf, also look after the others, and end this process with one line where one of them
    is gone or does not come.

    On a GPU a collective whose other side is gone raises nothing: the main thread waits within CUDA, where nothing reaches it,
    until NCCL's own watchdog ends the process with a trace that names nobody. A rank is gone when its process is, or when on
    another machine its thread has been still for --timeout seconds; who left by itself has said so. It does not come when it
    has entered fewer collectives than this rank, and neither has entered another one for --timeout seconds.

    Returns what ends the thread: where the interpreter ends before it, in a call of the store, C++ aborts the process.
    """
    others = [r for r in range(world.size) if r != world.rank]
    start = time.monotonic()
    moved = {r: (-1, start) for r in others}  # how often each gave a sign, and when that was last seen to change
    lags = {
        r: (False, Counter[str](), Counter[str](), start) for r in others
    }  # behind this rank, both counts, since when

    def gone() -> list[int]:
        for r in others:
            if (pulse := world.store.add(f"pulse/{r}", 0)) != moved[r][0]:
                moved[r] = pulse, time.monotonic()
        still = [r for r in others if time.monotonic() > moved[r][1] + world.timeout]
        return [r for r in sorted({*dead(world, others), *still}) if not world.store.check([f"left/{r}"])]

    def late() -> list[int]:
        mine = entered(world)
        for r in others:
            theirs = Counter(seen_at(world, r)["entered"])
            behind = any(theirs[group] < mine[group] for group in mine.keys() & theirs.keys())
            if (behind, theirs, mine) != lags[r][:3]:
                lags[r] = behind, theirs, mine, time.monotonic()
        found = [r for r in others if lags[r][0] and time.monotonic() > lags[r][3] + world.timeout]
        return [r for r in found if not world.store.check([f"left/{r}"])]

    def tell_and_end(ranks: list[int], line: str) -> None:
        if world.rank == min(r for r in range(world.size) if r not in ranks):
            os.write(2, f"o1core: error: {line}\n".encode())
        world.store.set(f"left/{world.rank}", "")  # not dead
        os._exit(2)

    def watch() -> None:
        seen: list[int] = []
        main = threading.main_thread().ident
        assert main is not None
        with contextlib.suppress(RuntimeError):  # the store is gone, and torchrun with it
            while _world is world and not ended.is_set():
                here = place(traceback.walk_stack(sys._current_frames()[main]))
                world.store.set(f"at/{world.rank}", json.dumps({"place": here, "entered": entered(world)}))
                world.store.add(f"pulse/{world.rank}", 1)
                if deaf:
                    if (found := gone()) and found == seen:  # twice: the main thread may be about to say more
                        tell_and_end(found, f"{named(found)} died ({WHY_DEAD}); {RERUN}")
                    if not found and (absent := late()):
                        tell_and_end(absent, never_came(world, absent, here))
                    seen = found
                ended.wait(LOOK_EVERY)

    def end() -> None:
        ended.set()
        thread.join(LAST_LOOK)

    ended = threading.Event()
    thread = threading.Thread(target=watch, name="watching", daemon=True)
    thread.start()
    return end


def entered(world: World) -> Counter[str]:
    """How many collectives this rank's main thread has entered, by the name of the process group."""
    found = Counter[str]()
    groups: dict[Any, Any] = dist.distributed_c10d._world.pg_names
    for group, name in list(groups.items()):
        if group is not world.writers:
            with contextlib.suppress(RuntimeError):  # of a backend that does not count them
                found[name] = group._get_sequence_number_for_group()
    return found


def seen_at(world: World, r: int) -> dict[str, Any]:
    """What a rank has last said of itself: the place of its main thread and what it has entered."""
    key = f"at/{r}"
    return json.loads(world.store.get(key)) if world.store.check([key]) else {"place": "its start", "entered": {}}


def place(frames: Iterable[tuple[FrameType, int]]) -> str:
    """Where a thread stands, from its frames and their lines, the innermost first: the innermost line that is no library's, nor
    this file's, and the function of torch.distributed that it has called."""
    called = ""
    for frame, line in frames:
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        ours = path.is_relative_to(PACKAGE) or not any(path.is_relative_to(folder) for folder in LIBRARIES)
        if ours and path != Path(__file__) and path.is_absolute():
            return f"{'/'.join(path.parts[-3:])}:{line} ({called}{name})"
        if not (ours or called) and path.parent.name == "distributed" and path.stem != "c10d_logger":
            called = f"{name} in "
    return "its start"


def never_came(world: World, absent: list[int], here: str) -> str:
    """In one line: who did not come, to what, and where to look."""
    theirs = "; ".join(f"rank {r} was last seen at {seen_at(world, r)['place']}" for r in absent)
    return (
        f"gave up waiting for {named(absent)} after {world.timeout:g} s (--timeout), at {here}; {theirs}: look there, or raise "
        "--timeout"
    )


def silence() -> None:
    """Only rank 0 prints and shows progress; a crash of another one is still seen."""
    logging.getLogger().setLevel(logging.ERROR)
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the rest of the process's life


def gather(what: str, value: Any = None) -> list[Any]:
    """Wait for all ranks; returns what each one brought, a JSON value.

    Raises UserError, naming them, where ranks did not come and gave no sign of life for --timeout seconds. what: the
    meeting's purpose, for that message.
    """
    if _world is None:
        return [value]
    thread = threading.current_thread().name
    _world.meetings[thread] += 1
    key = f"{thread}, meeting {_world.meetings[thread]}"
    _world.store.set(f"{key}/{_world.rank}", json.dumps(value))
    keys = [f"{key}/{r}" for r in range(_world.size)]
    wait_for(_world, keys, what)
    return [json.loads(_world.store.get(k)) for k in keys]


def wait_for(world: World, keys: list[str], what: str) -> None:
    """Wait until the keys, each ending in /RANK, are in the store. Signals arrive meanwhile, because the store is asked again
    and again; its own wait would hold them up."""
    signs: list[int] = []

    def missing_ranks() -> list[int]:
        return [int(key.rpartition("/")[2]) for key in keys if not world.store.check([key])]

    while True:
        deadline, looked, pause = time.monotonic() + world.timeout, time.monotonic(), 0.001
        while time.monotonic() < deadline:
            if world.store.check(keys):
                return
            if time.monotonic() > looked + LOOK_EVERY:
                if gone := dead(world, missing_ranks()):
                    if any(world.store.check([f"told/{r}"]) for r in gone):
                        raise SystemExit(2)  # it has said itself what was wrong
                    raise UserError(f"{what}: {named(gone)} died ({WHY_DEAD}); {RERUN}")
                looked = time.monotonic()
            time.sleep(pause)
            pause = min(0.1, 1.5 * pause)
        missing = missing_ranks()
        now = [world.store.add(f"signs/{r}", 0) for r in missing]
        if missing and now == signs:
            places = ", ".join(f"rank {r} was last seen at {seen_at(world, r)['place']}" for r in missing)
            raise UserError(f"{what}: waited {world.timeout:g} s (--timeout) for {named(missing)}; {places}")
        signs = now


def sign_of_life() -> None:
    """Tell those who wait that this rank is at work."""
    if _world is not None:
        _world.store.add(f"signs/{_world.rank}", 1)


@contextlib.contextmanager
def at_work() -> Iterator[None]:
    """Signs of life while this rank does what may take hours, such as a download."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(LOOK_EVERY):
            sign_of_life()

    if _world is None:
        yield
        return
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def on_rank0(what: str, action: Callable[[], T]) -> T:
    """Let rank 0 act while the others wait; all get what it returns, a JSON value, or the UserError it raises."""
    if _world is None:
        return action()
    outcome: dict[str, Any] = {}
    if is_lead():
        try:
            outcome = {"value": action()}
        except (UserError, OSError) as error:
            outcome = {"error": str(error)}
    outcome = gather(what, outcome)[0]
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]


def on_all_ranks(what: str, action: Callable[[], T]) -> T:
    """Let every rank act; where one of them raises a UserError, all of them do. Returns this rank's own result."""
    error, result = None, None
    if _world is None:
        return action()
    try:
        result = action()
    except UserError as raised:
        error = str(raised)
    for r, other in enumerate(gather(what, error)):
        if other is not None:
            raise UserError(other if r == 0 else f"rank {r}: {other}")
    return result  # type: ignore[return-value] # without an error it is the action's


def check_same(what: str, value: Any) -> None:
    """Raise UserError where another rank's JSON value differs from rank 0's."""
    values = gather(what, value)
    different = [r for r, other in enumerate(values) if other != values[0]]
    if different:
        first = values[different[0]]
        detail = ""
        if isinstance(first, dict):
            key = next(k for k in {**values[0], **first} if values[0].get(k) != first.get(k))
            detail = f" ({key}: {json.dumps(values[0].get(key))} on rank 0, {json.dumps(first.get(key))} there)"
        raise UserError(f"{what}: {named(different)} differs from rank 0{detail}; give all ranks the same command")


def named(ranks: list[int]) -> str:
    """ "rank 1" or "ranks 1, 3"."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def broke_off(error: RuntimeError) -> bool:
    """Whether a collective failed because another process did not answer."""
    signs = ("Timed out", "timed out", "Connection closed", "Connection reset", "Connection refused", "Broken pipe")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def who_is_missing(error: RuntimeError) -> str:
    """After a collective broke off: everyone who is alive answers a roll call, so the others are those who are not."""
    assert _world is not None
    reason = str(error).partition("\n")[0]
    with contextlib.suppress(RuntimeError):
        _world.store.set(f"alive/{_world.rank}", "")
        time.sleep(min(3.0, _world.timeout))
        missing = [r for r in range(_world.size) if not _world.store.check([f"alive/{r}"])]
        if gone := dead(_world, missing):
            return f"{named(gone)} died ({WHY_DEAD}): {reason}; {RERUN}"
        if missing and "imed out" in reason:
            return never_came(_world, missing, place(reversed(list(traceback.walk_tb(error.__traceback__)))))
        if missing:
            return f"gave up waiting for {named(missing)}: {reason}"
    return f"the connection to another rank broke: {reason}"


def whereabouts() -> str:
    """Where a process can be looked up: the machine since its start, its table of processes, and the id in it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/pid').st_ino} {os.getpid()}"


def dead(world: World, ranks: list[int]) -> list[int]:
    """Those of the ranks whose process is seen to be gone. Only this machine's processes can be looked up."""
    here = whereabouts().rpartition(" ")[0]
    found = []
    for r in ranks:
        if world.store.check([f"process/{r}"]):
            machine, _, pid = world.store.get(f"process/{r}").decode().rpartition(" ")
            if machine == here and not is_running(int(pid)):
                found.append(r)
    return found


def is_running(pid: int) -> bool:
    """Whether a process is there and not a zombie, which only waits for its parent to ask how it ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def told_once(error: UserError) -> BaseException:
    """The error on rank 0. Elsewhere an exit with status 2, unless rank 0 says nothing of it within some seconds."""
    assert _world is not None
    with contextlib.suppress(RuntimeError):
        if is_lead():
            _world.store.set("error", str(error))
            return error
        _world.store.wait(["error"], timedelta(seconds=5))
        return SystemExit(2)
    with contextlib.suppress(RuntimeError):
        _world.store.set(f"told/{rank()}", "")
    return error if is_lead() else UserError(f"rank {rank()}: {error}")
