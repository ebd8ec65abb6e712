"""A weights file to a module: parameters, buffers, and tensors that are plain attributes.

Nothing is unpickled but tensors: safetensors, or `torch.load(weights_only=True)`. What a module
holds besides, and no file gives, must at least be the same each time that it is built.
"""

import hashlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from export.errors import SourceError
from service.manifest import sha256_file

CHECKPOINT_KEYS = (  # where training scripts put them
    *("state_dict", "model_state_dict", "model_state", "model", "net", "weights"),
)
# What wrappers put before every name: DataParallel, Lightning and its like, torch.compile.
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
_TORCHS_OWN = {*vars(nn.Module()), "_flat_weights", "_flat_weight_refs", "_all_weights"}
WAY_OUT = (
    "Register it as nn.Parameter or with register_buffer, or save it in the weights file under "
    "this name, or let FACTORY load it and give the trained module; if it is a state, let it begin "
    "from zeros"
)


def give_weights(module: nn.Module, path: Path | None) -> tuple[frozenset[str], list[str]]:
    """Load the file into `module`, and make it float32.

    Returns:
        The names that the file gave, and what was changed on the way, in words.
    Raises:
        SourceError: the file cannot be read, or does not fit.
    """
    notes: list[str] = []
    loaded: frozenset[str] = frozenset()
    if path is not None:
        state = _fitted(module, _read_state_dict(path), path, notes)
        loaded = frozenset(state)
        plain = dict(plain_tensors(module))
        module.load_state_dict({k: v for k, v in state.items() if k not in plain})
        for name in plain.keys() & state.keys():
            plain[name].detach().copy_(state[name])
    _to_float32(module, notes)
    named = dict(module.state_dict()) | dict(plain_tensors(module))
    bad = [name for name, value in named.items() if not bool(torch.isfinite(value).all())]
    if bad:
        where = path or "the module that FACTORY gave"
        raise SourceError(f"{where} holds NaN or infinity in {', '.join(bad)}; train again")
    return loaded, notes


def check_trained(
    module: nn.Module,
    path: Path | None,
    loaded: frozenset[str],
    again: Callable[[], nn.Module] | None,
) -> str:
    """Refuse what is random at each build; else the sha256 of all that was trained.

    Args:
        path: of the weights, None if there was no file.
        loaded: the names that it gave.
        again: builds the module once more; None if there is only the one.
    Raises:
        SourceError: two builds differ in what no file gave.
    """
    plain = dict(plain_tensors(module))
    others = {n: v for n, v in plain.items() if n not in loaded}
    if path is None:
        others = dict(module.state_dict()) | others
    if others and again is not None:
        built = again().float()
        second = dict(built.state_dict()) | dict(plain_tensors(built))
        changed = [n for n, v in others.items() if not _is_same(v, second.get(n))]
        if changed and path is None:
            raise SourceError(
                f"FACTORY gives other weights at each call ({_some(changed)}), so they are random "
                "and not trained; give them with --weights, or let FACTORY load them"
            )
        if changed:
            raise SourceError(
                f"{_some(changed)}: a tensor that is a plain attribute, which state_dict() leaves "
                f"out and {path} does not hold, and it is random at each build. {WAY_OUT}"
            )
    if path is not None and not others:
        return sha256_file(path)
    digest = hashlib.sha256(sha256_file(path).encode() if path else b"")
    for name, value in sorted(others.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def plain_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Float tensors that `state_dict()` leaves out, as attributes or in lists, by their paths.

    What shares its memory with a parameter or buffer is no tensor of its own.
    """
    registered = {_memory(value) for value in module.state_dict(keep_vars=True).values()}
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in _TORCHS_OWN:
                for name, tensor in _inside(f"{path}.{key}" if path else key, value):
                    if _memory(tensor) not in registered:
                        yield name, tensor
        for key in part._non_persistent_buffers_set:
            tensor = part._buffers[key]
            if tensor is not None and tensor.is_floating_point():
                yield f"{path}.{key}" if path else key, tensor


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _inside(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, nn.Module):
        for key, tensor in value.state_dict(keep_vars=True).items():
            yield from _inside(f"{name}.{key}", tensor)
    elif isinstance(value, list | tuple):
        for at, part in enumerate(value):
            yield from _inside(f"{name}.{at}", part)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _inside(f"{name}.{key}", part)


def _fitted(
    module: nn.Module, state: dict[str, Tensor], path: Path, notes: list[str]
) -> dict[str, Tensor]:
    """`state` under the module's own names.

    Raises:
        SourceError: some are missing, unknown, or of another shape.
    """
    readings = [(state, "")]
    for _ in range(len(PREFIXES)):  # one wrapper in another
        for prefix in PREFIXES:
            names = [*readings[-1][0]]
            inner = prefix == "_orig_mod." and any(prefix in name for name in names)
            if inner or all(name.startswith(prefix) for name in names):
                bare = {k.replace(prefix, "", 1): v for k, v in readings[-1][0].items()}
                readings.append((bare, readings[-1][1] + prefix))
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    plain = {name: tuple(value.shape) for name, value in plain_tensors(module)}
    every = [(_faults(wanted, plain, reading), reading, gone) for reading, gone in readings]
    faults, best, gone = min(every, key=lambda one: len(one[0]))
    if faults:
        shown = "; ".join(faults[:6]) + (f"; and {len(faults) - 6} more" if faults[6:] else "")
        raise SourceError(
            f"{path} does not fit the module: {shown}. "
            "Build the module in the size that it was trained in (--init), or give its own weights"
        )
    if gone:
        notes.append(f"the names in {path.name} hold `{gone}`, which was left out")
    own = dict(module.state_dict()) | dict(plain_tensors(module))
    kinds = {str(v.dtype) for n, v in best.items() if v.dtype != own[n].dtype}
    if kinds:
        notes.append(f"{', '.join(sorted(kinds))} weights were cast to the module's own dtype")
    return best


def _faults(
    wanted: Mapping[str, tuple[int, ...]],
    plain: Mapping[str, tuple[int, ...]],
    state: Mapping[str, Tensor],
) -> list[str]:
    found = {name: tuple(value.shape) for name, value in state.items()}
    known = {**plain, **wanted}
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is unknown to the module" for name in found if name not in known]
    faults += [
        f"{name} has shape {found[name]}, the module expects {shape}"
        for name, shape in known.items()
        if name in found and found[name] != shape
    ]
    return faults


def _to_float32(module: nn.Module, notes: list[str]) -> None:
    others = {
        str(value.dtype)
        for value in module.state_dict().values()
        if value.is_floating_point() and value.dtype is not torch.float32
    }
    if others:
        module.float()
        notes.append(f"the module is {', '.join(sorted(others))}; it was cast to float32")


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise SourceError(f"weights file {path} does not exist; train first, or mend the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path} is a pickle that needs code to load, which export does not run. In your "
            'training script write `torch.save(model.state_dict(), "weights.pt")`, '
            "or save with safetensors, and give that file"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        said = (str(error) or "it is empty").splitlines()[0]
        if "TorchScript archive" in said:
            said = "it is a TorchScript archive, which holds code"
        raise SourceError(
            f"{path} is not a weights file ({said}); expected a state_dict in .safetensors or .pt"
        ) from error
    return _find_state_dict(path, loaded)


def _find_state_dict(path: Path, loaded: object) -> dict[str, Tensor]:
    for candidate in (loaded, *(_get(loaded, key) for key in CHECKPOINT_KEYS)):
        if isinstance(candidate, Mapping) and candidate:
            tensors = {str(k): v for k, v in candidate.items() if isinstance(v, Tensor)}
            if len(tensors) == len(candidate):
                return tensors
    keys = sorted(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
    raise SourceError(
        f"{path} holds {keys}, expected a state_dict (name -> tensor), or a checkpoint with one "
        f"under {', '.join(CHECKPOINT_KEYS)}"
    )


def _get(loaded: object, key: str) -> object:
    return loaded.get(key) if isinstance(loaded, Mapping) else None


def _is_same(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and value.shape == other.shape and torch.equal(value, other)


def _some(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if names[4:] else "")
