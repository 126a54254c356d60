"""Find the model of a checkpoint or of a relaxed folder, with all installed adapters."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import PurePath

from surgeon.errors import ModelNotFoundError, TrustError
from surgeon.files.address import HubPath
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.relaxed import BASE_FILE, RelaxedFiles
from surgeon.opening.models import STATEMENT_KEY, FoundModel, find_model
from surgeon.opening.options import OpenOptions
from surgeon.opening.originals import is_there, original_source
from surgeon.opening.remote.fetch import open_anywhere
from surgeon.opening.tasks import LoadedTask
from surgeon.opening.trust import check_task
from surgeon.registry import DescribesModels, RecognisesWeights, installed_adapters


def find_for_checkpoint(checkpoint: Checkpoint, task: LoadedTask | None, options: OpenOptions) -> FoundModel:
    """Build the model of a checkpoint with its weights, by what the user gave, the file, its folder or an adapter.

    Raises:
        SurgeonError: as for :func:`surgeon.opening.models.find_model`.
    """
    adapters = installed_adapters().values()
    return find_model(
        checkpoint,
        task=task,
        factory=options.factory,
        arguments=options.factory_arguments,
        build=options.build,
        trust_remote_code=options.trust_remote_code,
        rebuilders=[adapter.rebuild for adapter in adapters],
        describers=[adapter for adapter in adapters if isinstance(adapter, DescribesModels)],
        recognisers=[adapter for adapter in adapters if isinstance(adapter, RecognisesWeights)],
        local=checkpoint.origin is None,
        trust=functools.partial(check_task, allowed=options.trust_task, ask=options.ask),
        announce=options.announce,
    )


def find_for_folder(
    files: RelaxedFiles, task: LoadedTask | None, options: OpenOptions, origin: HubPath | None
) -> tuple[Checkpoint, FoundModel]:
    """Return the checkpoint that stands for a relaxed folder's base weights, and its model.

    Args:
        files: the folder.
        task: what the user gave, or what the folder was made with.
        options: how to find the model, and what is trusted.
        origin: where the folder was downloaded from.

    Raises:
        SurgeonError: as for :func:`find_for_checkpoint`.
    """
    checkpoint, name = _weights_of(files, origin), str(origin or files.folder)
    try:
        return checkpoint, find_for_checkpoint(checkpoint, task, options)
    except TrustError as error:
        factory = (files.config.model or {}).get("factory")
        raise TrustError(
            f"the relaxed folder {name!r} names the factory {factory!r}, which no installed package "
            f"registers: give it again as `--model {factory}`, or import it with `--trust-remote-code` if you trust it"
        ) from error
    except ModelNotFoundError as error:
        original = _original_module(files, name, options, origin, error)
    checkpoint = dataclasses.replace(original, tensors=files.base, prefix="")
    return checkpoint, find_for_checkpoint(checkpoint, task, options)


def _original_module(
    files: RelaxedFiles, name: str, options: OpenOptions, origin: HubPath | None, error: ModelNotFoundError
) -> Checkpoint:
    """Open the original, which may be a whole module and so its own architecture."""
    known = origin is None or options.original is not None
    source = original_source(files.config.base, options, origin) if known else None
    if source is None or not is_there(source):
        where = "" if source is None else f", and its original {str(source)!r} is not there"
        raise ModelNotFoundError(
            f"nothing says how to build the model of {name!r}{where}: give `--task FILE`, "
            "`--model module:function`, or `--original FILE`"
        ) from error
    if not options.trust_pickle:
        raise ModelNotFoundError(
            f"nothing says how to build the model of {name!r}: give `--task FILE` or `--model module:function`, "
            f"or `--trust-pickle` if its original {PurePath(str(source)).name} is a whole pickled module"
        ) from error
    return open_anywhere(source, trust_pickle=True)


def _weights_of(files: RelaxedFiles, origin: HubPath | None) -> Checkpoint:
    """Return the folder's base weights; the factory that the folder names is a statement like any other in a file."""
    metadata = dict(files.base_metadata)
    if files.config.model is not None:
        statement = {"factory": files.config.model["factory"], "args": files.config.model["args"] or {}}
        metadata[STATEMENT_KEY] = json.dumps(statement)
    path = files.folder / BASE_FILE
    return Checkpoint(path, files.base, "safetensors", metadata=metadata, origin=origin)
