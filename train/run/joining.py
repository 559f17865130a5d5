"""Joining the ranks, which have all opened the same data, model, code and packages."""

from __future__ import annotations

import socket
from collections.abc import Mapping, MutableMapping, Sequence

from train.checkpoint.identity import meaning
from train.config import World
from train.data.mix import Dataset
from train.data.model_folder import read_model_config
from train.engine.gang import Gang, connect
from train.engine.weights import weights_fingerprint
from train.errors import DataError
from train.hosts.probe import PACKAGES, code_digest, version
from train.paths import PACKAGE
from train.run.inputs import RunInputs


def join(inputs: RunInputs, data: Dataset, world: World, env: MutableMapping[str, str]) -> Gang:
    """Join the ranks, and see to it that all hosts have opened the same.

    Raises:
        DataError: a host's data, tokenizer, model, ds_config, code or packages differ.
    """
    gang = connect(world, env)
    own = _opened_by_rank(inputs, data)
    if world.local_rank == 0:
        own |= _opened_by_host(inputs)
    require_same(gang.gather((socket.gethostname(), own)))
    return gang


def require_same(found: Sequence[tuple[str, Mapping[str, object]]]) -> None:
    """Refuse hosts that differ; `found` has each rank's host, and what it knows to be opened there.

    Raises:
        DataError: it names the two hosts, or two ranks of one, and what differs.
    """
    first_host, first = found[0]
    for rank, (host, opened) in enumerate(found):
        differ = [noun for noun in opened if opened[noun] != first[noun]]
        if differ:
            who = f"rank {rank} on {host}" if host == first_host else host
            raise DataError(
                f"{who} has another {' and another '.join(differ)} than {first_host}: make them "
                "the same on every host, or put them in a folder that all hosts share"
            )


def _opened_by_rank(inputs: RunInputs, data: Dataset) -> dict[str, object]:
    """Return what this rank has opened, by what it is called: known without another look."""
    return {
        "dataset": (data.train.fingerprint, data.validation.fingerprint),
        "tokenizer": data.tokenizer.fingerprint,
        "ds_config": (inputs.pins.words(), repr(inputs.ds.extra)),
    }


def _opened_by_host(inputs: RunInputs) -> dict[str, object]:
    """Return what all ranks of a host have opened, by what it is called."""
    return {
        "model": (meaning(read_model_config(inputs.model)), weights_fingerprint(inputs.model)),
        "code of anyrank": code_digest(PACKAGE),
        "set of packages": {name: version(name) for name in PACKAGES},
    }
