"""Access to the machine: clock, device, files, memory, progress and signals."""
