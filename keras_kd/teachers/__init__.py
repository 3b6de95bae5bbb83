"""Teachers: ensembles, moving averages, and how a teacher is run beside its student."""
