"""The shipped folder: written whole, checked before use, loaded on whatever the machine can run."""

from trtship.bundle.bundle import Bundle
from trtship.bundle.load import BundleSession, load
from trtship.bundle.manifest import SCHEMA, Manifest, SourceInfo

__all__ = ["SCHEMA", "Bundle", "BundleSession", "Manifest", "SourceInfo", "load"]
