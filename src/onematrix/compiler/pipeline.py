"""The ordered passes: lower(program) → program. Read this first.

A pass takes the graph of values (`graph`) and gives one with the same meaning, and says what fired. They run in
the order of PASSES, again and again until none fires; `writing` turns the graph into a program again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from onematrix.compiler.carries import join_carries
from onematrix.compiler.graph import Graph
from onematrix.compiler.motion import hoist_inputs, sink_outputs
from onematrix.compiler.powers import collapse_powers
from onematrix.compiler.reading import read_program
from onematrix.compiler.rewriting import rewrite
from onematrix.compiler.writing import write_program
from onematrix.programs.program import Program
from onematrix.records.collector import collector_at_rest

Pass = Callable[[Graph, list[str]], Graph]


def canonicalise(graph: Graph, fired: list[str]) -> Graph:
    """Identities, zeros, ones and factors folded; equal values one; what no output needs dropped."""
    before = len(graph.values())
    graph = rewrite(graph)
    while (after := len(graph.values())) < before:
        fired.append(f"{before - after} of {before} values folded, shared or dead")
        before, graph = after, rewrite(graph)
    return graph


PASSES: tuple[tuple[str, Pass], ...] = (
    ("canonical form, value numbering, liveness", canonicalise),
    ("carries", join_carries),
    ("power collapse", collapse_powers),
    ("hoist", hoist_inputs),
    ("sink", sink_outputs),
)


@dataclass
class Trace:
    """What each pass did, in the order they ran."""

    fired: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(f"{name}: {what}" for name, what in self.fired) or "no pass fired"


@collector_at_rest()
def lower(program: Program, trace: Trace | None = None, verify: bool = False) -> Program:
    """The program with the same meaning that costs least; lowering it again gives the same text.

    Identities, constants and repeated rows are folded, rows nothing reads are dropped, powers of a map are
    collapsed, and what loops compute without their state is moved before and behind them. verify=True builds
    and checks a program after every pass. Cost: a few rewritings of the graph, each linear in its values.

    >>> import onematrix as om
    >>> from onematrix.networks import sru
    >>> literal = sru(4, "14")
    >>> [literal.counts(time=1).work.products, lower(literal).counts(time=1).work.products]
    [210, 29]
    """
    trace = Trace() if trace is None else trace
    lowered = lower_once(program, trace, verify)
    seen: dict[str, Program] = {}
    while (text := lowered.text()) not in seen:  # names may take a round to settle
        seen[text] = lowered
        lowered = lower_once(lowered, trace, verify)
    cycle = list(seen)[list(seen).index(text) :]
    return seen[min(cycle)]


def lower_once(program: Program, trace: Trace, verify: bool) -> Program:
    """One round: the passes until none fires."""
    graph = read_program(program)
    while True:
        before = len(trace.fired)
        for name, run in PASSES:
            fired: list[str] = []
            graph = run(graph, fired)
            trace.fired += [(name, what) for what in fired]
            if verify and fired:
                write_program(graph)
        if len(trace.fired) == before:
            return write_program(graph)
