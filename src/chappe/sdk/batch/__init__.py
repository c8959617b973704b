"""The commands of batch systems, answered by our own Hub: `chappe-sbatch`, `chappe-qsub` and the rest.

All but `desk` is pure. `flags` reads a command line by a table; `sbatch` and `qsub` turn flags and directives
into a `Request`, and `making` turns that into drafts; `seen` says what a Job looks like to both dialects, and
`squeue` and `qstat` print it.
"""
