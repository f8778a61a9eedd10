"""Which CUDA graphs a lane keeps: what is worth one, what makes way, and what runs in another's."""

from __future__ import annotations

from trtship.rarely import Rarely
from trtship.session.buckets import SHARE
from trtship.session.graphs import Addresses, Graphs, Use
from trtship.session.piece import Piece
from trtship.session.rig import Rig

PATIENCE = 8
"""Times the number of graphs that a lane keeps: runs after which one that was not launched may make way for another."""
EVERY, LONGEST = 60.0, 3600.0
"""Seconds after which a lane may capture one graph more at addresses that are not its own, once it has captured as many
as it keeps; the pause is twice as long after each, up to the second. Each capture takes an eager run, and with callers
whose addresses and sizes are ever others one in fifteen calls would be one: of time that the copies between would not
have cost, and of memory that TensorRT for RTX keeps (`trtship.session.lane`). So also a size beside the buckets that
takes the place of another."""
AGAIN = 3
"""The run from which on a size that may run in its bucket's graph is worth one of its own."""
LOOK = 64
"""Runs from one time that room is looked for among many graphs to the next."""
PIECES = 256
"""Pieces that are remembered though they have no graph."""


class Shelf:
    """All graphs of one lane, by piece, and how many there may be. `tick` counts the lane's runs."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.pieces: dict[Piece, Graphs] = {}
        self.tick = 0
        self._elsewhere = Rarely(rig.graphs, pause=EVERY, longest=LONGEST)
        self._exchanges = Rarely(self._most_beside_buckets, pause=EVERY, longest=LONGEST)
        self._look_again = 0

    def of(self, piece: Piece) -> Graphs:
        """Those of a piece."""
        found = self.pieces.get(piece)
        if found is None:
            if len(self.pieces) >= PIECES:
                idle = [other for other, graphs in self.pieces.items() if not graphs.kept]
                for other in [other for other in idle if other.bucket is not None] or idle:
                    del self.pieces[other]
            found = self.pieces[piece] = Graphs(self._rig)
        return found

    def has_room(self, use: Use) -> bool:
        """Whether one more graph may be kept: there are fewer than may be; or it is of the lane's buffers, by which all
        calls of its piece can go, and may take the place of one at other addresses; or the least lately used has not
        been used for so long that its place is better given to another. (To make room at every call would cost more
        than it saves.) At others' addresses there is one in a while at most (`EVERY`)."""
        if use is not Use.LANE and not self._elsewhere.may:
            return False
        kept = [graph for graphs in self.pieces.values() for graph in graphs.kept.values()]
        most = self._rig.graphs
        if len(kept) < most or most == 0:
            return most > 0
        if use is Use.LANE and any(graph.use is not Use.LANE for graph in kept):
            return True
        return self.tick - min(graph.used for graph in kept) > PATIENCE * most

    def stand_in(self, piece: Piece) -> Piece:
        """What a piece runs as in the lane's buffers: itself where it has a graph there, or comes again and may have
        one, which makes way for another's once in a while at most (`EVERY`); else its bucket. The run that is about to
        begin is counted already."""
        bucket = piece.bucket  # another thread may take it away
        if bucket is None or not self._rig.graphs:
            return piece
        graphs = self.of(piece)
        if any(graph.use is Use.LANE for graph in graphs.kept.values()):
            return piece
        may = graphs.runs >= AGAIN and self._has_room_beside_buckets() and self.has_room(Use.LANE)
        return piece if may else bucket

    def _beside_buckets(self) -> list[tuple[int, Addresses, Graphs]]:
        """Graphs of the lane's buffers for sizes that are no buckets: when they were used, where they are."""
        return [
            (graph.used, at, graphs)
            for piece, graphs in self.pieces.items()
            if piece.bucket is not None
            for at, graph in graphs.kept.items()
            if graph.use is Use.LANE
        ]

    @property
    def _most_beside_buckets(self) -> int:
        return self._rig.graphs - int(SHARE * self._rig.graphs)

    def _has_room_beside_buckets(self) -> bool:
        if self.tick < self._look_again:
            return False
        used = [one[0] for one in self._beside_buckets()]
        if len(used) < self._most_beside_buckets:
            return True
        if self.tick - min(used) > PATIENCE * self._rig.graphs and self._exchanges.may:
            return True
        self._look_again = self.tick + LOOK
        return False

    def make_room(self, piece: Piece, use: Use) -> None:
        """Free the least lately used, so that one more may be kept, of this piece; for one of the lane's buffers, first
        those at other addresses. Nothing of the lane runs now."""
        if use is not Use.LANE:
            self._elsewhere.did()
        elif piece.bucket is not None:
            beside = sorted(self._beside_buckets(), key=lambda one: one[0])
            surplus = beside[: max(0, len(beside) + 1 - self._most_beside_buckets)]
            if surplus:
                self._exchanges.did()
            for _, at, graphs in surplus:
                graphs.drop(at)
        kept = [
            (use is Use.LANE and graph.use is Use.LANE, graph.used, at, graphs)
            for graphs in self.pieces.values()
            for at, graph in graphs.kept.items()
        ]
        kept.sort(key=lambda one: one[:2])
        for _, _, at, graphs in kept[: max(0, len(kept) - self._rig.graphs + 1)]:
            graphs.drop(at)

    def forget(self, addresses: Addresses) -> None:
        """Free all graphs at addresses that are about to be given back. None of them runs."""
        for graphs in self.pieces.values():
            graphs.drop(addresses)

    def clear(self) -> None:
        for graphs in self.pieces.values():
            graphs.clear()
        self.pieces.clear()
        self._look_again = 0
        self._elsewhere.restart()
        self._exchanges.restart()
