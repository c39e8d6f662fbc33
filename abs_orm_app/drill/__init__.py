"""The drill: proof on a live database that a pool keeps its promises."""
