"""The common parts of all objects of a layer."""

from typing import Any

from channels_zmq_operator.models import API_VERSION, KIND, Owner
from channels_zmq_operator.naming import Manifest, labels_of


def child(owner: Owner, api_version: str, kind: str, name: str, **rest: Any) -> Manifest:
    """Return an object with the labels of a layer, and with the layer as its owner."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": labels_of(owner),
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": owner.name,
                    "uid": owner.uid,
                    "controller": True,
                    "blockOwnerDeletion": False,
                }
            ],
        },
        **rest,
    }
