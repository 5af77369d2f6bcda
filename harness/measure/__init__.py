"""How a run is made: gate, clocks, memory, isolated workers, and the executor that walks a plan."""
