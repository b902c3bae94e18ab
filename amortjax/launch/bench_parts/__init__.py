"""Parts of the inference benchmark: problems, outside libraries, timing, the list of solvers, the table."""
