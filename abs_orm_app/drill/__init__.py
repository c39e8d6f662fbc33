"""The drill: proves on a live database that a pool keeps its promises."""
