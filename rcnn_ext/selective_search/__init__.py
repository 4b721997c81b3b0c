"""Object proposals by selective search, without a network.

``selective_search`` gives boxes; ``find_regions`` gives boxes and region sizes for settings that
can key a cache; ``ProposalCache`` is that cache on disk; ``compat`` has the interface of the
``selectivesearch`` package.
"""

from rcnn_ext.config.selective_search import MODES, SearchSettings
from rcnn_ext.selective_search import compat
from rcnn_ext.selective_search.cache import CachedRegions, ProposalCache
from rcnn_ext.selective_search.filters import ProposalFilter
from rcnn_ext.selective_search.regions import Regions
from rcnn_ext.selective_search.search import BACKENDS, find_regions, selective_search

__all__ = [
    "BACKENDS",
    "MODES",
    "CachedRegions",
    "ProposalCache",
    "ProposalFilter",
    "Regions",
    "SearchSettings",
    "compat",
    "find_regions",
    "selective_search",
]
