"""An attack on the package: calls, files, threads, memory and faults that none should meet."""
